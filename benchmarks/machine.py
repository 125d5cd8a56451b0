"""What the processor can do, and what emdl's dense sweep reaches of it; G operations (multiply and add) a second."""

import time

import numpy as np

ROUNDS = 15


def rates():
    """Return {name: rate} on the threads that this process may use.

    ``fma``: multiply-adds of registers; ``gemm``: a matrix product of 1536; ``triad``: GB/s of a + s b, 12 bytes each;
    ``sweep-...`` and ``gemm-...``: correlation of all atoms at all positions, and one matrix product of as many
    operations, its operand laid out beforehand.
    """
    found = {}
    for dtype in (np.float32, np.float64):
        name = np.dtype(dtype).name
        found[f"fma {name}"] = _fma(dtype)
        square = np.random.default_rng(0).standard_normal((1536, 1536)).astype(dtype)
        found[f"gemm {name}"] = 2 * 1536**3 / _least(lambda: square @ square) / 1e9  # noqa: B023 - called at once
        for label, C, K, S, s in (
            ("64 atoms 8x8, 256x256", 1, 64, (256, 256), (8, 8)),
            ("3 atoms of 45, 30,000", 1, 3, (1, 30_000), (1, 45)),
            ("10 atoms of 60, 4 channels, 30,000", 4, 10, (1, 30_000), (1, 60)),
        ):
            found[f"sweep {name}: {label}"], found[f"gemm {name}: {label}"] = _sweep(C, K, S, s, dtype)
    found["triad GB/s"] = _triad()
    return found


def _least(function):
    """Return the least processor seconds of several calls."""
    function()
    took = []
    for _ in range(ROUNDS):
        before = time.process_time()
        function()
        took.append(time.process_time() - before)
    return min(took)


def _sweep(C, K, S, s, dtype):
    from emdl._kernels.correlate import correlate, pack_atoms, tile_width

    rng = np.random.default_rng(0)
    D, r = rng.standard_normal((K, C, *s)).astype(dtype), rng.standard_normal((C, *S)).astype(dtype)
    bank, P = pack_atoms(D), (S[0] - s[0] + 1, S[1] - s[1] + 1)
    high, wide = min(P[0], 32), min(P[1], 64 if P[0] > 1 else 1024)  # near the tiles of the solver
    out = np.empty((len(bank), high * tile_width(K, s[1], 1, 1, wide) + 64), dtype)

    def sweep():
        for i in range(0, P[0], high):
            for j in range(0, P[1], wide):
                correlate(r, bank, K, s[1], 1, 1, i, min(i + high, P[0]), j, min(j + wide, P[1]), out)

    taps, positions = C * s[0] * s[1], P[0] * P[1]
    A = np.ascontiguousarray(D.reshape(K, taps))
    B = rng.standard_normal((taps, positions)).astype(dtype)
    made = np.empty((K, positions), dtype)
    work = 2 * K * taps * positions / 1e9
    return work / _least(sweep), work / _least(lambda: np.matmul(A, B, out=made))


def _fma(dtype):
    import numba

    @numba.njit(fastmath=True, error_model="numpy")
    def chains(x, s, t, times):
        for _ in range(times):
            for j in range(x.shape[1]):
                a, b, c, d = x[0, j], x[1, j], x[2, j], x[3, j]
                for _ in range(32):
                    a, b, c, d = a * s + t, b * s + t, c * s + t, d * s + t
                x[0, j], x[1, j], x[2, j], x[3, j] = a, b, c, d

    x = np.ones((4, 512), dtype)
    return 2 * x.size * 32 * 2000 / _least(lambda: chains(x, dtype(0.5), dtype(0.5), 2000)) / 1e9


def _triad():
    import numba

    @numba.njit(fastmath=True)
    def triad(a, b, c, s):
        for i in range(a.size):
            a[i] = b[i] + s * c[i]

    a, b, c = np.ones((3, 50_000_000), np.float32)
    return 12 * a.size / _least(lambda: triad(a, b, c, np.float32(3))) / 1e9
