r"""How good each unit is: what its spikes look like, and what the model itself expects it to miss and to take wrongly.

Everything is measured on whitened pieces from all over the recording, where the noise of the product u of the signal
with a unit-norm template has variance 1 (see `emdl.spikes.decision`). Spikes are decided there once more *without* the
rest of a unit after each spike, so that violations of the refractory period can be seen at all.

**Expected misses.** The amplitudes of the spikes that were found are those above the threshold a_0 of a normal
distribution; its mean and standard deviation are fitted as such, and the part below a_0 is what the threshold costs. A
spike of unit j is also missed where another unit explains it better. Both come from drawing spikes of the model: with
an amplitude a ~ N(mu_j, s_j^2) and the cosines C of the templates at their best lags, the products are u ~ N(a C_j, C),
and the largest of the log odds (S1) says what would be taken.

**Expected false alarms.** Those of the noise, by the rate at which it crosses the threshold upwards (Rice), or the
crossings counted in the residual turned upside down, or those of neurons too far away to be units, whichever is more;
and the spikes of other units that are taken for this one. Far neurons are many and small, and events are the rarer the
larger they are; so are those that fall short of the unit: of log odds M against the next best explanation, between -8
and 0. Their number falls as exp(-b M), and goes on falling beyond 0, where they are taken for its spikes: by how it
falls from [-8, -5) to [-5, -2), these are as many as

.. math:: n_{[-5, -2)} / (q^{-5/3} - q^{-2/3}), \quad q = n_{[-5, -2)} / n_{[-8, -5)} = e^{-3 b}.               (S5)

The contamination solves

.. math:: v = N^2 (t_r - t_c) C (2 - C) / T                                                                   (S2)

for the share C of spikes that other neurons contribute [1]_, with v intervals between the censored t_c and the
refractory t_r among N spikes in the time T.

References
----------
.. [1] V. Llobet, A. Wyngaard, B. Barbour, Automatic post-processing and merging of multiple spike-sorting analyses with
   Lussac, bioRxiv (2022), doi:10.1101/2022.02.08.479192; D. N. Hill, S. B. Mehta, D. Kleinfeld, Quality metrics to
   accompany spike sorting of extracellular signals, J. Neurosci. 31 (2011), doi:10.1523/JNEUROSCI.0971-11.2011.
"""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import scipy.optimize
import scipy.signal
import scipy.special

from emdl.backend import parallel_map
from emdl.spikes import decision, kernels, tables, trust
from emdl.spikes.snippets import best_lag, delay
from emdl.spikes.whitening import whiten

COLUMNS = {
    "presence": "share of the minutes (of twentieths of a short recording) that hold a spike",
    "amplitude_cutoff": "share of the spikes that the histogram of amplitudes lacks at its lower end",
    "refractory_violations": "intervals of less than 2 ms that the rest of a unit after a spike left out, per spike",
    "contamination": "share of the spikes that other neurons contribute, from the violations (Llobet 2022)",
    "isolation": "distance of its spikes from those of the nearest unit, in standard deviations (d prime)",
    "nearest": "that unit",
    "expected_misses": "share of the spikes of the neuron that the model expects to miss",
    "expected_false_alarms": "share of the spikes of the unit that the model expects not to be the neuron's",
}
_PIECES, _PIECE_S = 24, 5.0  # of the recording, that are looked at
_DRAWN = 2000  # spikes of each unit, drawn from the model
_FEW = 10  # spikes below which nothing is said of their distribution
_CENSORED = 0.5  # duration units, in which two spikes cannot be told apart
_REFRACTORY = 2  # duration units
_TELLING = 10.0  # violations by spikes at random, below which their number tells nothing
_LONG_BIN_S, _BINS = 60.0, 20  # of the presence
_SHORT = (-8.0, -5.0, -2.0)  # log odds of events that fall short of a unit; above the last some were taken for spikes
_FALL, _COUNTS, _FLATTEST = 0.35, 4.0, 0.7  # q of (S5) where there are few, events that this counts for, most of q
_CHUNK = 1 << 16  # samples looked at by one thread


@dataclass(frozen=True)
class _Looked:
    """What was seen of the pieces: spikes decided without rest, what they leave over, and how long they are."""

    pieces: tuple  # of (events, residual)
    n_samples: int


