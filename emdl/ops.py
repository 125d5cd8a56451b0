"""The model y = D z: synthesis, its adjoint, its norm, the objective, and the sums that an M-step needs.

Every operation has one array version, a loop over the taps of an atom with a matrix product for each, which runs on
NumPy and CuPy and serves as the oracle of the kernels. NumPy arrays take the kernels of `_kernels`, CuPy arrays those
of `_cuda`.
"""

import itertools
import math

import numpy as np

from emdl._cuda import planes as cuda
from emdl._kernels import planes as kernels
from emdl._kernels.correlate import pack_atoms
from emdl.backend import (
    array_module,
    as_dictionary,
    as_real,
    as_signals,
    as_stride,
    check_number,
    code_positions,
    parallel_map,
)
from emdl.codes import SparseCodes
from emdl.errors import InputError

_POSITIONS = (
    4096  # in one piece of an analysis: long against the cost of handing it to a thread, short against the cache
)


def synthesize(z, D, *, stride=1):
    """Return the signals that codes and dictionary make, y = sum_k d_k * z_k (full convolution).

    Parameters
    ----------
    z : array (n, K, *P) or (K, *P)
        Codes, data unit.
    D : array (K, C, *s)
        Dictionary.
    stride : int or tuple of int
        Distance of neighbouring code positions, samples.

    Returns
    -------
    array (n, C, *S)
        Signals, S = (P - 1) * stride + s, dtype of `z`.

    Raises
    ------
    InputError
        If the shapes do not fit each other, or a value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> z = np.zeros((1, 1, 4)); z[0, 0, 2] = 3.0
    >>> synthesize(z, np.array([[[0.6, 0.8]]])).round(1)
    array([[[0. , 0. , 1.8, 2.4, 0. ]]])
    """
    array_module(z, D)
    D = as_dictionary(D)
    z, D, stride = as_codes(z, D, stride)
    return synthesize_full(z, D, stride)


def analyze(r, D, *, stride=1):
    """Return the correlation of every atom with the signals at every code position, D^T r: the adjoint of `synthesize`.

    Parameters
    ----------
    r : array S, (n, *S) or (n, C, *S)
        Signals.
    D : array (K, C, *s)
        Dictionary.
    stride : int or tuple of int
        Distance of neighbouring code positions, samples.

    Returns
    -------
    array (n, K, *P)
        Correlations, P = (S - s) / stride + 1, dtype of `r`.

    Raises
    ------
    InputError
        If the shapes do not fit each other, or a value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> analyze(np.array([0.0, 1.8, 2.4, 0.0]), np.array([[[0.6, 0.8]]])).round(2)
    array([[[1.44, 3.  , 1.44]]])
    """
    r, D, stride = as_problem(r, D, stride, name="r")
    return analyze_full(r, D, stride)


def lipschitz(D, *, stride=1):
    """Return an upper bound of ||D^T D||, at most a few per cent above it.

    The codes of stride t are the codes of stride 1 on the t polyphase components of the signal, and their operator is a
    section of a convolution, so ||D^T D|| <= max over frequencies of ||D(f)||^2. That maximum is a trigonometric
    polynomial's, bounded from samples at N frequencies by the largest sample / cos(pi (s - 1) / N) along each axis
    [1]_.

    Parameters
    ----------
    D : array (K, C, *s)
        Dictionary.
    stride : int or tuple of int
        Distance of neighbouring code positions, samples.

    Returns
    -------
    float
        L with 1 / L a safe step of (2).

    Raises
    ------
    InputError
        If `D` has the wrong rank or a value is not finite.

    References
    ----------
    .. [1] H. Ehlich, K. Zeller, Schwankung von Polynomen zwischen Gitterpunkten, Math. Z. 86 (1964),
       doi:10.1007/BF01111276.

    Examples
    --------
    >>> import numpy as np
    >>> bool(1.0 <= lipschitz(np.array([[[1.0]]])) < 1.05)
    True
    """
    D = as_dictionary(D)
    xp = array_module(D)
    D = polyphase(D, as_stride(stride, D.ndim - 2)).astype(np.float64)
    axes = tuple(range(2, D.ndim))
    grid = [1 if s == 1 else 2 ** math.ceil(math.log2(16 * (s - 1))) for s in D.shape[2:]]
    margin = math.prod(1 / math.cos(math.pi * (s - 1) / N) for s, N in zip(D.shape[2:], grid, strict=True))
    f = xp.fft.rfftn(D, grid, axes=axes)
    f = xp.moveaxis(f.reshape(*D.shape[:2], -1), 2, 0)  # (frequencies, K, C)
    gram = f @ f.conj().swapaxes(1, 2) if D.shape[0] <= D.shape[1] else f.conj().swapaxes(1, 2) @ f
    top = gram.real.max() if gram.shape[1] == 1 else xp.linalg.eigvalsh(gram)[:, -1].max()
    return float(top) * margin * (1 + 1e-10)  # the rounding of the transform


