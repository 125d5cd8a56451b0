r"""Which spikes a whitened signal holds: sparse coding with a prior on amplitudes that knows what a spike is.

A spike of unit k adds ``a d_k`` with an amplitude a ~ N(mean_k, spread_k^2), and a sample holds one with probability
rate_k. For the product u of the (whitened) signal with the template, the log odds of a spike against none are

    odds_k(u) = log N(u; mean_k, 1 + spread_k^2) - log N(u; 0, 1) + log(rate_k / (1 - rate_k)).                     (S1)

Spikes of less than 0.4 mean_k are not taken for unit k: next to a large spike, what its template does not explain may
well exceed the noise.

Spikes are taken by decreasing odds, at a part of a sample, and each is reconsidered given all others whenever one has
come near it (`emdl.spikes.kernels`). Those that leave over more than noise are then tried as two on top of each other
(`emdl.spikes.pairs`). A unit rests for two duration units after a spike.

The codes of (1), non-negative and with the rates lmbd_k = 0.8 of the least u that makes a spike, kept within 3 and 5
(`encode`), show the same spikes in a convex way: jointly, but with amplitudes that are shrunk, spread over neighbouring
samples, and shared among similar units. No spike is decided by them.
"""

from dataclasses import dataclass

import numpy as np
import scipy.fft

from emdl.backend import parallel_map
from emdl.codes import SparseCodes
from emdl.device import to_host
from emdl.encoder import solve
from emdl.ops import analyze_full
from emdl.spikes import blocks, drift, kernels, pairs

N_SHIFTS = 5  # parts of a sample
_LEAST, _MOST, _SHARE = 3.0, 5.0, 0.8  # bounds of the rates of (1), and their share of the threshold
_ROUNDS = 6
_PIECE = 1 << 15  # samples that are decided at once, at least
MARGIN = 6  # templates by which a piece reaches into its neighbours
_REST = 2  # duration units in which no unit is active twice
_TOL = 1e-2  # relative duality gap of `encode`, by default
_BATCH = 64  # stretches of one length solved by one thread
_SPAN = 1 << 16  # code positions correlated at once
_MOMENTS, _HELD = 100, 4  # times at which units that drift are made ready, and how many are held
_FADED = 0.2  # of its mean amplitude, that no unit fades below


@dataclass(frozen=True)
class Units:
    """What is known of the units, in whitened units.

    Attributes
    ----------
    D : ndarray (K, C, s) of float32
        Unit-norm templates.
    mean, spread : ndarray (K,)
        Mean and standard deviation of the amplitudes.
    rate : ndarray (K,)
        Probability that a sample holds a spike.
    waves : ndarray (K, TERMS, C, s) of float32 or None
        How waveforms drift, see `emdl.spikes.drift`; `D` and `mean` are what they are on average.
    """

    D: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    rate: np.ndarray
    waves: np.ndarray | None = None

    def __len__(self):
        return len(self.D)

    @property
    def logit(self):
        """Log odds that a sample holds a spike of each unit, (K,)."""
        return np.log(self.rate) - np.log1p(-self.rate)

    @property
    def threshold(self):
        """Smallest product at which a spike is taken, (K,): the root of (S1), or what 0.4 mean asks for."""
        v = self.spread**2
        # v u^2 + 2 mean u - mean^2 - (1 + v) (log(1 + v) - 2 logit) = 0
        c = self.mean**2 + (1 + v) * (np.log1p(v) - 2 * self.logit)
        root = np.sqrt(self.mean**2 + v * c)
        return np.maximum(c / (self.mean + root), self.mean * (kernels.LEAST * (1 + v) - 1) / v)

    @property
    def lmbd(self):
        """Rates of (1) for `encode`, (K,)."""
        return np.clip(_SHARE * self.threshold, _LEAST, _MOST)

    def take(self, chosen):
        """Return some of the units, by index or mask."""
        waves = None if self.waves is None else self.waves[chosen]
        return Units(self.D[chosen], self.mean[chosen], self.spread[chosen], self.rate[chosen], waves)

    def at(self, u):
        """Return the units as they are at a time u, from 0 to 1."""
        if self.waves is None:
            return self
        waveform = self.mean[:, None, None] * self.D + np.tensordot(drift.terms(u), self.waves, (0, 1))
        size = np.maximum(np.sqrt((waveform**2).sum(axis=(1, 2))), 1e-9)
        mean = np.maximum(size, _FADED * self.mean)
        return Units(
            (waveform / size[:, None, None]).astype(np.float32), mean, self.spread * mean / self.mean, self.rate
        )


