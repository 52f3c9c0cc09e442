"""Backward and forward passes of an equilibrium layer, and the search for a penalty, against peers.

    python packages/shine/benchmarks/bench_shine.py [--quick] [--out FILE.json]

Peers: jaxopt, optimistix with lineax, torchdeq on torch (one thread); requirements.txt. Those that are not installed
are left out. A backward pass is the pullback alone: the solve is linearised before, and what is timed is the compiled
call of the pullback (of torch, the backward pass through a graph that is kept). The layer is
``tanh(z W + x U + b)``, batch 64, 128 units, float32, ``W = N(0, 0.45^2 / 128)``, tolerance 1e-4, at most 20 steps.
Forward values have to agree to 1e-3 first; gradients have to point where the
exact one does (cosine 0.9), and the distance of the peers' from it is printed.
"""

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gyri.reproduce import bench
from gyri.shine import Broyden, Full, JacobianFree, Shine, fixed_point
from gyri.shine.bilevel import MEMORY, Point, run_hoag, run_search, safe_step
from gyri.shine.datasets import load_topics, train_val_test_split
from gyri.shine.estimator import problem_of
from gyri.shine.lbfgs import empty_pairs

BATCH, DIM, STEPS, TOL = 64, 128, 20, 1e-4


def layer(z: Any, W: Any, U: Any, b: Any, x: Any) -> Any:
    return jnp.tanh(z @ W + x @ U + b)


def draw(dim: int = DIM, seed: int = 0) -> tuple[tuple, Any]:
    """Parameters with the input, and a cotangent."""
    rng = np.random.default_rng(seed)
    gaussian = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    scale = dim**-0.5
    return (
        (0.45 * scale * gaussian(dim, dim), scale * gaussian(dim, dim), jnp.zeros(dim), gaussian(BATCH, dim)),
        gaussian(BATCH, dim),
    )


def ours(backward: Any, max_steps: int = STEPS, memory: int | None = None) -> Callable:
    solver = Broyden(max_steps, TOL, memory=memory)
    return lambda *params: (
        fixed_point(layer, jnp.zeros_like(params[3]), *params, solver=solver, backward=backward, batch_ndim=1).value
    )


def jax_peers() -> dict[str, Callable]:
    """Forward functions of the peers on JAX, differentiable by their own implicit rules."""
    peers: dict[str, Callable] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import jaxopt

        options = {"maxiter": STEPS, "tol": TOL, "implicit_diff": True}
        anderson = jaxopt.AndersonAcceleration(layer, history_size=6, **options)
        picard = jaxopt.FixedPointIteration(layer, **options)
        # With the sign of a fixed point's Jacobian and without line search: its defaults do not converge in 100 steps.
        broyden = jaxopt.Broyden(lambda z, *p: layer(z, *p) - z, gamma=-1.0, stepsize=1.0, **options)
        for name, solver in {"Anderson": anderson, "Broyden": broyden, "FixedPointIteration": picard}.items():
            peers[f"jaxopt {name}"] = lambda *p, solver=solver: solver.run(jnp.zeros_like(p[3]), *p).params
    except ImportError:
        print("# jaxopt is not installed: its rows are left out")
    try:
        import lineax
        import optimistix

        solver = optimistix.FixedPointIteration(rtol=TOL, atol=TOL)
        adjoint = optimistix.ImplicitAdjoint(lineax.GMRES(rtol=TOL, atol=TOL))
        peers["optimistix, GMRES"] = lambda *p: (
            optimistix.fixed_point(
                lambda z, p: layer(z, *p), solver, jnp.zeros_like(p[3]), p, max_steps=100, adjoint=adjoint
            ).value
        )
    except ImportError:
        print("# optimistix or lineax is not installed: its row is left out")
    return peers