def objective(y, z, D, lmbd, sigma=1.0, *, stride=1):
    r"""Return E(z), the negative log posterior of the codes up to a constant, summed over the signals.

    .. math:: E(z) = \|y - D z\|^2 / (2 \sigma^2) + \sum_k \lambda_k \|z_k\|_1   (1)

    Parameters
    ----------
    y : array S, (n, *S) or (n, C, *S)
        Signals.
    z : array (n, K, *P)
        Codes, data unit.
    D : array (K, C, *s)
        Dictionary.
    lmbd : float or array (K,)
        Laplace rates, 1 / data unit.
    sigma : float
        Noise standard deviation, data unit.
    stride : int or tuple of int
        Distance of neighbouring code positions, samples.

    Returns
    -------
    float

    Raises
    ------
    InputError
        If the shapes do not fit each other, a rate is negative, or `sigma` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> objective(np.array([0.0, 3.0]), np.array([[[0.0, 2.0]]]), np.array([[[1.0]]]), lmbd=0.5)
    1.5
    """
    y, D, stride = as_problem(y, D, stride)
    z, D, stride = as_codes(z, D, stride)
    lmbd, sigma = as_rates(lmbd, D), check_number(sigma, "sigma", 0, strict=True)
    made = synthesize_full(z, D, stride)
    if made.shape != y.shape:
        raise InputError(
            f"z makes signals of shape {made.shape} but y has {y.shape}; wanted codes {positions_of(y, D, stride)}"
        )
    xp = array_module(y)
    l1 = xp.abs(z).sum(axis=tuple(i for i in range(z.ndim) if i != 1), dtype=np.float64)
    return float(((y - made).astype(np.float64) ** 2).sum() / (2 * sigma**2) + (lmbd * l1).sum())


def as_problem(y, D, stride, name="y"):
    """Return signals, dictionary and stride in their full forms, after making sure that they fit each other.

    Parameters
    ----------
    y, D, stride
        As in `analyze`.
    name : str
        What the caller calls `y`.

    Returns
    -------
    y : array (n, C, *S)
    D : array (K, C, *s), dtype of `y`
    stride : tuple of int

    Raises
    ------
    InputError
        If they do not fit.
    """
    array_module(y, D)
    D = as_dictionary(D)
    y = as_signals(y, D.ndim - 2, name)
    if y.shape[1] != D.shape[1]:
        raise InputError(
            f"D has {D.shape[1]} channels but {name} has {y.shape[1]}; atoms must be (K, {y.shape[1]}, *s), "
            f"and signals of several channels (n, C, *S)"
        )
    stride = as_stride(stride, D.ndim - 2)
    code_positions(y.shape[2:], D.shape[2:], stride)
    return y, as_dictionary(D, y.dtype), stride


def as_codes(z, D, stride):
    """Return codes, dictionary (in the dtype of the codes) and stride in their full forms.

    Parameters
    ----------
    z : array (n, K, *P) or (K, *P)
        Codes.
    D : array (K, C, *s)
        Dictionary.
    stride : int or tuple of int
        Distance of neighbouring code positions, samples.

    Returns
    -------
    z : array (n, K, *P)
    D : array (K, C, *s), dtype of `z`
    stride : tuple of int

    Raises
    ------
    InputError
        If they do not fit.
    """
    array_module(z if hasattr(z, "dtype") else None, D)
    z = as_real(z, "z")
    K, n_axes = D.shape[0], D.ndim - 2
    if z.ndim == n_axes + 1:
        z = z[None]
    if z.ndim != n_axes + 2 or z.shape[1] != K:
        raise InputError(f"z has shape {z.shape}, wanted (n, {K}, *P) with {n_axes} axes P for D of shape {D.shape}")
    z = as_signals(z, n_axes, "z")
    return z, as_dictionary(D, z.dtype), as_stride(stride, n_axes)


