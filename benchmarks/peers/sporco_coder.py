"""SPORCO's ADMM and FISTA. Its option NoBndryCross holds codes that would wrap around at zero: the same problem."""

import numpy as np


def solve(problem, watch, options):
    """Run ``method`` ADMM or FISTA.

    Options, in brackets what SPORCO itself takes by default: rho (50 lmbda + 1), auto (1: rho follows the residuals),
    relax (1.8), cache (0: HighMemSolve), numexpr (1: use it), backtrack (0; 1: standard, 2: robust), and L, the inverse
    step, which is the largest eigenvalue of the dictionary's spectrum where it is not given (SPORCO: 500).
    """
    import sporco.fft
    import sporco.linalg
    import sporco.prox._lp

    from emdl.backend import n_threads

    options = dict(options)
    sporco.fft.pyfftw_threads = n_threads()
    if options.pop("numexpr", 1):
        import numexpr

        numexpr.set_num_threads(n_threads())
    else:
        sporco.linalg.have_numexpr = sporco.prox._lp.have_numexpr = False
    make = _admm if options.pop("method") == "ADMM" else _fista
    _run(problem, _Short, make, dict(options))  # plans transforms
    watch.start()
    _run(problem, watch, make, options)


class _Short:
    """A watch that ends after two iterations."""

    count = 0

    @classmethod
    def lap(cls, codes):
        codes()
        cls.count += 1
        return cls.count >= 2


def _run(problem, watch, make, options):
    dtype = options.pop("dtype")
    n, C, *S = problem.y.shape
    axes = len(S)
    # SPORCO wants (*S, C, n) and (*s, C, K)
    y = np.moveaxis(problem.y, (0, 1), (-1, -2)).astype(dtype)
    D = np.moveaxis(problem.D, (0, 1), (-1, -2)).astype(dtype)
    if C == 1:
        y, D = y[..., 0, :], D[..., 0, :]
    if n == 1:
        y = y[..., 0]
    inside = tuple(slice(0, P) for P in problem.positions)

    def codes(state):
        z = state.Y if hasattr(state, "rho") else state.X  # (*S, 1, n, K)
        return np.ascontiguousarray(np.moveaxis(z[inside].reshape(*problem.positions, n, -1), (-2, -1), (0, 1)))

    common = {"MaxMainIter": 10**6, "RelStopTol": 0.0, "Verbose": False, "FastSolve": True, "DataType": dtype}
    common |= {"NonNegCoef": problem.positive, "NoBndryCross": True}
    common["Callback"] = lambda state: watch.lap(lambda: codes(state))
    make(D, y, problem, common, options, axes, int(n > 1))


def _admm(D, y, problem, common, options, axes, many):
    from sporco.admm import cbpdn

    common["RelaxParam"] = options.pop("relax", 1.8)
    common["HighMemSolve"] = bool(options.pop("cache", 0))
    if "rho" in options:
        common["rho"] = options.pop("rho")
    common["AutoRho"] = {"Enabled": bool(options.pop("auto", 1))}
    _refuse(options)
    given = cbpdn.ConvBPDN.Options(common)
    cbpdn.ConvBPDN(D, y, problem.lmbd, given, dimK=many, dimN=axes).solve()


def _fista(D, y, problem, common, options, axes, many):
    from sporco.pgm import cbpdn
    from sporco.pgm.backtrack import BacktrackRobust, BacktrackStandard

    spectrum = np.fft.rfftn(problem.D, problem.y.shape[2:], axes=tuple(range(2, 2 + axes)))
    # at one frequency D is a matrix of channels by atoms
    matrices = np.moveaxis(spectrum.reshape(*spectrum.shape[:2], -1), 2, 0)
    exact = float(max(np.linalg.norm(m, 2) for m in matrices) ** 2) if len(matrices) < 2**15 else None
    backtrack = options.pop("backtrack", 0)
    common["L"] = options.pop("L", exact or float((np.abs(spectrum) ** 2).sum(axis=(0, 1)).max()))
    if backtrack == 1:
        common["Backtrack"] = BacktrackStandard(maxiter=15)
    elif backtrack == 2:
        common["Backtrack"] = BacktrackRobust()
    _refuse(options)
    cbpdn.ConvBPDN(D, y, problem.lmbd, cbpdn.ConvBPDN.Options(common), dimK=many, dimN=axes).solve()


def _refuse(options):
    if options:
        raise ValueError(f"SPORCO has no option {', '.join(options)}")