def assess(model, data, spikes, *, seconds=None, rng=0):
    """Return what is known of each unit.

    Parameters
    ----------
    model : SpikeModel
        From `emdl.spikes.fit`.
    data : array (C, N)
        Recording; at most two minutes of it are looked at, in pieces from all over.
    spikes : Spikes
        From `emdl.spikes.detect`, of the whole recording.
    seconds : float, optional
        Time in which spikes could be found, s, if less than the whole recording.
    rng : Generator, int or None
        Source of the spikes drawn from the model.

    Returns
    -------
    list of dict
        One per unit: what `emdl.spikes.tables.summarize` says, and the keys of `COLUMNS`. NaN where there are too few
        spikes; `nearest` is -1 for a single unit.
    """
    seconds = data.shape[1] / model.fs if seconds is None else seconds
    rows = tables.summarize(spikes, model.waveforms, model.noise, seconds)
    if not rows:
        return rows
    looked, units, K = _look(model, data), model.units, model.n_units
    fitted = amplitudes(model, spikes)
    taken = _confusion(units, fitted, np.random.default_rng(rng))  # of the background too
    count = np.bincount(spikes.unit, minlength=K)[:K]
    true = model.rate * model.fs * seconds  # spikes there are, found or not; the background's are not in the table
    true[:K] = count / np.maximum(np.diagonal(taken)[:K], 0.05)
    alarms = _alarms(units, looked, model, K) * seconds
    strangers = (true @ taken)[:K] - (true * np.diagonal(taken))[:K]
    distance, nearest = _isolation(units, looked, K)
    for k, row in enumerate(rows):
        times, amplitude = spikes.time_s[spikes.unit == k], spikes.amplitude[spikes.unit == k]
        violations, contamination = _refractory(looked, k, model)
        enough = len(times) >= _FEW
        row |= {
            "presence": presence(times, data.shape[1] / model.fs),
            "amplitude_cutoff": amplitude_cutoff(amplitude) if len(times) >= 10 * _FEW else np.nan,
            "refractory_violations": violations,
            "contamination": contamination,
            "isolation": float(distance[k]),
            "nearest": int(nearest[k]),
            "expected_misses": float(1 - taken[k, k]) if enough else np.nan,
            "expected_false_alarms": float(min(1, (alarms[k] + strangers[k]) / count[k])) if enough else np.nan,
        }
    return rows


