"""What a fit costs, how soon it is good, and how both grow with the number of groups.

    python packages/pavi/benchmarks/bench_pavi.py [--quick] [--out FILE.json]

One process bound to one CPU; CPU time. The peers are NumPyro's own guides, in the same process.
"""

import os

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import time
from functools import partial
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoIAFNormal, AutoNormal

from gyri.pavi import AutoPAVI, elbo, fit, sample_indices
from gyri.pavi.flows import affine
from gyri.pavi.models import gre, gre_log_evidence, gre_posterior, ms_hbm, simulate_gre
from gyri.pavi.train import Options, Programs
from gyri.reproduce import bench

B = 20
GOAL = 0.05  # nat a group


def cpu(function: Any) -> tuple[float, Any]:
    start = time.process_time()
    result = jax.block_until_ready(function())
    return time.process_time() - start, result


def pavi_gap(guide: AutoPAVI, x: Any, seed: int, steps: int) -> tuple[float, float]:
    """CPU seconds without compilation, and the gap a group."""
    seconds, result = cpu(lambda: fit(guide, seed, steps, x, progress_bar=False))
    bound = elbo(seed, result.params, guide, x, num_particles=50, full=True)
    return seconds, (float(gre_log_evidence(x)) - float(bound)) / len(x)


def numpyro_gap(make: Any, whole: Any, x: Any, seed: int, steps: int, rate: float) -> tuple[float, float]:
    """The same of a guide of NumPyro, with the same schedule and particles."""
    svi = SVI(gre, make, optax.adam(optax.cosine_decay_schedule(rate, steps, 0.01)), Trace_ELBO(8))
    state = svi.init(jax.random.key(seed), x)
    run = jax.jit(lambda state, x: jax.lax.scan(lambda s, _: svi.update(s, x), state, length=steps)[0])
    run = run.lower(state, x).compile()
    seconds, state = cpu(lambda: run(state, x))
    whole_svi = SVI(gre, whole, optax.adam(1e-2), Trace_ELBO())
    whole_svi.init(jax.random.key(0), x)
    bound = -Trace_ELBO(50).loss(jax.random.key(seed), svi.get_params(state), gre, whole, x)
    return seconds, (float(gre_log_evidence(x)) - float(bound)) / len(x)


def first(run: Any, steps: tuple[int, ...]) -> str:
    """Steps and seconds of the first budget that reaches the goal."""
    for n in steps:
        seconds, gap = run(n)
        if gap <= GOAL:
            return f"{n} steps, {seconds:.2f} s (gap {gap:.3f})"
    return f"not in {steps[-1]} steps, {seconds:.2f} s (gap {gap:.3g})"


def quality(quick: bool) -> None:
    n = 200 if quick else 1000
    _, x = simulate_gre(0, n, 50, 2)
    budget = (250, 500, 700, 1000, 2000, 4000, 8000, 16000)
    print(f"# to {GOAL} nat a group, {n} groups, {B} a step")
    for name, options in (("PAVI-E", {"encoding": "data"}), ("PAVI-F", {}), ("no sharing", {"amortize": False})):
        guide = AutoPAVI(gre, subsample_sizes={"groups": B}, **options)
        fit(guide, 0, 1, x, progress_bar=False)  # compiles
        print(f"{name}:", first(lambda k, guide=guide: pavi_gap(guide, x, 0, k), budget), flush=True)
    plates = lambda x: numpyro.plate("groups", len(x), dim=-2, subsample_size=B)
    for rate in (1e-2, 3e-2, 1e-1):
        run = lambda k, rate=rate: numpyro_gap(AutoNormal(gre, create_plates=plates), AutoNormal(gre), x, 0, k, rate)
        print(f"AutoNormal, {rate}:", first(run, (1000, 5000, 10_000, 14_000, 20_000, 28_000, 40_000)), flush=True)
    _, x = simulate_gre(0, 100, 50, 2)
    guide = AutoPAVI(gre, encoding="data", subsample_sizes={"groups": B})
    fit(guide, 0, 1, x, progress_bar=False)
    print("PAVI-E, 100 groups:", first(lambda k: pavi_gap(guide, x, 0, k), budget), flush=True)
    make = AutoIAFNormal(gre)
    run = lambda k: numpyro_gap(make, make, x, 0, k, 1e-2)
    print("AutoIAFNormal, 100 groups:", first(run, (1000,) if quick else (4000, 16_000)), flush=True)


