"""Fitting a guide: steps scanned on the device, whose cost does not grow with the number of copies."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key, PyTree
from numpyro.distributions import biject_to

from gyri.numerics.loops import scan_chunks
from gyri.numerics.validation import as_key, check_positive_int

from .autoguide import AutoPAVI
from .bound import reduced_elbo
from .setup import Setup, unraveller

# Learning rates at the start and at the end, as measured best: shared weights learn from every step; rows are drawn at
# few of the steps, and what they tell must not have stopped moving by then.
_RATE = (2e-2, 2e-5)
_ROW_RATE = (4e-2, 4e-4)
_CLIP = 100.0
_B2 = 0.99  # of Adam: gradients fall by orders of magnitude during a fit


class FitResult(NamedTuple):
    """Result of :func:`fit`.

    Attributes
    ----------
    params : dict
        Parameters of the guide and of the model, as ``svi.get_params`` gives them.
    losses : numpy.ndarray, shape (num_steps,)
        Minus the reduced ELBO at each step.
    num_steps : int
        Steps done; fewer than asked after Ctrl-C.
    """

    params: dict[str, Any]
    losses: Float[Any, " num_steps"]
    num_steps: int


class _Carry(NamedTuple):
    dense: PyTree
    """Parameters of which every step uses all, unconstrained; one vector for the default optimizer."""
    state: PyTree
    """Their optimizer's."""
    tables: dict[str, tuple[Array, PyTree]]
    """Rows and an optimizer's state for each of them."""


class Options(NamedTuple):
    """What a step is told besides the data."""

    key: Array
    num_steps: Array
    warmup_steps: Array


def fit(
    guide: AutoPAVI,
    rng_key: Key[Array, ""] | Array | int,
    num_steps: int,
    *args: Any,
    optimizer: Any = None,
    num_particles: int = 8,
    lazy: bool = True,
    warmup_steps: int = 0,
    block: int = 100,
    init_params: dict | None = None,
    progress_bar: bool = True,
    mesh: Mesh | None = None,
    **kwargs: Any,
) -> FitResult:
    """Fit a guide by stochastic gradient ascent of the reduced ELBO.

    Each step draws copies of each plate, and touches the rows of these copies only, in the tables of encodings as in
    the optimizer's state: its time and memory do not grow with the plates.

    Parameters
    ----------
    guide : AutoPAVI
        The guide.
    rng_key : PRNG key or int
        Of start, copies and draws. The same key gives the same losses, bit by bit.
    num_steps : int
        Steps of the optimizer.
    *args, **kwargs
        Arguments of the model. Arrays are arguments of the compiled step.
    optimizer : optax.GradientTransformation, optional
        For gradients of minus the ELBO. By default Adam (decays 0.9 and 0.99) after ``clip_by_global_norm(100)``, whose
        learning rate falls along a cosine: from 2e-2 to 2e-5, and from 4e-2 to 4e-4 for the rows of `lazy` tables.
    num_particles : int
        Draws a step; they share the copies and the encodings.
    lazy : bool
        Each row of a subsampled table has an optimizer's state of its own, with its own count of steps (a schedule
        follows the fit's). False: all rows move at each step, by momentum alone where they were not drawn.
    warmup_steps : int
        First steps without the entropy, towards a mode.
    block : int
        Steps compiled into one call, between two looks at the losses.
    init_params : dict, optional
        Start here: of an earlier fit, or of `load_params`.
    progress_bar : bool
        Show a bar.
    mesh : jax.sharding.Mesh, optional
        Devices along one axis, over which the copies of the outermost subsampled plate are split: the rows of the
        tables, and the work of a step. The data are where the caller has put them (`jax.device_put`). Their number
        must divide the plate's size and what is drawn of it. The fit is the same as on one device, up to rounding.

    Returns
    -------
    FitResult
        Fields `params`, `losses`, `num_steps`.

    Raises
    ------
    ValueError
        Bad data (see :class:`AutoPAVI`), a bad number, an optimizer that is not optax's, parameters of another guide.
    FloatingPointError
        The loss is not finite; names the step.

    Notes
    -----
    NumPyro's handlers share one stack in a process: run fits, as all that traces a NumPyro model, from one thread at a
    time.

    References
    ----------
    Rouillard, Le Bris, Moreau, Wassermann (2023), PAVI: plate-amortized variational inference, TMLR.

    Examples
    --------
    >>> import jax
    >>> from gyri.pavi import AutoPAVI, fit
    >>> from gyri.pavi.models import gre, simulate_gre
    >>> _, x = simulate_gre(jax.random.key(0), 20, 5, 2)
    >>> guide = AutoPAVI(gre, encoding="data", subsample_sizes={"groups": 5})
    >>> fit(guide, 1, 10, x, progress_bar=False).losses.shape
    (10,)
    """
    num_steps = check_positive_int(num_steps, "num_steps", minimum=0)
    num_particles = check_positive_int(num_particles, "num_particles")
    warmup_steps = check_positive_int(warmup_steps, "warmup_steps", minimum=0)
    block = check_positive_int(block, "block")
    check_optimizer(optimizer)
    setup = guide.setup(args, kwargs)
    setup.check_data(args, kwargs)
    init_key, key = jax.random.split(as_key(rng_key))
    params = (
        setup.init_all(init_key, args, kwargs)
        if init_params is None
        else _check_params(setup, init_params, setup.dynamic(args, kwargs))
    )
    name = ("fit", optimizer, num_particles, bool(lazy), mesh)
    programs = setup.program_of(name, Programs, optimizer, num_particles, lazy, mesh)
    carry = programs.start(params)
    int32 = lambda n: jnp.asarray(n, jnp.int32)
    options = Options(key, int32(num_steps), int32(warmup_steps))
    carry, out = scan_chunks(
        programs.step, carry, num_steps, args=(options, setup.dynamic(args, kwargs)),
        chunk=block, desc="fit", progress=progress_bar, donate=True,
    )  # fmt: skip
    return FitResult(programs.finish(carry), out["loss"], len(out["loss"]))