def as_rates(lmbd, D, name="lmbd"):
    """Return the rates as an array (K,) of float64 on the device of `D`.

    Parameters
    ----------
    lmbd : float or array (K,)
        Laplace rates, 1 / data unit, >= 0.
    D : array (K, C, *s)
        Dictionary.
    name : str
        What the caller calls them, for the messages.

    Returns
    -------
    array (K,) of float64

    Raises
    ------
    InputError
        If a rate is negative or not finite, or their number is wrong.
    """
    xp = array_module(D, lmbd if hasattr(lmbd, "dtype") else None)
    try:
        rates = xp.asarray(lmbd)
        if rates.dtype.kind not in "fiub":
            raise TypeError(f"no real numbers, but {rates.dtype}")
        rates = rates.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is {lmbd!r}, wanted finite rates >= 0") from error
    if rates.ndim > 1 or (rates.ndim == 1 and rates.shape[0] not in (1, D.shape[0])):
        raise InputError(f"{name} has shape {rates.shape}, wanted one rate or {D.shape[0]}, one for each atom")
    if not bool(xp.isfinite(rates).all()) or bool((rates < 0).any()):
        raise InputError(f"{name} is {lmbd!r}, wanted finite rates >= 0")
    return xp.broadcast_to(rates, (D.shape[0],)).copy()


def positions_of(y, D, stride):
    """Return (n, K, *P), the shape of the codes of signals `y`, all in full form.

    Parameters
    ----------
    y, D : array
        In full form.
    stride : tuple of int
        Along each axis.

    Returns
    -------
    tuple of int
    """
    return (y.shape[0], D.shape[0], *code_positions(y.shape[2:], D.shape[2:], stride))


def planes(x):
    """Return an array (a, b, *S) with S of one or two axes as (a, b, H, W).

    Parameters
    ----------
    x : array (a, b, *S)
        Signals, atoms or codes.

    Returns
    -------
    array (a, b, H, W)
        A view; H = 1 where S has one axis.
    """
    return x if x.ndim == 4 else x[:, :, None]


def plane_stride(stride):
    """Return the stride along the rows and columns of planes.

    Parameters
    ----------
    stride : tuple of int
        One or two.

    Returns
    -------
    tuple of int
    """
    return (1, *stride)[-2:]


def synthesize_full(z, D, stride):
    """Return D z for codes, dictionary and stride in full form; codes may be `SparseCodes`.

    Parameters
    ----------
    z : array (n, K, *P) or SparseCodes
        Codes.
    D : array (K, C, *s)
        Dictionary of the same dtype.
    stride : tuple of int
        Along each axis.

    Returns
    -------
    array (n, C, *S)
    """
    shape = [(p - 1) * t + s for p, t, s in zip(z.shape[2:], stride, D.shape[2:], strict=True)]
    if not isinstance(z, SparseCodes):
        if array_module(z, D) is not np:
            return cuda.synthesize(z, D, stride)
        z = SparseCodes.from_dense(z)
    y = np.zeros((z.shape[0], D.shape[1], *shape), D.dtype)
    add_synthesis(y, z, D, stride, 1)
    return y


def residual_full(y, z, D, stride):
    """Return y - D z, for arguments in full form.

    Parameters
    ----------
    y : array (n, C, *S)
        Signals.
    z : array (n, K, *P) or SparseCodes
        Codes.
    D : array (K, C, *s)
        Dictionary.
    stride : tuple of int
        Along each axis.

    Returns
    -------
    array (n, C, *S)
    """
    if array_module(y, D) is not np:
        return cuda.synthesize(z, D, stride, base=y, sign=-1)
    return y - synthesize_full(z, D, stride)


def add_synthesis(y, z, D, stride, sign):
    """Add sign * D z to the signals `y`, in place, at the cost of the non-zeros.

    Parameters
    ----------
    y : ndarray (n, C, *S)
        Signals, changed.
    z : SparseCodes
        Codes.
    D : ndarray (K, C, *s)
        Dictionary.
    stride : tuple of int
        Along each axis.
    sign : int
        1 or -1.
    """
    rows, atoms, (sh, sw), width = planes(y), planes(D), plane_stride(stride), z.shape[-1]
    parallel_map(
        lambda i: kernels.synthesize(*z.signal(i), atoms, sh, sw, width, D.dtype.type(sign), rows[i]), range(len(y))
    )