def program(encoding: str, n: int) -> tuple[Any, Any, float, float]:
    """A compiled step on n groups, the data, and seconds of the start and of compiling the step."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(n, 50, 2)), jnp.float32)
    guide = AutoPAVI(gre, encoding=encoding, subsample_sizes={"groups": B})
    start = time.perf_counter()  # XLA's own threads spin: their CPU time is no one's
    setup = guide.setup((x,), {})
    made = Programs(setup, None, 8, True, None)
    carry = made.start(setup.init_all(jax.random.key(0), (x,), {}))
    jax.block_until_ready(carry)
    begun = time.perf_counter()
    options = Options(jax.random.key(0), jnp.int32(1000), jnp.int32(0))
    step = jax.jit(lambda carry, i, options, data: made.step(carry, i, options, data), donate_argnums=0)
    compiled = step.lower(carry, jnp.int32(0), options, [x]).compile()
    return compiled, x, begun - start, time.perf_counter() - begun


def cost(quick: bool) -> None:
    few, many = 100, 10_000 if quick else 1_000_000
    print(f"# a step, {few} and {many} groups")
    for encoding in ("data", "free"):
        per_step, temporary = [], []
        for n in (few, many):
            compiled, x, start, seconds = program(encoding, n)
            temporary.append(compiled.memory_analysis().temp_size_in_bytes)
            guide = AutoPAVI(gre, encoding=encoding, subsample_sizes={"groups": B})
            fit(guide, 0, 1, x, progress_bar=False)
            run = partial(fit, guide, progress_bar=False)
            times = []
            for k in range(5):
                short, long = cpu(partial(run, k, 200, x))[0], cpu(partial(run, k, 1200, x))[0]
                times.append((long - short) / 1000)
            per_step.append(float(np.median(times)))
            took = f"start {start:.1f} s, step compiled in {seconds:.1f} s, {1e6 * per_step[-1]:.0f} us a step"
            print(f"{encoding}, G = {n}: {took}", flush=True)
        print(f"{encoding}: time ratio {per_step[1] / per_step[0]:.2f}, temporary bytes {temporary}", flush=True)


def by_hand(x: Any, steps: int) -> Any:
    """The same estimator and optimizer for PAVI-F, written out for this model."""
    n, _, dim = x.shape
    flow, adam = affine((32, 32), scale=0.1), optax.scale_by_adam(b2=0.99)
    keys = jax.random.split(jax.random.key(0), 4)
    dense = {"mu": flow.init(keys[0], dim, 8), "theta": flow.init(keys[1], dim, 8 + dim), "e": jnp.zeros(8)}
    flat, unravel = jax.flatten_util.ravel_pytree(dense)
    rows = 0.1 * jax.random.normal(keys[2], (n, 8))
    state = (flat, adam.init(flat), rows, jax.vmap(adam.init)(rows))
    normal = lambda z, m, s: -0.5 * ((z - m) / s) ** 2 - jnp.log(s) - 0.5 * jnp.log(2 * jnp.pi)

    def loss(flat: Any, rows: Any, x: Any, noise: Any) -> Any:
        p = unravel(flat)

        def one(noise: Any) -> Any:
            u, v = noise[:dim], noise[dim:].reshape(-1, dim)
            mu, det = flow.forward(p["mu"], u, p["e"])
            off = mu - flow.forward(p["mu"], jnp.zeros(dim), p["e"])[0]
            c = jnp.concatenate([rows, jnp.broadcast_to(off, (len(rows), dim))], -1)
            theta, dets = flow.forward(p["theta"], v, c)
            total = normal(mu, 0.0, 1.0).sum() - normal(u, 0.0, 1.0).sum() + det
            local = normal(theta, mu, 0.2).sum() - normal(v, 0.0, 1.0).sum() + dets.sum()
            return total + n / B * (local + normal(x, theta[:, None], 0.05).sum())

        return -jax.vmap(one)(noise).mean()

    @jax.jit
    def run(state: Any, x: Any) -> Any:
        def step(state: Any, i: Any) -> Any:
            flat, s, rows, states = state
            a, b = jax.random.split(jax.random.fold_in(keys[3], i))
            chosen = sample_indices(a, n, B)
            noise = jax.random.normal(b, (8, dim + B * dim))
            own = rows[chosen]
            value, (g, h) = jax.value_and_grad(loss, (0, 1))(flat, own, x[chosen], noise)
            g = g * jnp.minimum(1, 100 / jnp.linalg.norm(g))
            cosine = 0.5 * (1 + jnp.cos(jnp.pi * i / steps))
            rate, row_rate = 2e-2 * (0.999 * cosine + 0.001), 4e-2 * (0.99 * cosine + 0.01)
            update, s = adam.update(g, s)
            update_rows, own_states = jax.vmap(adam.update)(h, jax.tree.map(lambda v: v[chosen], states))
            rows = rows.at[chosen].set(own - row_rate * update_rows, unique_indices=True)
            put = lambda v, w: v.at[chosen].set(w, unique_indices=True)
            return (flat - rate * update, s, rows, jax.tree.map(put, states, own_states)), value

        return jax.lax.scan(step, state, jnp.arange(steps))

    return lambda: run(state, x)[1]


def overhead(quick: bool) -> bench.Comparison:
    _, x = simulate_gre(0, 1000, 50, 2)
    steps = 500 if quick else 2000
    guide = AutoPAVI(gre, subsample_sizes={"groups": B})
    fit(guide, 0, 1, x, progress_bar=False)
    ours = lambda: fit(guide, 0, steps, x, block=steps, progress_bar=False).losses
    check = lambda ours, theirs: ours[-100:].mean() < theirs[-100:].mean() + 0.05 * len(x)
    return bench.paired(ours, by_hand(x, steps), check=check, clock=time.process_time)


def exactness(quick: bool) -> None:
    """Means and sds against the closed form, 20 groups, all of them at each step."""
    steps, draws = (500, 2_000) if quick else (4_000, 20_000)
    print(
        f"# 20 groups, {steps} steps: gap in nat a group, means in sds of the posterior, sds in parts of it; the worst"
    )
    for encoding in ("free", "data"):
        guide = AutoPAVI(gre, encoding=encoding)
        for kind in ("balanced", "uneven"):
            worst = np.zeros(5)
            for seed in range(3):
                _, x = simulate_gre(seed, 20, 50, 2)
                counts = np.random.default_rng(seed).integers(5, 51, (20, 1)) if kind == "uneven" else 50
                mask = jnp.asarray(np.broadcast_to(np.arange(50) < counts, (20, 50)))
                params = fit(guide, seed, steps, x, mask, progress_bar=False).params
                bound = float(elbo(seed, params, guide, x, mask, num_particles=500, full=True))
                exact = gre_posterior(x, mask)
                found = guide.sample_posterior(seed, params, x, mask, sample_shape=(draws,))
                errors = [(float(gre_log_evidence(x, mask)) - bound) / 20]
                for z, mean, sd in (
                    (found["theta"][:, :, 0], exact.theta_mean, exact.theta_sd),
                    (found["mu"].reshape(draws, -1), exact.mu_mean, exact.mu_sd),
                ):
                    errors += [float(abs((z.mean(0) - mean) / sd).max()), float(abs(z.std(0) / sd - 1).max())]
                worst = np.maximum(worst, errors)
            gap, *rest = worst
            theta, mu = (" ".join(f"{error:.3f}" for error in pair) for pair in (rest[:2], rest[2:]))
            print(f"{encoding}, {kind}: gap {gap:.4f}; theta {theta}; mu {mu}", flush=True)


def memory(quick: bool) -> None:
    n = 10_000 if quick else 1_000_000
    x = jnp.zeros((n, 2, 1))
    guide = AutoPAVI(gre, encoding="data", subsample_sizes={"groups": B})
    params = guide.setup((x,), {}).init_all(jax.random.key(0), (x,), {})
    draw = jax.jit(lambda key, params, x: guide.sample_posterior(key, params, x, chunk_size=10_000))
    used = draw.lower(jax.random.key(0), params, x).compile().memory_analysis()
    temporary, result = used.temp_size_in_bytes / 2**20, used.output_size_in_bytes / 2**20
    print(
        f"# draws of {n} groups in chunks of 10,000: {temporary:.0f} MB besides {result:.0f} MB of result", flush=True
    )


def giants() -> None:
    """Bytes of a fit of hundreds of millions of latents, from shapes alone."""
    for name, shape, e in (("E3", (200_000_000, 1, 2), 8), ("E7", (1000, 59_412, 7), 8)):
        if name == "E3":
            model, args = gre, (jax.ShapeDtypeStruct((shape[0], 1, 2), jnp.float32),)
            sizes, latents = {"groups": 1000}, 2 * shape[0]
        else:
            # The data, 352 G numbers at 1,483 a profile, stay on the host: a function hands over the drawn block.
            block = lambda s, t, v: jnp.zeros((len(s), len(t), len(v), 128))
            model = partial(ms_hbm, block, shape=(1000, 2, 59_412, 128), n_networks=7, labels="free")
            args, sizes, latents = (), {"subjects": 4, "vertices": 1000}, 1000 * 59_412 * 7
        guide = AutoPAVI(model, encoding_size=e, subsample_sizes=sizes)

        def start(*args: Any, guide: AutoPAVI = guide) -> Any:
            setup = guide.setup(args, {})
            made = Programs(setup, None, 1, True, None)
            return made.start(setup.init_all_params(jax.random.key(0), list(args)))

        carry = jax.eval_shape(start, *args)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(carry)) / 2**30
        data = sum(leaf.size * 4 for leaf in args) / 2**30
        print(f"# {name}: {latents / 1e6:.0f} M latents, carry {size:.1f} GiB, data {data:.1f} GiB", flush=True)


def benchmark(table: bench.Table, quick: bool) -> None:
    exactness(quick)
    memory(quick)
    cost(quick)
    table.add("a step of fit (PAVI-F, 1000 groups), against one by hand", overhead(quick))
    giants()
    quality(quick)


if __name__ == "__main__":
    raise SystemExit(bench.main(benchmark, title="PAVI", peers=["numpyro"]))
