"""How long an event lasts and where its energy lies, by the sampling rate.

| sampling rate | taken for | duration unit | pass band | window |
|---|---|---|---|---|
| 5 kHz and more | extracellular spikes | 1 ms | 300 to 6000 Hz | 3 ms, 1 ms of it before the peak |
| less | slow events, such as heartbeats | 100 ms | 5 to 40 Hz | 300 ms, 100 ms of it before the peak |

A pass band ends below 0.45 of the sampling rate. All other durations of the spike part are multiples of the unit.
"""

from dataclasses import dataclass

import numpy as np

from emdl.backend import check_number
from emdl.errors import InputError

SPIKE_RATE = 5000.0  # Hz; a slower recording cannot show an extracellular spike
FASTEST = 1e8  # Hz; a faster recording is a mistake
_TOP = 0.45  # of the sampling rate, where a pass band must end


@dataclass(frozen=True)
class Scale:
    """Durations and frequencies of a kind of event at one sampling rate.

    Attributes
    ----------
    fs : float
        Sampling rate, Hz.
    unit : int
        Duration unit, samples: about the width of an event.
    band : (float, float)
        Pass band, Hz.
    before, length : int
        Samples of a window before the peak, and in all.
    kind : str
        What is looked for, in words.
    """

    fs: float
    unit: int
    band: tuple
    before: int
    length: int
    kind: str


def choose(fs, *, band=None, window_ms=None):
    """Return the scale for a sampling rate, by the table of this module.

    Parameters
    ----------
    fs : float
        Sampling rate, Hz.
    band : (float, float), optional
        Pass band, Hz, instead of the table's.
    window_ms : float, optional
        Length of a window, ms, instead of the table's; a third of it lies before the peak.

    Returns
    -------
    Scale

    Raises
    ------
    InputError
        If the sampling rate is too low for the band, or band or window make no sense.
    """
    fs = check_number(fs, "fs", 0, FASTEST, strict=True)
    fast = fs >= SPIKE_RATE
    seconds, low, high = (1e-3, 300.0, 6000.0) if fast else (0.1, 5.0, 40.0)
    band = (low, min(high, _TOP * fs)) if band is None else _check_band(band, fs)
    if not 0 < band[0] < band[1]:
        raise InputError(f"fs is {fs:g} Hz, too low for events with energy above {band[0]:g} Hz; pass a band")
    window = 3 * seconds if window_ms is None else check_number(window_ms, "window_ms", 0, strict=True) / 1000
    length = round(window * fs)
    if length < 4:
        raise InputError(f"a window of {1000 * window:g} ms is {length} samples at {fs:g} Hz, wanted at least 4")
    kind = "extracellular spikes" if fast else "slow events"
    return Scale(fs, max(2, round(seconds * fs)), band, max(1, length // 3), length, kind)


def _check_band(band, fs):
    try:
        given = np.asarray(band, dtype=float)
    except (TypeError, ValueError):
        given = np.zeros(0)
    if given.shape != (2,) or not np.isfinite(given).all() or not 0 < given[0] < given[1] < fs / 2:
        raise InputError(f"band is {band!r}, wanted two frequencies with 0 < low < high < fs / 2 = {fs / 2:g} Hz")
    return (float(given[0]), float(given[1]))