def torch_peers(params: tuple, v: Any) -> dict[str, tuple[Callable, Callable]]:
    """Forward and backward calls of torchdeq, which return NumPy arrays."""
    try:
        import torch
        import torchdeq
    except ImportError:
        print("# torch or torchdeq is not installed: its rows are left out")
        return {}
    torch.set_num_threads(1)
    W, U, b = (torch.tensor(np.asarray(p), requires_grad=True) for p in params[:3])
    x, v = (torch.tensor(np.asarray(a)) for a in (params[3], v))
    peers = {}
    for name in ("broyden", "anderson"):
        deq = torchdeq.get_deq(
            ift=True, f_solver=name, b_solver=name, f_max_iter=STEPS, b_max_iter=STEPS, f_tol=TOL, b_tol=TOL
        )

        def forward(deq: Any = deq) -> Any:
            return deq(lambda state: torch.tanh(state @ W + x @ U + b), torch.zeros_like(x))[0][-1]

        def value(forward: Any = forward) -> np.ndarray:
            with torch.no_grad():
                return forward().numpy()

        z = forward()
        peers[f"torchdeq {name}"] = (
            value,
            lambda z=z: [g.numpy() for g in torch.autograd.grad(z, (W, U, b), v, retain_graph=True)],
        )
    return peers


def pullback(forward: Callable, params: tuple, v: Any) -> Callable[[], Any]:
    """The compiled pullback, as a call without arguments."""
    _, pull = jax.vjp(jax.jit(forward), *params)
    run = jax.jit(lambda pull, v: pull(v)[:3])
    return lambda: run(pull, v)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(tree))])


def close(rtol: float, a: Any, b: Any) -> bool:
    return bool(np.linalg.norm(flat(a) - flat(b)) <= rtol * np.linalg.norm(flat(b)))


def same_direction(a: Any, b: Any) -> bool:
    a, b = flat(a), flat(b)
    return bool(a @ b >= 0.9 * np.linalg.norm(a) * np.linalg.norm(b))


def compare_layers(table: bench.Table, quick: bool) -> None:
    paired = partial(bench.paired, n_rounds=11 if quick else 101, warmup=5)
    params, v = draw()
    shine, free = pullback(ours(Shine()), params, v), pullback(ours(JacobianFree()), params, v)
    refine = pullback(ours(Shine(refine_steps=5)), params, v)
    full, full20 = pullback(ours(Full()), params, v), pullback(ours(Full(20, 2e-6)), params, v)
    table.add("backward: shine / jacobian_free", paired(shine, free, check=same_direction))
    table.add("backward: shine / full (at most 50 steps)", paired(shine, full, check=same_direction))
    table.add("backward: shine / full (at most 20 steps)", paired(shine, full20, check=same_direction))
    table.add("backward: refine, 5 steps / full (at most 20)", paired(refine, full20, check=partial(close, 1e-3)))
    peers = jax_peers()
    for name, forward in peers.items():
        back = pullback(forward, params, v)
        error = np.linalg.norm(flat(back()) - flat(full())) / np.linalg.norm(flat(full()))
        print(f"gradient of {name}: relative distance from our exact one {error:.2g}", flush=True)
        table.add(f"backward: shine / {name}", paired(shine, back, check=same_direction))
    forward = jax.jit(ours(Shine()))
    for name, peer in peers.items():
        peer = jax.jit(peer)
        row = paired(lambda: forward(*params), lambda peer=peer: peer(*params), check=partial(close, 1e-3))
        table.add(f"forward: Broyden / {name}", row)
    slow = partial(bench.paired, n_rounds=5 if quick else 21, warmup=2)
    for name, (peer, back) in torch_peers(params, v).items():
        table.add(f"backward: shine / {name}", slow(shine, back, check=same_direction))
        table.add(f"forward: Broyden / {name}", slow(lambda: forward(*params), peer, check=partial(close, 1e-3)))


def growth(table: bench.Table, quick: bool) -> None:
    """Time of what SHINE adds, by units and rows; of the backward pass by forward steps at a fixed memory."""
    sizes = (128, 256) if quick else (128, 256, 512, 1024)
    rounds = 5 if quick else 31

    def product(dim: int, memory: int) -> Callable:
        """The product with the transposed estimate alone."""
        params, v = draw(dim)
        solver = Broyden(60, 1e-6, memory=memory)
        solve = lambda *p: fixed_point(layer, jnp.zeros_like(p[3]), *p, solver=solver, batch_ndim=1)
        inverse = jax.jit(solve)(*params).inverse
        run = jax.jit(lambda inverse, v: inverse.rmatvec(v))
        return lambda: run(inverse, v)

    call = lambda f: f()
    table.add("product of SHINE, units", bench.slope(call, sizes, setup=lambda d: product(d, 8), n_rounds=rounds))
    table.add(
        "product of SHINE, rows", bench.slope(call, (8, 16, 32), setup=lambda m: product(512, m), n_rounds=rounds)
    )
    params, v = draw()
    steps = lambda n: pullback(ours(Shine(), n, memory=8), params, v)
    table.add("backward of SHINE, forward steps, 8 rows", bench.slope(call, (10, 20, 80), setup=steps, n_rounds=rounds))
    for n in (10, 80):
        loss = lambda *p, n=n: ours(Shine(), n, memory=8)(*p).sum()
        memory = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*params).compile().memory_analysis()
        times = memory.temp_size_in_bytes / 4 / (2 * 8 * BATCH * DIM)
        print(f"memory of a training step, {n} forward steps, 8 rows: {times:.2f} times 2 m B d floats", flush=True)


