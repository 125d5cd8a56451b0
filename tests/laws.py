"""Laws that several test files hold their subject to, and slow clear versions of the model."""

import itertools

import numpy as np

# every case has sizes that differ: signals, channels, atoms, support, code positions, stride
CASES = [
    {"n": 2, "C": 1, "K": 3, "s": (5,), "P": (11,), "stride": (1,)},
    {"n": 3, "C": 2, "K": 4, "s": (6,), "P": (9,), "stride": (2,)},
    {"n": 2, "C": 3, "K": 1, "s": (3,), "P": (7,), "stride": (5,)},
    {"n": 2, "C": 1, "K": 3, "s": (3, 4), "P": (8, 7), "stride": (1, 1)},
    {"n": 1, "C": 2, "K": 5, "s": (4, 3), "P": (5, 6), "stride": (2, 3)},
]


def case_name(case):
    """Return a short name of a case."""
    return f"{len(case['s'])}d-{case['C']}ch-stride{max(case['stride'])}"


def make_problem(case, rng, density=0.3):
    """Return signals, dictionary and codes of a case, with no relation between signals and codes."""
    D = rng.standard_normal((case["K"], case["C"], *case["s"]))
    S = tuple((p - 1) * t + s for p, t, s in zip(case["P"], case["stride"], case["s"], strict=True))
    y = rng.standard_normal((case["n"], case["C"], *S))
    shape = (case["n"], case["K"], *case["P"])
    return y, D, rng.standard_normal(shape) * (rng.random(shape) < density)


def dense_operator(D, P, stride):
    """Return the matrix of D, (C * prod(S), K * prod(P)), entry by entry from the definition."""
    K, C, *s = D.shape
    S = [(p - 1) * t + a for p, t, a in zip(P, stride, s, strict=True)]
    matrix = np.zeros((C, *S, K, *P), D.dtype)
    for k, c in itertools.product(range(K), range(C)):
        for p in itertools.product(*map(range, P)):
            for a in itertools.product(*map(range, s)):
                at = tuple(i * t + b for i, t, b in zip(p, stride, a, strict=True))
                matrix[(c, *at, k, *p)] = D[(k, c, *a)]
    return matrix.reshape(C * int(np.prod(S)), K * int(np.prod(P)))


def assert_adjoint(forward, backward, x, y, rtol=1e-12):
    """Check <forward(x), y> = <x, backward(y)>; only rounding of a few hundred terms is allowed."""
    left, right = np.vdot(forward(x), y), np.vdot(x, backward(y))
    np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol * np.linalg.norm(x) * np.linalg.norm(y))


def assert_gradient(function, x, gradient, rng, rtol=1e-7, h=1e-5):
    """Check a gradient against a central difference of fourth order along a random direction, in float64."""
    v = rng.standard_normal(x.shape)
    f = [function(x + m * h * v) for m in (-2, -1, 1, 2)]
    want = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)
    np.testing.assert_allclose(np.vdot(v, gradient), want, rtol=rtol, atol=rtol * max(abs(want), 1e-3))


def smooth_atoms(n_atoms, n_channels, length, rng):
    """Return unit-norm atoms that are broad against a sample, lie in the middle of their window and differ much."""
    slow = np.cumsum(rng.standard_normal((n_atoms, n_channels, length)), axis=2)
    D = (slow - slow.mean(axis=2, keepdims=True)) * np.hanning(length + 2)[1:-1]
    return D / np.sqrt((D**2).sum(axis=(1, 2), keepdims=True))