def presence(times, seconds):
    """Return the share of minutes, or of twentieths of a shorter recording, that hold a spike.

    Parts of a recording of less than 20 minutes are longer where there are few spikes, so that each may expect five.

    Parameters
    ----------
    times : array (n,)
        Spikes, s.
    seconds : float
        Length of the recording, s.

    Returns
    -------
    float
    """
    bins = max(min(_BINS, len(times) // 5), round(seconds / _LONG_BIN_S), 1)  # so many that none is empty by chance
    return float((np.histogram(times, bins, (0, seconds))[0] > 0).mean())


def amplitude_cutoff(amplitude):
    """Return the share of spikes that the histogram of amplitudes lacks at its lower end, if it is symmetric.

    Parameters
    ----------
    amplitude : array (n,)
        Of the spikes, any unit.

    Returns
    -------
    float
        What lies above the amplitude at which the smoothed histogram, behind its peak, falls to its height at the lower
        end: as much is missing there. As a share of all spikes, those that are missing included; at most 1/3, as half a
        histogram does not say where its middle is.

    References
    ----------
    .. [1] D. N. Hill, S. B. Mehta, D. Kleinfeld, Quality metrics to accompany spike sorting of extracellular signals,
       J. Neurosci. 31 (2011), doi:10.1523/JNEUROSCI.0971-11.2011.
    """
    bins = int(np.clip(len(amplitude) / 5, 10, 100))
    height = scipy.ndimage.gaussian_filter1d(np.histogram(amplitude, bins)[0].astype(float), bins / 50, mode="nearest")
    peak = int(height.argmax())
    mirror = peak + int(np.abs(height[peak:] - height[0]).argmin())
    missing = min(0.5, height[mirror:].sum() / height.sum())
    return float(missing / (1 + missing))


def contamination(violations, n_spikes, seconds, window):
    """Return the share of spikes from other neurons: C of (S2).

    Parameters
    ----------
    violations : int
        Intervals within the refractory period, the censored ones left out.
    n_spikes : int
        Spikes of the unit.
    seconds : float
        Time in which they were found, s.
    window : float
        Refractory less censored period, s.

    Returns
    -------
    float
        1 where there are more violations than two neurons alike can have.
    """
    left = 1 - violations * seconds / (n_spikes**2 * window)
    return float(1 - np.sqrt(left)) if left > 0 else 1.0


def _look(model, data):
    N, long = data.shape[1], round(_PIECE_S * model.fs)
    if _PIECES * long >= N:
        spans = [(0, N)]
    else:
        spans = [(a, a + long) for a in np.linspace(0, N - long, _PIECES).astype(int).tolist()]
    lasts = model.drifted_for(data)
    pieces = tuple(
        decision.decide(
            whiten(data, model.whitening, a, b),
            model.units,
            model.duration_unit,
            density=model.whitening.density,
            rest=False,
            span=(a / lasts, b / lasts),
        )
        for a, b in spans
    )
    return _Looked(pieces, sum(b - a for a, b in spans))


def amplitudes(model, spikes):
    """Return the normal distribution of the amplitudes of each template, as if no spike were too small to be found.

    Parameters
    ----------
    model : SpikeModel
        From `emdl.spikes.fit`.
    spikes : Spikes
        From `emdl.spikes.detect`.

    Returns
    -------
    ndarray (K + J, 2)
        Mean and standard deviation, in standard deviations of the noise of a matched filter; the model's own for the
        background, and where there are too few spikes.
    """
    units, K = model.units, model.n_units
    fitted = np.stack([units.mean, units.spread], axis=1).astype(float)
    height = np.abs(model.waveforms).max(axis=(1, 2)) / units.mean[:K]
    v = units.spread**2
    least = (units.threshold * v + units.mean) / (1 + v)
    for k in range(K):
        amplitude = spikes.amplitude[spikes.unit == k] / height[k]
        if len(amplitude) >= _FEW:
            mean, spread = _truncated_normal(amplitude, min(least[k], amplitude.min()))
            # What is found is drawn towards the mean: its variance is v^2 / (1 + v), v being that of the spikes.
            var = spread**2
            fitted[k] = mean, np.sqrt((var + np.sqrt(var**2 + 4 * var)) / 2)
    return fitted


def _truncated_normal(x, least):
    """Return mean and standard deviation of the normal distribution whose part above `least` fits x best."""
    m, s = float(np.median(x)), max(float(1.4826 * np.median(np.abs(x - np.median(x)))), 1e-6 * abs(float(x.mean())))

    def loss(p):
        mean, spread = m + s * p[0], s * np.exp(p[1])
        inside = scipy.special.log_ndtr((mean - least) / spread)
        t = np.minimum(np.abs((x - mean) / spread), 4)  # a few spikes far off must not widen it
        return 0.5 * (t**2).mean() + np.log(spread / s) + inside + 0.02 * (p[0] ** 2 + p[1] ** 2)

    p = scipy.optimize.minimize(loss, np.zeros(2), method="Nelder-Mead", options={"maxiter": 200}).x
    return m + s * p[0], s * float(np.exp(p[1]))


def cosines(D, reach):
    """Return the cosine of any two templates at their best lag, (K, K).

    Parameters
    ----------
    D : array (K, C, s)
        Unit-norm templates.
    reach : int
        Largest lag, samples.

    Returns
    -------
    ndarray (K, K)
    """
    found = np.eye(len(D))
    for j in range(len(D)):
        for k in range(j):
            found[j, k] = found[k, j] = best_lag(D[j], D[k], reach)[1]
    return found


def _confusion(units, fitted, rng):
    """Return for spikes of each template how many are taken for each, and for nothing: (K, K + 1), rows sum to 1."""
    K, v = len(units), units.spread**2
    C = cosines(units.D, units.D.shape[-1] // 3)
    values, vectors = np.linalg.eigh(C)
    root = vectors * np.sqrt(np.maximum(values, 0))  # best lags need not fit each other: C may lack rank
    taken = np.zeros((K, K + 1))
    noise = rng.standard_normal((_DRAWN, K)) @ root.T
    for j in range(K):
        a = np.maximum(fitted[j, 0] + fitted[j, 1] * rng.standard_normal(_DRAWN), 0)
        u = a[:, None] * C[j] + noise
        odds = 0.5 * u**2 - 0.5 * (u - units.mean) ** 2 / (1 + v) - 0.5 * np.log1p(v) + units.logit
        odds[u < units.threshold] = -np.inf
        best = np.where(np.isfinite(odds).any(axis=1), odds.argmax(axis=1), K)
        taken[j] = np.bincount(best, minlength=K + 1) / _DRAWN
    return taken


def _alarms(units, looked, model, K):
    """Return how often noise and far neurons are taken for a spike of each of the first K templates, 1/s, (K,)."""
    slope = np.square(np.diff(units.D[:K], axis=-1)).sum(axis=(1, 2))
    rice = model.fs * np.sqrt(slope) / (2 * np.pi) * np.exp(-0.5 * units.threshold[:K] ** 2)
    seconds = looked.n_samples / model.fs
    decoys = sum(trust.decoys(r, e, units, model.duration_unit)[:K] for e, r in looked.pieces) / seconds
    short = sum(_falling_short(r, e, units, model.duration_unit, K) for e, r in looked.pieces) / seconds
    return np.maximum(np.maximum(rice, decoys), beyond(short))


def beyond(short):
    """Return how many events that fall short of a unit go on to be taken for its spikes: (S5).

    Parameters
    ----------
    short : array (..., 2)
        Events with log odds in [-8, -5) and in [-5, -2).

    Returns
    -------
    ndarray (...)
    """
    far, near = short[..., 0], short[..., 1]
    q = np.minimum((near + _FALL * _COUNTS) / (far + _COUNTS), _FLATTEST)
    return near / (q ** (-5 / 3) - q ** (-2 / 3))


def _falling_short(residual, events, units, unit_length, K):
    """Return how many events nearly make a spike of each of the first K templates, (K, 2) of float.

    Only where none of these templates has a spike; what the others explain, the background, is looked at like noise.
    The count is scaled up to the whole time.
    """
    s, ready, mine = units.D.shape[-1], decision.prepare(units), events.unit < K
    n, v = residual.shape[1] - s + 1, (units.spread**2)[:, None]
    mean, threshold = units.mean[:, None], units.threshold[:, None]
    free = trust.free_of(events.take(mine), n, s)
    background = events.take(~mine)
    if n < 1 or free.mean() < trust.FREE:
        return np.zeros((K, 2))

    def counted(start):
        end = min(start + _CHUNK, n)
        P = decision.products(residual[:, start : end + s - 1], ready)
        for i in np.flatnonzero((background.time > start - s) & (background.time < end + s)):
            kernels.shift_products(
                P, ready.gram, ready.friends, background.unit[i], background.shift[i], background.time[i] - start,
                background.amplitude[i],
            )  # fmt: skip
        odds = 0.5 * P**2 - 0.5 * (P - mean) ** 2 / (1 + v) - 0.5 * np.log1p(v) + units.logit[:, None]
        best = scipy.ndimage.maximum_filter1d(np.where(threshold < P, odds, 0), 2 * (unit_length // 2) + 1, axis=1)
        found = np.zeros((K, 2))
        for k in range(K):
            peak, _ = scipy.signal.find_peaks(np.where(free[start:end], odds[k], -np.inf), _SHORT[0])
            others = np.delete(best[:, peak], k, axis=0).max(axis=0, initial=0)
            found[k] = np.histogram(odds[k, peak] - others, _SHORT)[0]
        return found

    return np.sum(parallel_map(counted, range(0, n, _CHUNK)), axis=0) / free.mean()


def _refractory(looked, k, model):
    """Return the violations of a unit per spike, and the contamination they speak of."""
    low, high = _CENSORED * model.duration_unit, _REFRACTORY * model.duration_unit
    n = violations = 0
    for events, _ in looked.pieces:
        interval = np.diff(events.time[events.unit == k])
        n += len(interval) + 1
        violations += int(np.count_nonzero((interval > low) & (interval < high)))
    if n == 0:
        return np.nan, np.nan
    seconds, window = looked.n_samples / model.fs, (high - low) / model.fs
    tells = n**2 * window / seconds >= _TELLING
    return violations / n, contamination(violations, n, seconds, window) if tells else np.nan


def _isolation(units, looked, K):
    """Return d prime of each of the first K templates and the nearest other one, and which that is, (K,) each."""
    mean, s = units.mean, units.D.shape[-1]
    distance, nearest = np.full(K, np.nan), np.full(K, -1)
    cosine = cosines(units.D[:K], s // 3)
    apart = mean[:K, None] ** 2 + mean[None, :K] ** 2 - 2 * mean[:K, None] * mean[None, :K] * cosine
    np.fill_diagonal(apart, np.inf)
    for k in range(K if K > 1 else 0):
        j = nearest[k] = int(apart[k].argmin())
        lag = best_lag(units.D[k], units.D[j], s // 3)[0]
        other = delay(units.D[j], lag)
        side = mean[k] * units.D[k] - mean[j] * other
        own = _projected(looked, units, k, side, 0)
        their = _projected(looked, units, j, side, lag)
        if min(len(own), len(their)) >= _FEW:
            spread = np.sqrt((_robust_variance(own) + _robust_variance(their)) / 2)
            distance[k] = abs(np.median(own) - np.median(their)) / max(spread, 1e-12)
    return distance, nearest


def _projected(looked, units, k, side, lag):
    """Return the products of the spikes of a template, everything else taken out, with a difference of templates."""
    s, found = units.D.shape[-1], [np.zeros(0)]
    for events, residual in looked.pieces:
        chosen = events.take((events.unit == k) & (events.time >= s) & (events.time < residual.shape[1] - 2 * s))
        rows = (chosen.time - lag)[:, None] + np.arange(s)
        own = np.tensordot(delay(units.D[k], lag), side, 2)
        found.append(np.einsum("cns,cs->n", residual[:, rows], side) + chosen.amplitude * own)
    return np.concatenate(found)


def _robust_variance(x):
    return (1.4826 * np.median(np.abs(x - np.median(x)))) ** 2