@dataclass(frozen=True)
class Events:
    """Spikes in a whitened signal, by increasing time.

    Attributes
    ----------
    time, unit, shift : ndarray (n,) of int64
        First sample of the template, unit, and part of a sample (index of the bank).
    amplitude, odds : ndarray (n,) of float32
        In whitened units; log odds of (S1).
    """

    time: np.ndarray
    unit: np.ndarray
    shift: np.ndarray
    amplitude: np.ndarray
    odds: np.ndarray

    def __len__(self):
        return len(self.time)

    def take(self, chosen):
        """Return some of the spikes, by index or mask."""
        return Events(*(getattr(self, name)[chosen] for name in ("time", "unit", "shift", "amplitude", "odds")))


def shifts(count=N_SHIFTS):
    """Return the parts of a sample by which the templates of a bank are late, (count,)."""
    return (np.arange(count) - count // 2) / count


def bank(D):
    """Return templates at parts of a sample, (K, N_SHIFTS, C, s) of unit norm."""
    s = D.shape[-1]
    f = np.fft.rfftfreq(2 * s)
    turned = np.fft.rfft(D, 2 * s, axis=-1)[:, None] * np.exp(-2j * np.pi * f * shifts()[:, None, None])
    moved = np.fft.irfft(turned, 2 * s, axis=-1)[..., :s]
    return (moved / np.sqrt((moved**2).sum(axis=(2, 3), keepdims=True))).astype(np.float32)


@dataclass(frozen=True)
class Bank:
    """Units made ready for the kernels.

    Attributes
    ----------
    templates : ndarray (K, N_SHIFTS, M, s) of float32
        At parts of a sample, on the channels near each unit, of unit norm.
    near : ndarray (K, M) of int64
        These channels; -1 beyond the last.
    spectra : ndarray (K, M, f) of complex64
        For `blocks.correlate`.
    known : ndarray (K, 4) of float32
        See `kernels.decide`, as are the rest.
    gram, friends, strange : ndarray
    density : float or None
        Variance of a sample of noise; if None, spikes on top of each other are not looked for.
    """

    templates: np.ndarray
    near: np.ndarray
    spectra: np.ndarray
    known: np.ndarray
    gram: np.ndarray
    friends: np.ndarray
    strange: np.ndarray
    density: float | None = None


def prepare(units, density=None):
    """Return units made ready for the kernels; a unit lies on the channels where its template is not zero."""
    D = units.D
    K, _, s = D.shape
    on = (D != 0).any(axis=2)
    moved = bank(D)
    near = np.full((K, max(1, int(on.sum(axis=1).max(initial=0)))), -1)
    templates = np.zeros((K, N_SHIFTS, near.shape[1], s), np.float32)
    there = np.zeros((K, near.shape[1], s), np.float32)
    for k in range(K):
        c = np.flatnonzero(on[k])
        near[k, : len(c)], templates[k, :, : len(c)], there[k, : len(c)] = c, moved[k][:, c], D[k, c]
    strange = (on.astype(np.float32) @ on.T.astype(np.float32)) == 0
    friends = np.full((K, max(1, int((~strange).sum(axis=1).max(initial=0)))), -1)
    gram = np.zeros((K, N_SHIFTS, friends.shape[1], 2 * s - 1), np.float32)
    size = scipy.fft.next_fast_len(2 * s - 1, real=True)
    first = scipy.fft.rfft(moved, size, axis=-1)
    second = scipy.fft.rfft(D.astype(np.float32), size, axis=-1).conj()
    for k in range(K):
        j = np.flatnonzero(~strange[k])
        product = np.einsum("fcw,jcw->fjw", first[k][:, on[k]], second[j][:, on[k]], optimize=True)
        product = scipy.fft.irfft(product, size, axis=-1)
        friends[k, : len(j)] = j
        gram[k, :, : len(j), : s - 1], gram[k, :, : len(j), s - 1 :] = product[..., 1 - s :], product[..., :s]
    known = np.column_stack([units.threshold, units.mean, units.spread**2, units.logit]).astype(np.float32)
    return Bank(templates, near, blocks.spectra(there[..., ::-1]), known, gram, friends, strange, density)


class Banks:
    """Units made ready for the kernels, at any time.

    Parameters
    ----------
    units : Units
        At least one.
    density : float, optional
        See `Bank`.
    """

    def __init__(self, units, density=None):
        self.units, self._density, self._made = units, density, {}

    def moment(self, u):
        """Return the number of the moment that a time u, from 0 to 1, belongs to; one for all where nothing drifts."""
        return 0 if self.units.waves is None else round(_MOMENTS * float(np.clip(u, 0, 1)))

    def at(self, u):
        """Return the units at a time u as a `Bank`."""
        moment = self.moment(u)
        if moment not in self._made:
            for old in list(self._made)[:-_HELD]:
                self._made.pop(old, None)
            self._made[moment] = prepare(self.units.at(moment / _MOMENTS), self._density)
        return self._made[moment]


def moments(time, units, n_samples, span=(0.0, 1.0)):
    """Yield the spikes that fall into one moment, and the units as they are then.

    Parameters
    ----------
    time : array (n,) of int
        Of the spikes, samples.
    units : Units
        All units.
    n_samples : int
        Of the signal.
    span : (float, float)
        Times u at its two ends.

    Yields
    ------
    chosen : slice or ndarray of int
    units : Units
    """
    if units.waves is None:
        yield slice(None), units
        return
    long = piece_length(units.D.shape[-1])
    moment = np.round(_MOMENTS * np.clip(_time_of(time // long, long, n_samples, span), 0, 1)).astype(int)
    for m in np.unique(moment):
        yield np.flatnonzero(moment == m), units.at(m / _MOMENTS)


def _time_of(piece, long, n_samples, span):
    """Return the time u at the middle of a piece of a signal."""
    return span[0] + (span[1] - span[0]) * np.minimum((piece + 0.5) * long / n_samples, 1)


def decide(x, units, unit_length, *, density=None, rest=True, xp=np, span=(0.0, 1.0)):
    """Return the spikes of a whitened signal, and what is left of it without them.

    Parameters
    ----------
    x : ndarray (C, N) of float32
        Whitened signal.
    units : Units
        At least one.
    unit_length : int
        Duration unit, samples.
    density : float, optional
        Variance of a sample of noise. If it is given, spikes on top of each other are looked for, see
        `emdl.spikes.pairs`.
    rest : bool
        Leave out the less probable of two spikes of a unit within two duration units.
    xp : module
        Where the signal is correlated with the templates: ``numpy`` or ``cupy``.
    span : (float, float)
        Times u, from 0 to 1, at the ends of the signal, for units that drift.

    Returns
    -------
    Events
    residual : ndarray (C, N)
        Without all spikes, those that are left out included.
    """
    banks, (s, N) = Banks(units, density), (units.D.shape[-1], x.shape[1])
    long = piece_length(s)
    starts = range(0, max(N - s + 1, 1), long)

    def decided(start):
        a, b = max(0, start - MARGIN * s), min(N, start + long + MARGIN * s)
        return piece(x[:, a:b], banks.at(_time_of(start // long, long, N, span)), unit_length, a, xp)

    events = _joined((parallel_map if xp is np else map)(decided, starts), starts, N, s)
    residual = x.copy()
    for chosen, then in moments(events.time, units, N, span):
        ready, some = banks.at(0) if then is units else prepare(then), events.take(chosen)
        kernels.subtract(residual, ready.templates, ready.near, some.unit, some.shift, some.time, some.amplitude)
    return (events.take(rested(events, _REST * unit_length)) if rest else events), residual


def piece(x, ready, unit_length, at=0, xp=np):
    """Return the spikes of a piece of a whitened signal.

    Parameters
    ----------
    x : ndarray (C, n) of float32
        The piece.
    ready : Bank
        From `prepare`.
    unit_length : int
        Duration unit, samples.
    at : int
        Where the piece begins; added to the times.
    xp : module
        As in `decide`.

    Returns
    -------
    Events
    """
    P = products(x, ready, xp)
    found = kernels.decide(
        P, ready.known, ready.gram, ready.friends, ready.strange,
        unit_length // 2, max(2, round(0.07 * unit_length)), _ROUNDS,
    )  # fmt: skip
    order = np.argsort(found[0], kind="stable")
    found = tuple(values[order] for values in found)
    if ready.density is not None:
        found = pairs.resolve(x, P, ready, found, unit_length)
    return Events(found[0] + at, *found[1:])


def products(x, ready, xp=np):
    """Return the products of all templates with a whitened signal (C, n) at all places, (K, n - s + 1) of float32."""
    s = ready.templates.shape[-1]
    if xp is np:
        return blocks.correlate(x, ready.spectra, ready.near, s)
    K, signal = len(ready.near), xp.asarray(x[None])
    D = np.zeros((K, len(x), s), np.float32)
    for k, channels in enumerate(ready.near):
        there = channels[channels >= 0]
        D[k, there] = ready.templates[k, N_SHIFTS // 2, : len(there)]
    return to_host(analyze_full(signal, xp.asarray(D), (1,))[0])


def piece_length(length):
    """Return the samples of a piece for templates of some length."""
    return max(_PIECE, 16 * length)


def _joined(pieces, starts, n_samples, length):
    """Return the spikes of pieces that overlap, each spike once."""
    found, first = [], 0
    for events, start in zip(pieces, starts, strict=True):
        last = border(events.time, start + piece_length(length), n_samples, length)
        found.append(events.take((events.time >= first) & (events.time < last)))
        first = last
    return Events(*(np.concatenate([getattr(part, name) for part in found]) for name in Events.__dataclass_fields__))


def border(times, end, n_samples, length):
    """Return the sample at which a piece hands over to the next: the middle of the longest pause near its end.

    Parameters
    ----------
    times : array (n,) of int
        Spikes of the piece, increasing.
    end : int
        Where the piece ends, without the margin.
    n_samples : int
        Of the signal; a piece that the next has no room after hands over there.
    length : int
        Of a template, samples.

    Returns
    -------
    int
    """
    return n_samples if end + length > n_samples else pause(times, end, length)


def pause(times, border, s):
    """Return the middle of the longest pause of sorted event times within two templates of a border."""
    near = times[(times > border - 2 * s) & (times < border + 2 * s)]
    edges = np.concatenate([[border - 2 * s], near, [border + 2 * s]])
    longest = int(np.diff(edges).argmax())
    return int(edges[longest] + edges[longest + 1] + 1) // 2


def rested(events, rest):
    """Return which spikes to keep, (n,) of bool; of two that are too near the less probable goes."""
    kept = np.ones(len(events), bool)
    while True:
        order = np.flatnonzero(kept)
        order = order[np.lexsort((events.time[order], events.unit[order]))]
        a, b = order[:-1], order[1:]
        near = (events.unit[a] == events.unit[b]) & (events.time[b] - events.time[a] < rest)
        if not near.any():
            return kept
        kept[np.where(events.odds[a] < events.odds[b], a, b)[near]] = False


def encode(x, D, lmbd, *, tol=_TOL, xp=np):
    """Return the codes of a whitened signal: the minimiser of (1) with sigma = 1 and codes >= 0.

    Where no template reaches its rate for two templates' length, codes are zero and the problem falls apart; each part
    is solved on its own, with a third of a template to spare on both sides.

    Parameters
    ----------
    x : ndarray (C, N) of float32
        Whitened signal.
    D : ndarray (K, C, s) of float32
        Unit-norm templates.
    lmbd : ndarray (K,)
        Rates.
    tol : float
        Relative duality gap of each part.
    xp : module
        As in `decide`.

    Returns
    -------
    SparseCodes
        Of shape (1, K, N - s + 1).
    """
    s = D.shape[-1]
    n_positions = x.shape[1] - s + 1
    first, last = _islands(x, D, lmbd, xp)
    spare = -(-s // 3)
    first, last = np.maximum(first - spare, 0), np.minimum(last + spare, n_positions - 1)
    size = -(-(last - first + s) // spare) * spare  # multiples of it, so that few different lengths occur
    if xp is not np:  # fewer still: a device is full with few large batches
        size = s * 2 ** np.ceil(np.log2(size / s)).astype(np.int64)
    batches = [
        (length, chosen[a : a + _BATCH] if xp is np else chosen)
        for length in np.unique(size)
        for chosen in [np.flatnonzero(size == length)]
        for a in range(0, len(chosen) if xp is np else 1, _BATCH)
    ]
    rates = np.asarray(lmbd, np.float64)
    solved = (parallel_map if xp is np else map)(
        lambda batch: _solve_batch(x, D, rates, first[batch[1]], last[batch[1]], batch[0], tol, xp), batches
    )
    index, value = (np.concatenate(parts) for parts in zip(*_NOTHING, *solved, strict=True))
    order = np.argsort(index, kind="stable")
    return SparseCodes((1, len(D), n_positions), np.array([0, len(index)]), index[order], value[order])


_NOTHING = ((np.zeros(0, np.int64), np.zeros(0, np.float32)),)


def _solve_batch(x, D, lmbd, first, last, length, tol, xp):
    """Return index and value of the codes of stretches of one length, with code positions [first, last]."""
    s, K = D.shape[-1], len(D)
    y = np.zeros((len(first), len(x), length), np.float32)
    for row, (a, b) in enumerate(zip(first, last + s, strict=True)):
        y[row, :, : b - a] = x[:, a:b]
    codes = solve(xp.asarray(y), xp.asarray(D), xp.asarray(lmbd), (1,), tol=tol, positive=True).codes
    if xp is not np:
        codes = SparseCodes.from_dense(codes)
    row = np.repeat(np.arange(len(first)), np.diff(codes.start))
    inside = codes.index // K <= (last - first)[row]
    return (codes.index + first[row] * K)[inside], codes.value[inside]


def _islands(x, D, lmbd, xp):
    """Return first and last code position of each stretch where codes can be, more than two templates apart."""
    s = D.shape[-1]
    n_positions = x.shape[1] - s + 1
    active, D, least = [], xp.asarray(D), xp.asarray(np.asarray(lmbd, np.float32)[:, None])
    for a in range(0, n_positions, _SPAN):
        part = analyze_full(xp.ascontiguousarray(xp.asarray(x[None, :, a : a + _SPAN + s - 1])), D, (1,))[0]
        active.append(a + to_host(xp.flatnonzero((part > least).any(axis=0))))
    active = np.concatenate(active)
    if len(active) == 0:
        return active, active
    breaks = np.flatnonzero(np.diff(active) > 2 * s)
    return active[np.append(0, breaks + 1)], active[np.append(breaks, len(active) - 1)]