# --- a penalty by descent ---------------------------------------------------------------------------------------------


def search_penalty(quick: bool) -> None:
    """Seconds to 1.001 times the optimum of the validation loss, compilation apart; five runs of each."""
    parts = train_val_test_split(*(load_topics(600, 200) if quick else load_topics()), train=0.9)
    data = tuple((jnp.asarray(X), jnp.asarray(y, jnp.float32)) for X, y in parts[:2])
    p = data[0][0].shape[1]
    problem = problem_of("logistic", p, "float32")
    x0, lam0 = jax.random.normal(jax.random.key(0), (p,)), jnp.zeros(1)
    least = run_search(problem, x0, lam0, data, np.linspace(-12, 12, 97)).outer_value

    def first(history: dict[str, np.ndarray]) -> float:
        reached = np.flatnonzero(history["outer"] <= 1.001 * least)
        return float(history["time"][reached[0]]) if reached.size else float("inf")

    mine = [first(run_hoag(problem, x0, lam0, data).history) for _ in range(5)]
    print(f"hoag, SHINE, to 1.001 times the optimum {least:.4g}: {1e3 * np.median(mine):.4g} ms", flush=True)
    try:
        theirs = [first(jaxopt_descent(problem, x0, lam0, data)) for _ in range(5)]
    except ImportError:
        return
    print(f"the same outer rule on jaxopt.LBFGS(implicit_diff=True): {1e3 * np.median(theirs):.4g} ms", flush=True)
    print(f"faster: {np.median(theirs) / np.median(mine):.3g}x", flush=True)


def jaxopt_descent(problem: Any, x0: Any, lam0: Any, data: Any) -> dict[str, np.ndarray]:
    """The loop of `hoag` with jaxopt's inner solver and implicit derivative, to a tenth of HOAG's first tolerance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jaxopt

    inner = lambda x, lam: problem.inner(x, lam[0], data)
    size = float(jnp.linalg.norm(jax.grad(inner)(x0, lam0)))
    solver = jaxopt.LBFGS(inner, maxiter=1000, tol=1e-4 * size, history_size=10, implicit_diff=True)

    def solved(lam: Any, x: Any) -> tuple[Any, Any]:
        x = solver.run(x, lam).params
        return problem.outer(x, lam[0], data), x

    outer = jax.jit(jax.value_and_grad(solved, has_aux=True))
    jax.block_until_ready(outer(lam0, x0))
    start, rows = time.perf_counter(), []
    point = Point(np.asarray(lam0), x0, empty_pairs(MEMORY, x0), np.inf, np.inf)
    old, lip = None, 1.0
    for _ in range(30):
        (value, x), gradient = outer(jnp.asarray(point.lam), point.x)
        point, gradient = point._replace(x=x, outer=float(value)), np.asarray(gradient)
        rows.append((point.outer, time.perf_counter() - start))
        if old is None:
            lip = float(np.linalg.norm(gradient))
        point, old, lip, _ = safe_step(point, old, gradient, lip, 1e-4, (-12.0, 12.0), True)
    return dict(zip(("outer", "time"), np.array(rows).T, strict=True))


def benchmark(table: bench.Table, quick: bool) -> None:
    compare_layers(table, quick)
    growth(table, quick)
    search_penalty(quick)


if __name__ == "__main__":
    peers = ["jaxopt", "optimistix", "lineax", "torch", "torchdeq"]
    raise SystemExit(bench.main(benchmark, title="Implicit layers and bi-level problems", peers=peers))
