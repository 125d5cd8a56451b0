"""The certificate against an independent dense oracle: explicit matrix, float64, descent on the Gram matrix."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import emdl


def dense_matrix(D, shape, stride):
    """The columns of D as an explicit matrix: one for each code (k, *p), one row for each sample of all channels."""
    K, C, *s = D.shape
    P = [(S - a) // t + 1 for S, a, t in zip(shape, s, stride, strict=True)]
    A = np.zeros((C, *shape, K, *P))
    for k, *p in itertools.product(range(K), *map(range, P)):
        at = tuple(slice(i * t, i * t + a) for i, t, a in zip(p, stride, s, strict=True))
        A[(slice(None), *at, k, *p)] = D[k]
    return A.reshape(C * int(np.prod(shape)), K * int(np.prod(P))), (K, *P)


def oracle(A, y, penalty, positive, rel=1e-11):
    """The minimum of half the squared error plus penalty, between a primal and a dual value closer than `rel`."""
    G, c = A.T @ A, A.T @ y
    z, half = np.zeros(A.shape[1]), y @ y / 2
    for _ in range(20000):
        for j in np.flatnonzero((z != 0) | (np.abs(c) > penalty)):
            if G[j, j] == 0:
                continue
            u = z[j] * G[j, j] + c[j]
            new = max(abs(u) - penalty[j], 0) * np.sign(u) / G[j, j]
            new = max(new, 0) if positive else new
            c -= G[:, j] * (new - z[j])
            z[j] = new
        c = A.T @ (y - A @ z)
        r = y - A @ z
        primal = r @ r / 2 + penalty @ np.abs(z)
        top = max(((c if positive else np.abs(c)) / penalty).max(), 1e-300)
        a = min(max(y @ r / max(r @ r, 1e-300), 0), 1 / top)
        dual = half - ((y - a * r) @ (y - a * r)) / 2
        if primal - dual <= rel * primal:
            break
    return dual


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    K, C = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    if draw(st.booleans()):
        s, stride = (draw(st.integers(1, 12)),), (draw(st.integers(1, 3)),)
        P = (draw(st.integers(1, 40)),)
    else:
        s, stride = (
            (draw(st.integers(1, 5)), draw(st.integers(1, 4))),
            (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        )
        P = (draw(st.integers(1, 7)), draw(st.integers(1, 8)))
    shape = tuple((p - 1) * t + a for p, t, a in zip(P, stride, s, strict=True))
    D = rng.standard_normal((K, C, *s))
    if draw(st.booleans()):  # atoms that resemble each other
        D = D[:1] + 0.1 * D
    D /= np.linalg.norm(D.reshape(K, -1), axis=1).reshape(-1, *[1] * (D.ndim - 1))
    y = rng.standard_normal((C, *shape))
    return y, D, stride, draw(st.floats(0.001, 1.2)), draw(st.booleans()), 10.0 ** draw(st.integers(-30, 30))


quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@quick
@given(problems(), st.sampled_from([(np.float64, 1e-3), (np.float64, 1e-8), (np.float32, 1e-3), (np.float32, 1e-5)]))
def test_tolerance_is_kept_by_the_true_gap(problem, precision):
    y, D, stride, fraction, positive, scale = problem
    dtype, tol = precision
    if dtype == np.float32:
        y, D = (x.astype(np.float32).astype(np.float64) for x in (y, D))
    A, _ = dense_matrix(D, y.shape[1:], stride)
    top = (A.T @ y.ravel()).max() if positive else np.abs(A.T @ y.ravel()).max()
    lmbd = fraction * max(top, 1e-3)
    scale = scale if dtype == np.float64 else np.float32(scale)
    z = emdl.encode(
        (y * scale).astype(dtype)[None], D.astype(dtype), lmbd * float(scale), tol=tol, positive=positive, stride=stride
    )
    assert z.dtype == dtype
    z = z[0].ravel().astype(np.float64) / float(scale)
    r = y.ravel() - A @ z
    primal = r @ r / 2 + lmbd * np.abs(z).sum()
    best = oracle(A, y.ravel(), np.full(z.size, lmbd), positive)
    assert primal - best <= (tol + 1e-10) * primal
    assert not positive or z.min() >= 0
    if fraction > 1 + 1e-6:
        assert not z.any()


@quick
@given(problems(), st.integers(0, 2**32 - 1))
def test_weights_and_mask_are_those_of_the_dense_problem(problem, seed):
    y, D, stride, fraction, positive, _ = problem
    rng = np.random.default_rng(seed)
    A, shape = dense_matrix(D, y.shape[1:], stride)
    mask = rng.random(y.shape) < 0.8
    lmbd = np.abs(A.T @ y.ravel()).max() * fraction * rng.uniform(0.5, 2, shape)
    B, t = A * mask.ravel()[:, None], (y * mask).ravel()
    z = emdl.encode(np.where(mask, y, 7.0)[None], D, lmbd, tol=1e-6, positive=positive, stride=stride, mask=mask[None])
    z = z.ravel()
    r = t - B @ z
    primal = r @ r / 2 + lmbd.ravel() @ np.abs(z)
    assert primal - oracle(B, t, lmbd.ravel(), positive) <= 1e-6 * primal + 1e-14


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_optimality_conditions_hold_at_the_solution(rng, dtype):
    """Where a code is not zero its correlation is the penalty, elsewhere at most that, roughly."""
    D = rng.standard_normal((5, 2, 9)).astype(dtype)
    y = rng.standard_normal((3, 2, 700)).astype(dtype)
    lmbd = 0.1 * emdl.lambda_max(y, D)
    z = emdl.encode(y, D, lmbd, tol=1e-5)
    c = emdl.analyze(y - emdl.synthesize(z, D), D)
    assert np.abs(c).max() <= lmbd * 1.001
    np.testing.assert_allclose(c[z != 0], lmbd * np.sign(z[z != 0]), atol=1e-3 * lmbd)