def analyze_full(r, D, stride):
    """Return D^T r for signals, dictionary and stride in full form.

    Parameters
    ----------
    r : array (n, C, *S)
        Signals.
    D : array (K, C, *s)
        Dictionary of the same dtype.
    stride : tuple of int
        Along each axis.

    Returns
    -------
    array (n, K, *P)
    """
    if array_module(r, D) is not np:
        return cuda.analyze(r, D, stride)
    out = np.empty(positions_of(r, D, stride), D.dtype)
    signals, atoms, codes, (sh, sw) = planes(r), planes(D), planes(out), plane_stride(stride)
    bank, (K, PH, PW) = pack_atoms(atoms), codes.shape[1:]
    columns = min(PW, max(_POSITIONS // 8, _POSITIONS // PH))
    rows = min(PH, max(1, _POSITIONS // columns))
    pieces = itertools.product(range(len(r)), range(0, PH, rows), range(0, PW, columns))
    parallel_map(
        lambda p: kernels.analyze(
            signals[p[0]],
            bank,
            K,
            D.shape[-1],
            sh,
            sw,
            p[1],
            min(p[1] + rows, PH),
            p[2],
            min(p[2] + columns, PW),
            codes[p[0]],
        ),
        pieces,
    )
    return out


def synthesize_by_taps(z, D, stride):
    """Return D z as a sum over the taps of the atoms: NumPy or CuPy, any dtype, the oracle of the kernels.

    Parameters
    ----------
    z : array (n, K, *P)
        Codes.
    D : array (K, C, *s)
        Dictionary.
    stride : tuple of int
        Along each axis.

    Returns
    -------
    array (n, C, *S)
    """
    xp = array_module(z, D)
    n, K, *P = z.shape
    C, s = D.shape[1], D.shape[2:]
    y = xp.zeros((n, C, *((p - 1) * t + a for p, t, a in zip(P, stride, s, strict=True))), dtype=xp.result_type(z, D))
    flat = z.reshape(n, K, -1)
    for tap in itertools.product(*map(range, s)):
        y[(..., *_places(tap, P, stride))] += (D[(..., *tap)].T @ flat).reshape(n, C, *P)
    return y


def analyze_by_taps(r, D, stride):
    """Return D^T r as a sum over the taps of the atoms: NumPy or CuPy, any dtype, the oracle of the kernels.

    Parameters
    ----------
    r : array (n, C, *S)
        Signals.
    D : array (K, C, *s)
        Dictionary.
    stride : tuple of int
        Along each axis.

    Returns
    -------
    array (n, K, *P)
    """
    xp = array_module(r, D)
    n, C, K = r.shape[0], r.shape[1], D.shape[0]
    P = code_positions(r.shape[2:], D.shape[2:], stride)
    z = xp.zeros((n, K, math.prod(P)), dtype=xp.result_type(r, D))
    for tap in itertools.product(*map(range, D.shape[2:])):
        z += D[(..., *tap)] @ r[(..., *_places(tap, P, stride))].reshape(n, C, -1)
    return z.reshape(n, K, *P)


def correlate_codes(z, atom_shape, stride):
    r"""Return phi, the correlations of the codes with each other, summed over the signals.

    .. math:: \phi_{kl}[m] = \sum_p z_k[p]\, z_l[p + m / \mathrm{stride}]

    for lags m shorter than an atom, zero where m is no multiple of the stride, so that
    :math:`\|D z\|^2 = \sum_{kl} \sum_{a b} d_k[a]\, \phi_{kl}[a - b]\, d_l[b]`.

    Parameters
    ----------
    z : SparseCodes or array (n, K, *P)
        Codes.
    atom_shape, stride : tuple of int
        Samples along each axis.

    Returns
    -------
    array (K, K, *(2 s - 1)) of float64
        Lag zero in the middle.
    """
    K = z.shape[1]
    if isinstance(z, SparseCodes):
        (h, w), (sh, sw), (PH, PW) = (1, *atom_shape)[-2:], plane_stride(stride), (1, *z.shape[2:])[-2:]

        def one(i):
            part = np.zeros((K, K, 2 * h - 1, 2 * w - 1))
            kernels.correlate_codes(*z.signal(i), K, h, w, sh, sw, PH, PW, part)
            return part

        return _sum_over_signals(one, z.shape[0]).reshape(K, K, *(2 * s - 1 for s in atom_shape))
    xp = array_module(z)
    phi = xp.zeros((K, K, *(2 * s - 1 for s in atom_shape)))
    if xp is not np:
        most = tuple((s - 1) // t for s, t in zip(atom_shape, stride, strict=True))
        at = (slice(s - 1 - m * t, s + m * t, t) for s, m, t in zip(atom_shape, most, stride, strict=True))
        phi[(..., *at)] = cuda.correlate(z, z, tuple(2 * m + 1 for m in most), most, (1,) * len(most))
        return phi
    z = z.astype(np.float64, copy=False)
    spans = [range(-((s - 1) // t), (s - 1) // t + 1) for s, t in zip(atom_shape, stride, strict=True)]
    for lag in itertools.product(*spans):
        if any(abs(m) >= p for m, p in zip(lag, z.shape[2:], strict=True)):
            continue
        here = tuple(slice(max(0, -m), p - max(0, m)) for m, p in zip(lag, z.shape[2:], strict=True))
        there = tuple(slice(max(0, m), p - max(0, -m)) for m, p in zip(lag, z.shape[2:], strict=True))
        at = tuple(s - 1 + m * t for s, m, t in zip(atom_shape, lag, stride, strict=True))
        phi[(..., *at)] = xp.tensordot(z[(..., *here)], z[(..., *there)], axes=[[0, *range(2, z.ndim)]] * 2)
    return phi


def correlate_signals(z, y, atom_shape, stride):
    r"""Return psi, the correlations of the codes with the signals, summed over the signals.

    .. math:: \psi_{kc}[a] = \sum_p z_k[p]\, y_c[p\,\mathrm{stride} + a]

    Parameters
    ----------
    z : SparseCodes or array (n, K, *P)
        Codes.
    y : array (n, C, *S)
        Signals.
    atom_shape, stride : tuple of int
        Samples along each axis.

    Returns
    -------
    array (K, C, *s) of float64
    """
    K, C = z.shape[1], y.shape[1]
    if isinstance(z, SparseCodes):
        (h, w), (sh, sw), signals = (1, *atom_shape)[-2:], plane_stride(stride), planes(y)

        def one(i):
            part = np.zeros((K, C, h, w))
            kernels.correlate_signals(*z.signal(i), signals[i], K, sh, sw, z.shape[-1], part)
            return part

        return _sum_over_signals(one, z.shape[0]).reshape(K, C, *atom_shape)
    xp = array_module(z, y)
    if xp is not np:
        dtype = xp.result_type(z, y)
        z, y = z.astype(dtype, copy=False), y.astype(dtype, copy=False)
        return cuda.correlate(z, y, tuple(atom_shape), (0,) * len(atom_shape), stride)
    P = z.shape[2:]
    psi = xp.zeros((K, C, *atom_shape))
    z, y = z.astype(np.float64, copy=False), y.astype(np.float64, copy=False)
    for tap in itertools.product(*map(range, atom_shape)):
        psi[(..., *tap)] = xp.tensordot(z, y[(..., *_places(tap, P, stride))], axes=[[0, *range(2, z.ndim)]] * 2)
    return psi


def polyphase(D, stride):
    """Return the atoms as those of a dictionary of stride 1 on the polyphase components of the signals.

    Parameters
    ----------
    D : array (K, C, *s)
        Dictionary.
    stride : tuple of int
        Along each axis.

    Returns
    -------
    array (K, C * prod(stride), *ceil(s / stride))
        Component q of channel c holds the taps q, q + stride, q + 2 stride, ...
    """
    xp = array_module(D)
    K, C, *s = D.shape
    padded = xp.pad(D, [(0, 0), (0, 0), *((0, -a % t) for a, t in zip(s, stride, strict=True))])
    if len(s) == 1:
        return padded.reshape(K, C, -1, stride[0]).transpose(0, 1, 3, 2).reshape(K, C * stride[0], -1)
    a, b = stride
    h, w = (m // t for m, t in zip(padded.shape[2:], stride, strict=True))
    return padded.reshape(K, C, h, a, w, b).transpose(0, 1, 3, 5, 2, 4).reshape(K, C * a * b, h, w)


def _places(tap, P, stride):
    return tuple(slice(a, a + (p - 1) * t + 1, t) for a, p, t in zip(tap, P, stride, strict=True))


def _sum_over_signals(one, n):
    """Add up one(i) in the fixed order of 16 groups of signals, so that the bits do not depend on the threads."""
    groups = np.array_split(np.arange(n), min(n, 16))

    def group(members):
        total = one(members[0])
        for i in members[1:]:
            total += one(i)
        return total

    return sum(parallel_map(group, groups))