def check_optimizer(optimizer: Any) -> None:
    """Refuse what is neither None nor optax's: NumPyro's optimizers have the same methods, of other arguments."""
    if optimizer is not None and not isinstance(optimizer, optax.GradientTransformation):
        got = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
        raise ValueError(f"optimizer: expected an optax.GradientTransformation, as of optax.adam(1e-2), got {got}")


def _check_params(setup: Setup, params: Mapping[str, Any], dynamic: list) -> dict[str, Any]:
    expected = jax.eval_shape(setup.init_all_params, jax.random.key(0), dynamic)
    missing, extra = sorted(set(expected) - set(params)), sorted(set(params) - set(expected))
    if missing or extra:
        raise ValueError(f"init_params: expected {sorted(expected)}; missing are {missing}, unknown are {extra}")
    for name in setup.latents:
        table = setup.table_name(name)
        if table is not None:
            setup.check_table(name, params[table])
    shapes = lambda tree: [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    for name, shape in expected.items():
        if shapes(params[name]) != shapes(shape):
            raise ValueError(f"init_params: expected {name!r} of shapes {shapes(shape)}, got {shapes(params[name])}")
    return dict(params)


class Programs:
    """Start, step and end of a fit, compiled once for an optimizer."""

    def __init__(
        self,
        setup: Setup,
        optimizer: optax.GradientTransformation | None,
        num_particles: int,
        lazy: bool,
        mesh: Mesh | None,
    ) -> None:
        self.setup, self.num_particles = setup, num_particles
        self.default = optimizer is None
        self.optimizer = optimizer or optax.chain(optax.clip_by_global_norm(_CLIP), optax.scale_by_adam(b2=_B2))
        partial = lambda name: any(setup.sizes[p] < setup.graph.plates[p].size for p in setup.graph.sites[name].plates)
        tables = {name: setup.table_name(name) for name in setup.latents if partial(name)}
        self.tables = {name: table for name, table in tables.items() if table is not None and lazy}
        # The default optimizer takes all as one vector: fewer operations to compile and to launch.
        self.pack = (lambda tree: ravel_pytree(tree)[0]) if self.default else (lambda tree: tree)
        self.unpack: Callable[[PyTree], dict[str, Any]] = lambda tree: tree
        self.mesh: Any = mesh
        self.split_plate: str | None = None
        if mesh is not None:
            self.split_plate = _check_mesh(setup, mesh)
        self.start = self._start if mesh is not None else jax.jit(self._start)

    def _map_constrained(self, params: Mapping[str, Any], move: Callable) -> dict[str, Any]:
        constraints = self.setup.model_params
        return {k: x if constraints.get(k) is None else move(biject_to(constraints[k]), x) for k, x in params.items()}

    def _start(self, params: dict[str, Any]) -> _Carry:
        params = jax.tree.map(jnp.asarray, self._map_constrained(params, lambda t, x: t._inverse(x)))
        tables = {}
        for table in self.tables.values():
            rows = params.pop(table)
            init = self.optimizer.init
            for _ in range(rows.ndim - 1):
                init = jax.vmap(init)
            tables[table] = (rows, init(rows))
        if self.mesh is not None:
            sites = {table: name for name, table in self.tables.items()}
            tables = {table: self._split(tree, sites[table]) for table, tree in tables.items()}
            params = jax.device_put(params, NamedSharding(self.mesh, PartitionSpec()))
        if self.default:
            self.unpack = unraveller(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params))
        dense = self.pack(params)
        return _Carry(dense, self.optimizer.init(dense), tables)

    def _split(self, tree: PyTree, site: str) -> PyTree:
        """Rows of a table over the devices."""
        graph, plate = self.setup.graph, self.split_plate
        plates = graph.sites[site].plates
        spec: list[str | None] = [None] * len(graph.batch_shape(plates))
        if plate in plates:
            spec[graph.plates[plate].dim] = self.mesh.axis_names[0]
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(*spec)))

    def finish(self, carry: _Carry) -> dict[str, Any]:
        """All parameters, constrained."""
        dense = carry.dense
        if self.default:  # cut on the host: a program of many slices would take longer to compile than all this
            dense = jax.device_put(self.unpack(np.asarray(dense)), dense.sharding)
        params = self._map_constrained(dense, lambda t, x: t(x))
        return {**params, **{name: rows for name, (rows, _) in carry.tables.items()}}

    def step(self, carry: _Carry, i: Array, options: Options, dynamic: list) -> tuple[_Carry, dict[str, Array]]:
        """One step of the optimizer, for `scan_chunks`."""
        setup = self.setup
        # Both at once: a generator's call takes long to compile.
        index_key, draw_key = jax.vmap(jax.random.fold_in, (None, 0))(options.key, 2 * i + jnp.arange(2))
        indices = setup.draw_indices(index_key)
        if self.split_plate is not None:  # each device works on its share of the drawn copies
            spread = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names[0]))
            indices[self.split_plate] = jax.lax.with_sharding_constraint(indices[self.split_plate], spread)
        places = {name: setup.row_index(name, indices) for name in self.tables}
        rows = {name: carry.tables[table][0][places[name]] for name, table in self.tables.items()}
        weight = jnp.where(i < options.warmup_steps, 0.0, 1.0)

        def loss(dense: PyTree, rows: dict) -> Array:
            params = self._map_constrained(self.unpack(dense), lambda t, x: t(x))
            if not setup.encodes:
                others = {name for name in setup.latents if name not in rows}
                rows = {**rows, **setup.take_rows(params, indices, others)}
            return -reduced_elbo(setup, params, rows, draw_key, dynamic, indices, self.num_particles, weight)

        value, (dense_grad, rows_grad) = jax.value_and_grad(loss, argnums=(0, 1))(carry.dense, rows)
        rate, row_rate = (self._rate(i, options.num_steps, ends) for ends in (_RATE, _ROW_RATE))
        updates, state = self.optimizer.update(dense_grad, carry.state, carry.dense)
        dense = optax.apply_updates(carry.dense, jax.tree.map(lambda u: u * rate, updates))
        tables = {}
        for name, table in self.tables.items():
            values, states = carry.tables[table]
            place = places[name]
            new_rows, new_states = self._move_rows(rows[name], rows_grad[name], _take(states, place), i, row_rate)
            put = lambda x, new, place=place: x.at[place].set(new, unique_indices=True)
            tables[table] = (put(values, new_rows), jax.tree.map(put, states, new_states))
        return _Carry(dense, state, tables), {"loss": value}

    def _rate(self, i: Array, num_steps: Array, ends: tuple[float, float]) -> Array | float:
        """What the optimizer's updates are multiplied by; an argument, so that another `num_steps` compiles nothing."""
        if not self.default:
            return 1.0
        first, last = ends
        return -(last + (first - last) * 0.5 * (1 + jnp.cos(jnp.pi * i / num_steps)))

    def _move_rows(
        self, rows: Array, grads: Array, states: PyTree, i: Array, rate: Array | float
    ) -> tuple[Array, PyTree]:
        """A step of each row by an optimizer of its own."""
        batch, n = rows.shape[:-1], rows.ndim - 1
        flat = lambda x: x.reshape(-1, *x.shape[n:])

        def one(row: Array, grad: Array, state: PyTree) -> tuple[Array, PyTree]:
            updates, state = self.optimizer.update(grad, _at_step(state, i), row)
            return optax.apply_updates(row, updates * rate), state

        new = jax.vmap(one)(flat(rows), flat(grads), jax.tree.map(flat, states))
        return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), new)


def _check_mesh(setup: Setup, mesh: Mesh) -> str:
    """The plate that is split over the devices."""
    plate = setup.row_plate
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh: expected devices along one axis, got the axes {mesh.axis_names}")
    if plate is None:
        raise ValueError("mesh: the model has no plate whose copies are independent given the rest")
    for size in (setup.graph.plates[plate].size, setup.sizes[plate]):
        if size % mesh.size:
            raise ValueError(f"mesh: expected a number of devices that divides {size}, for {plate!r}, got {mesh.size}")
    return plate


def _take(states: PyTree, place: tuple) -> PyTree:
    return jax.tree.map(lambda x: x[place], states)


def _at_step(state: PyTree, i: Array) -> PyTree:
    """Schedules follow the fit's steps, not a row's own."""
    scheduled = (optax.ScaleByScheduleState, optax.InjectHyperparamsState, optax.InjectStatefulHyperparamsState)
    is_scheduled = lambda node: isinstance(node, scheduled)
    move = lambda node: node._replace(count=i.astype(node.count.dtype)) if is_scheduled(node) else node
    return jax.tree.map(move, state, is_leaf=is_scheduled)
