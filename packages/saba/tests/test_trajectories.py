"""Every solver step by step against its transcription in NumPy."""

import jax
import numpy as np
import pytest

from gyri.saba import problems, run, solvers

# --- the algorithms, line by line, in NumPy ---


class Blocks:
    """One objective cut into blocks, which `draw` gives one after the other."""

    def __init__(self, data, batch_size):
        self.data = {name: np.asarray(a, float) for name, a in data.items()}
        self.n = len(self.data["hess_z"])
        self.size = batch_size
        self.n_blocks = -(-self.n // batch_size)
        self.next = 0

    def draw(self):
        k, self.next = self.next, (self.next + 1) % self.n_blocks
        return k

    def matrices(self, k=None):
        """A, B, C, a, b of a block (scaled) or of all samples: z'Az/2 + x'Bx/2 + x'Cz + a'z + b'x."""
        rows = slice(None) if k is None else slice(k * self.size, min((k + 1) * self.size, self.n))
        d = {name: a[rows] for name, a in self.data.items()}
        count = len(d["hess_z"])
        scale = 1 if k is None else self.n_blocks * count / self.n
        A, B = d["hess_z"].T @ d["hess_z"] / count, d["hess_x"].T @ d["hess_x"] / count
        C = d["cross_x"].T @ d["cross_z"] / count
        return tuple(scale * m for m in (A, B, C, d["lin_z"].mean(0), d["lin_x"].mean(0)))

    def gz(self, k, z, x):
        A, _, C, a, _ = self.matrices(k)
        return A @ z + C.T @ x + a

    def gx(self, k, z, x):
        _, B, C, _, b = self.matrices(k)
        return B @ x + C @ z + b

    def hvp(self, k, v):
        return self.matrices(k)[0] @ v

    def cross(self, k, v):
        return self.matrices(k)[2] @ v

    def value(self, z, x):
        A, B, C, a, b = self.matrices()
        return 0.5 * z @ A @ z + 0.5 * x @ B @ x + x @ C @ z + a @ z + b @ x


def directions(G, F, i, j, z, v, x):
    return [G.gz(i, z, x), G.hvp(i, v) + F.gz(j, z, x), G.cross(i, v) + F.gx(j, z, x)]


def soba(G, F, z, x, T, rho, gamma):
    v, path = 0 * z, []
    for t in range(T):
        d = directions(G, F, G.draw(), F.draw(), z, v, x)
        s = (t + 1) ** -0.5
        z, v, x = z - rho * s * d[0], v - rho * s * d[1], x - gamma * s * d[2]
        path.append((z, v, x))
    return path


def saba(G, F, z, x, T, rho, gamma, full=False):
    v, path = 0 * z, []
    inner = lambda i: np.concatenate([G.gz(i, z, x), G.hvp(i, v), G.cross(i, v)])
    outer = lambda j: np.concatenate([F.gz(j, z, x), F.gx(j, z, x)])
    p, d = len(z), len(x)
    T_in, T_out = np.zeros((G.n_blocks, 2 * p + d)), np.zeros((F.n_blocks, p + d))
    if full:
        T_in = np.stack([inner(i) for i in range(G.n_blocks)])
        T_out = np.stack([outer(j) for j in range(F.n_blocks)])
    for _ in range(T):
        i, j = G.draw(), F.draw()
        row_in, row_out = inner(i), outer(j)
        e_in, e_out = row_in - T_in[i] + T_in.mean(0), row_out - T_out[j] + T_out.mean(0)
        T_in[i], T_out[j] = row_in, row_out
        z, v, x = (
            z - rho * e_in[:p],
            v - rho * (e_in[p : 2 * p] + e_out[:p]),
            x - gamma * (e_in[2 * p :] + e_out[p:]),
        )
        path.append((z, v, x))
    return path


def fsla(G, F, z, x, T, rho, gamma):
    v, path, x_old, D = 0 * z, [], x, None
    for t in range(T):
        s = (t + 1) ** -0.5
        z_new = z - rho * s * G.gz(G.draw(), z, x)
        i, j = G.draw(), F.draw()
        v_new = v - rho * s * (G.hvp(i, v) + F.gz(j, z_new, x))
        j, i = F.draw(), G.draw()
        g = F.gx(j, z_new, x) + G.cross(i, v_new)
        g_old = F.gx(j, z, x_old) + G.cross(i, v)
        D = g if t == 0 else g + (1 - rho * s) * (D - g_old)
        x_old, x, z, v = x, x - gamma * s * D, z_new, v_new
        path.append((z, v, x))
    return path


def amigo(G, F, z, x, T, rho, gamma, K=3):
    v, path = 0 * z, []
    for _ in range(T):
        for _ in range(K):
            z = z - rho * G.gz(G.draw(), z, x)
        j = F.draw()
        r, s = F.gz(j, z, x), F.gx(j, z, x)
        for _ in range(K):
            v = v - rho * (G.hvp(G.draw(), v) + r)
        x = x - gamma * (s + G.cross(G.draw(), v))
        path.append((z, v, x))
    return path


def neumann(G, r, rho, Q):
    u, acc = [-a for a in r], [-a for a in r]
    for _ in range(Q):
        i = G.draw()
        u = [a - rho * G.hvp(i, a) for a in u]
        acc = [a + b for a, b in zip(acc, u, strict=True)]
    return [rho * a for a in acc]


def stocbio(G, F, z, x, T, rho, gamma, K=3, Q=4):
    path = []
    for _ in range(T):
        for _ in range(K):
            z = z - rho * G.gz(G.draw(), z, x)
        j = F.draw()
        r, s = F.gz(j, z, x), F.gx(j, z, x)
        (v,) = neumann(G, [r], rho, Q)
        x = x - gamma * (s + G.cross(G.draw(), v))
        path.append((z, v, x))
    return path


def one_term(G, r, rho, Q, P):
    u = [-a for a in r]
    for _ in range(P):
        i = G.draw()
        u = [a - rho * G.hvp(i, a) for a in u]
    return [Q * rho * a for a in u]


def bsa(G, F, z, x, T, rho, gamma, lengths, K=3, Q=4):
    path = []
    for t in range(T):
        s_t = (t + 1) ** -0.5
        j = F.draw()
        r, s = F.gz(j, z, x), F.gx(j, z, x)
        (v,) = one_term(G, [r], rho, Q, lengths[t])
        x = x - gamma * s_t * (s + G.cross(G.draw(), v))
        for _ in range(K):
            z = z - rho * s_t * G.gz(G.draw(), z, x)
        path.append((z, v, x))
    return path


def ttsa(G, F, z, x, T, rho, gamma, lengths, Q=4):
    path = []
    for t in range(T):
        i = G.draw()
        z = z - rho * (t + 1) ** -0.4 * G.gz(i, z, x)
        j = F.draw()
        r, s = F.gz(j, z, x), F.gx(j, z, x)
        (v,) = one_term(G, [r], rho, Q, lengths[t])
        x = x - gamma * (t + 1) ** -0.6 * (s + G.cross(i, v))
        path.append((z, v, x))
    return path


def momentum(G, F, z, x, T, rho, gamma, solve, eta=0.5):
    path, z_old, x_old, d_z, d_x = [], z, x, None, None
    for t in range(T):
        step, kept = (t + 1) ** (-1 / 3), 1 - eta * (t + 1) ** (-2 / 3)
        i = G.draw()
        g, g_old = G.gz(i, z, x), G.gz(i, z_old, x_old)
        d_z = g if t == 0 else g + kept * (d_z - g_old)
        j = F.draw()
        v, v_old = solve(t, [F.gz(j, z, x), F.gz(j, z_old, x_old)])
        g, g_old = F.gx(j, z, x) + G.cross(i, v), F.gx(j, z_old, x_old) + G.cross(i, v_old)
        d_x = g if t == 0 else g + kept * (d_x - g_old)
        z_old, x_old = z, x
        z, x = z - rho * step * d_z, x - gamma * step * d_x
        path.append((z, v, x))
    return path


def mrbo(G, F, z, x, T, rho, gamma, Q=4):
    return momentum(G, F, z, x, T, rho, gamma, lambda t, r: neumann(G, r, rho, Q))


def sustain(G, F, z, x, T, rho, gamma, lengths, Q=4):
    return momentum(G, F, z, x, T, rho, gamma, lambda t, r: one_term(G, r, rho, Q, lengths[t]))


def srba(G, F, z, x, T, rho, gamma, snapshot=False):
    v, path = 0 * z, []
    q = max(1, int(0.5 * (G.n + F.n) / G.size))
    for t in range(T):
        now = (z, v, x)
        if t % q == 0:
            d = directions(G, F, None, None, *now)
            known, before = d, now
        else:
            i, j = G.draw(), F.draw()
            change = zip(directions(G, F, i, j, *now), directions(G, F, i, j, *before), strict=True)
            d = [a + new - old for a, (new, old) in zip(known, change, strict=True)]
            if not snapshot:
                known, before = d, now
        z, v, x = z - rho * d[0], v - rho * d[1], x - gamma * d[2]
        path.append((z, v, x))
    return path


def bio_svrg(*args):
    return srba(*args, snapshot=True)


def vrbo(G, F, z, x, T, rho, gamma, K=3, Q=4):
    path = []
    q = max(1, int(0.5 * (G.n + F.n) / G.size))
    for t in range(T):
        x_old = x
        if t % q == 0:
            z_old = z
            d_z, u = G.gz(None, z, x), -F.gz(None, z, x)
            acc = u
            for _ in range(Q):
                u = u - rho * G.hvp(None, u)
                acc = acc + u
            d_x = F.gx(None, z, x) + G.cross(None, rho * acc)
        x = x - gamma * d_x
        for _ in range(K):
            i = G.draw()
            d_z = d_z + G.gz(i, z, x) - G.gz(i, z_old, x_old)
            j = F.draw()
            v, v_old = neumann(G, [F.gz(j, z, x), F.gz(j, z_old, x_old)], rho, Q)
            d_x = d_x + F.gx(j, z, x) + G.cross(i, v) - F.gx(j, z_old, x_old) - G.cross(i, v_old)
            z_old, x_old = z, x
            z = z - rho * d_z
        path.append((z, v, x))
    return path


def f2sa(G, F, z, x, T, rho, gamma, K=3, penalty=1.0, growth=0.1):
    y, path, v = z, [], 0 * z
    for t in range(T):
        for _ in range(K):
            i1, i2, j = G.draw(), G.draw(), F.draw()
            z = z - rho * (t + 1) ** (-5 / 7) * (penalty * G.gz(i1, z, x) + F.gz(j, z, x))
            y = y - rho * (t + 1) ** (-4 / 7) * G.gz(i2, y, x)
        j, i3, i4 = F.draw(), G.draw(), G.draw()
        x = x - gamma * (t + 1) ** (-4 / 7) * (F.gx(j, z, x) + penalty * (G.gx(i3, z, x) - G.gx(i4, y, x)))
        penalty += growth * (t + 1) ** (-1 / 7)
        path.append((z, v, x))
    return path


def bome(G, F, z, x, T, rho, gamma, K=3, eta=0.5):
    path, v = [], 0 * z
    for _ in range(T):
        y = z
        for _ in range(K):
            y = y - rho * G.gz(None, y, x)
        q = np.concatenate([G.gz(None, z, x), G.gx(None, z, x) - G.gx(None, y, x)])
        g = np.concatenate([F.gz(None, z, x), F.gx(None, z, x)])
        weight = max(eta * q @ q - g @ q, 0) / (q @ q)
        move = g + weight * q
        z, x = z - rho * move[: len(z)], x - gamma * move[len(z) :]
        path.append((z, v, x))
    return path


def aid(G, F, z, x, T, rho, gamma, K=3):
    """With an exact linear system."""
    path = []
    for _ in range(T):
        for _ in range(K):
            z = z - rho * G.gz(None, z, x)
        v = -np.linalg.solve(G.matrices()[0], F.gz(None, z, x))
        x = x - gamma * (F.gx(None, z, x) + G.cross(None, v))
        path.append((z, v, x))
    return path


def itd(G, F, z, x, T, rho, gamma, K=3):
    path, v = [], 0 * z
    A, _, C, *_ = G.matrices()
    M = np.eye(len(z)) - rho * A
    for _ in range(T):
        J = np.zeros((len(z), len(x)))
        for _ in range(K):
            z, J = z - rho * G.gz(None, z, x), M @ J - rho * C.T
        x = x - gamma * (F.gx(None, z, x) + J.T @ F.gz(None, z, x))
        path.append((z, v, x))
    return path


TRANSCRIPTIONS = {
    "soba": soba,
    "saba": saba,
    "fsla": fsla,
    "amigo": amigo,
    "stocbio": stocbio,
    "bsa": bsa,
    "ttsa": ttsa,
    "mrbo": mrbo,
    "sustain": sustain,
    "srba": srba,
    "bio_svrg": bio_svrg,
    "vrbo": vrbo,
    "f2sa": f2sa,
    "bome": bome,
    "aid": aid,
    "itd": itd,
}

# --- the tests ---

RHO, GAMMA, N_STEPS = 0.2, 0.1, 100
LENGTHS = ("bsa", "ttsa", "sustain")  # they draw a truncation
FULL = ("bome", "aid", "itd")
OPTIONS = {
    "amigo": {"n_inner_steps": 3},
    "stocbio": {"n_inner_steps": 3, "n_linear_steps": 4},
    "bsa": {"n_inner_steps": 3, "n_linear_steps": 4},
    "ttsa": {"n_linear_steps": 4},
    "mrbo": {"n_linear_steps": 4},
    "sustain": {"n_linear_steps": 4},
    "vrbo": {"n_inner_steps": 3, "n_linear_steps": 4},
    "f2sa": {"n_inner_steps": 3},
    "bome": {"n_inner_steps": 3},
    "aid": {"n_inner_steps": 3, "n_linear_steps": 40},
    "itd": {"n_inner_steps": 3},
}
# Oracle calls of an iteration, inner and outer: gradients and products as the algorithms name them.
CALLS = {
    "soba": (3, 2),
    "saba": (3, 2),
    "fsla": (4, 3),
    "amigo": (7, 2),
    "stocbio": (8, 2),
    "mrbo": (12, 4),
    "f2sa": (8, 4),
    "bome": (6, 2),
    "itd": (9, 2),
}


def lengths(key, n_steps, n_terms=4):
    """Truncations that a solver draws from the key of its state."""
    key, drawn = jax.random.split(key, 3)[0], []
    for _ in range(n_steps):
        key, now = jax.random.split(key)
        drawn.append(int(jax.random.randint(now, (), 0, n_terms)))
    return drawn


@pytest.mark.parametrize("n", [96, 90], ids=["even", "uneven"])
@pytest.mark.parametrize("name", [name for name in solvers.NAMES if name != "pzobo"] + ["saba_full"])
def test_trajectories(name, n):
    with jax.enable_x64(True):
        problem = problems.quadratic(jax.random.key(1), n=n, m=70, p=5, d=3)
        data = (problem.inner_data, problem.outer_data)
        short, init_memory = name.removesuffix("_full"), {"init_memory": "full"} if name == "saba_full" else {}
        blocks = {} if short in FULL else {"batch_size": 16, "sampling": "cyclic"}
        solver = solvers.make(
            *(short, problem.inner_fun, problem.outer_fun),
            **(OPTIONS.get(short, {}) | blocks | init_memory),
            inner_opt=RHO,
            outer_opt=GAMMA,
        )
        key = jax.random.key(5)
        x0 = problem.x0 + 1.0
        state = solver.init(key, problem.z0, x0, *data)
        G, F = (Blocks(side, 16) for side in data)
        more = [lengths(key, N_STEPS)] if short in LENGTHS else []
        more = [True] if name == "saba_full" else more
        # BOME divides by the squared gradient of a gap that vanishes: rounding errors grow.
        n_steps = 20 if name == "bome" else N_STEPS
        args = (np.asarray(problem.z0), np.asarray(x0), n_steps, RHO, GAMMA, *more)
        path = TRANSCRIPTIONS[short](G, F, *args)
        for more_steps, expected in ((1, path[0]), (n_steps - 1, path[-1])):
            state = run(solver, state, *data, more_steps)
            for ours, theirs in zip((state.z, state.v, state.x), expected, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)
        if name in CALLS:
            assert state.calls.tolist() == [n_steps * count for count in CALLS[name]]


def test_calls_of_full_directions():
    problem = problems.quadratic(0, n=96, m=70, p=5, d=3)
    data = (problem.inner_data, problem.outer_data)
    for name, made in (("srba", (3 * 6 + 4 * 6, 2 * 5 + 4 * 4)), ("bio_svrg", (3 * 6 + 4 * 6, 2 * 5 + 4 * 4))):
        solver = solvers.make(name, problem.inner_fun, problem.outer_fun, batch_size=16)
        state = run(solver, solver.init(0, problem.z0, problem.x0, *data), *data, 5)
        assert state.calls.tolist() == list(made)
    solver = solvers.vrbo(problem.inner_fun, problem.outer_fun, batch_size=16, n_inner_steps=3, n_linear_steps=4)
    state = run(solver, solver.init(0, problem.z0, problem.x0, *data), *data, 5)
    assert state.calls.tolist() == [6 * 6 + 5 * 3 * 12, 2 * 5 + 5 * 3 * 4]
    solver = solvers.saba(problem.inner_fun, problem.outer_fun, batch_size=16, init_memory="full")
    assert solver.init(0, problem.z0, problem.x0, *data).calls.tolist() == [18, 10]


def test_calls_of_random_truncations():
    problem = problems.quadratic(0, n=96, m=70, p=5, d=3)
    data, key = (problem.inner_data, problem.outer_data), jax.random.key(5)
    n = sum(lengths(key, 50))
    for name, made in (("bsa", (50 * 4 + n, 100)), ("ttsa", (100 + n, 100)), ("sustain", (200 + 2 * n, 200))):
        solver = solvers.make(name, problem.inner_fun, problem.outer_fun, batch_size=16, **OPTIONS[name])
        state = run(solver, solver.init(key, problem.z0, problem.x0, *data), *data, 50)
        assert state.calls.tolist() == list(made)


def test_differences_over_all_samples_add_up_to_the_gradient(x64):
    problem = problems.quadratic(0, n=32, m=32, p=4, d=3)
    data = (problem.inner_data, problem.outer_data)
    solver = solvers.vrbo(
        problem.inner_fun,
        problem.outer_fun,
        inner_opt=0.2,
        n_inner_steps=2,
        batch_size="full",
        period_frac=100.0,  # only the first iteration starts anew
    )
    state = solver.init(0, problem.z0, problem.x0, *data)
    for _ in range(4):
        state = run(solver, state, *data, 1)
        along_z = state.extra[0]
        before = state.z + 0.2 * along_z  # where the last step of z began
        np.testing.assert_allclose(along_z, jax.grad(problem.inner_fun)(before, state.x, data[0]), rtol=1e-10)
