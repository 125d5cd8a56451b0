"""What was learned from a recording, and its file."""

import zlib
from dataclasses import dataclass

import numpy as np

from emdl import model as core
from emdl.errors import FileFormatError
from emdl.spikes.decision import Units
from emdl.spikes.drift import TERMS
from emdl.spikes.whitening import Whitening

_FORMAT, _DRIFTS = 1, 2  # the second where units drift, which version 0.1.0 would not see
_MARK = 512  # samples by which a recording is known again
_WHITENING = ("offset", "taps", "mixing", "band_taps", "noise", "density")
_ARRAYS = ("waveforms", "spread", "peak", "amplitude", "amplitude_spread", "rate")


@dataclass(frozen=True)
class SpikeModel:
    """The units of a recording.

    Attributes
    ----------
    model : emdl.Model
        Unit-norm templates, rates and noise level (1) of the whitened signal: K units and after them J templates of the
        background, which is no single neuron. If there is nothing at all, one atom of zeros.
    fs : float
        Sampling rate, Hz.
    band : (float, float)
        Pass band, Hz.
    duration_unit : int
        Samples of the duration unit, see `emdl.spikes.scales`.
    whitening : Whitening
        From data to the whitened signal.
    waveforms : ndarray (K, C, s)
        Mean waveform of each unit in the pass band, data unit.
    spread : ndarray (K, C, s)
        Standard deviation of its spikes about it, noise included, data unit.
    peak : ndarray (K,) of int64
        Sample of the main deflection of each waveform, where its spikes are said to be: the trough, or the peak if that
        is more than 1.5 times as large.
    amplitude, amplitude_spread : ndarray (K + J,)
        Mean and standard deviation of the amplitudes, in standard deviations of the noise of a matched filter.
    rate : ndarray (K + J,)
        Probability that a sample holds a spike of each template.
    history : dict of ndarray (n_iter,)
        objective, n_nonzero, n_units, lmbd (geometric mean), sigma, change, seconds.
    converged : bool
        Whether units and waveforms stood still.
    message : str
        How it ended, what was taken for granted, what was left out.
    waves : ndarray (K + J, TERMS, C, s) or None
        How waveforms drift, see `emdl.spikes.drift`, whitened unit; None if they do not.
    learned : (int, int)
        Samples of the recording, and what its first samples are known by (`mark`).
    """

    model: core.Model
    fs: float
    band: tuple
    duration_unit: int
    whitening: Whitening
    waveforms: np.ndarray
    spread: np.ndarray
    peak: np.ndarray
    amplitude: np.ndarray
    amplitude_spread: np.ndarray
    rate: np.ndarray
    history: dict
    converged: bool
    message: str
    waves: np.ndarray | None = None
    learned: tuple = (1, 0)

    @property
    def n_units(self):
        """Number of units K."""
        return len(self.waveforms)

    @property
    def noise(self):
        """Standard deviation of the noise of each channel in the pass band, (C,), data unit."""
        return self.whitening.noise

    @property
    def units(self):
        """All K + J templates, as `Units`."""
        D = self.model.D[: len(self.rate)].astype(np.float32)
        return Units(D, self.amplitude, self.amplitude_spread, self.rate, self.waves)

    def drifted_for(self, data):
        """Return the samples over which units drift as learned, in the recording they were learned on or a longer one.

        Any other recording is taken for a later one, for which units stay what they were at the end: the answer is as
        small as can be.

        Parameters
        ----------
        data : array (C, N)
            Recording, data unit.

        Returns
        -------
        float
            Samples.
        """
        if self.waves is None or mark(data) == self.learned[1]:
            return self.learned[0]
        return 1e-9

    def save(self, path):
        """Write the model to an HDF5 file, whole or not at all; `emdl.load` reads its dictionary too.

        Parameters
        ----------
        path : path
            A file of that name is replaced.

        Raises
        ------
        FileFormatError
            If the folder cannot be written.
        """
        held = {
            "spikes_format": _FORMAT if self.waves is None else _DRIFTS,
            "fs": self.fs,
            "band": np.array(self.band),
            "message": self.message,
        }
        held |= {"duration_unit": self.duration_unit, "converged": int(self.converged)}
        held |= {f"whitening_{name}": getattr(self.whitening, name) for name in _WHITENING}
        held |= {name: getattr(self, name) for name in _ARRAYS} | {f"history_{k}": v for k, v in self.history.items()}
        held |= {"learned": np.array(self.learned)} | ({} if self.waves is None else {"waves": self.waves})
        m = self.model
        core.Model(m.D, m.lmbd, m.sigma, m.positive, m.stride, held).save(path)


def mark(data):
    """Return a number by which a recording (C, N) is known again: a checksum of its first samples."""
    return zlib.crc32(np.ascontiguousarray(data[:, :_MARK], np.float32).tobytes())


def load(path):
    """Return a model of spikes read from a file.

    Parameters
    ----------
    path : path
        Written by `SpikeModel.save`.

    Returns
    -------
    SpikeModel

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, no model of spikes, or of a newer format.
    """
    model = core.load(path)
    held = model.attributes
    if "spikes_format" not in held:
        raise FileFormatError(
            f"{path} holds a dictionary, but no model of spikes; those are written by SpikeModel.save"
        )
    if held["spikes_format"] > _DRIFTS:
        raise FileFormatError(
            f"{path} is a model of spikes of format {held['spikes_format']}, this emdl reads up to {_DRIFTS}; "
            "install a newer one"
        )
    try:
        arrays = {name: np.asarray(held[name]) for name in _ARRAYS}
        whitening = Whitening(**{name: held[f"whitening_{name}"] for name in _WHITENING})
        history = {k.removeprefix("history_"): np.asarray(v) for k, v in held.items() if k.startswith("history_")}
        found = SpikeModel(
            core.Model(model.D, model.lmbd, model.sigma, model.positive, model.stride), float(held["fs"]),
            (float(held["band"][0]), float(held["band"][1])), int(held["duration_unit"]), whitening, **arrays,
            history=history, converged=bool(held["converged"]), message=str(held["message"]),
            waves=np.asarray(held["waves"], np.float32) if "waves" in held else None,
            learned=tuple(int(v) for v in np.asarray(held.get("learned", (1, 0)))),
        )  # fmt: skip
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise FileFormatError(f"{path} is a damaged model of spikes: {error}") from error
    K, (C, s) = found.n_units, model.D.shape[1:]
    J = len(found.rate) - K
    fits = found.waveforms.shape == found.spread.shape == (K, C, s) and model.D.shape[0] == max(K + J, 1) and J >= 0
    fits = fits and all(getattr(found, name).shape == (K + J,) for name in _ARRAYS[3:]) and found.peak.shape == (K,)
    fits = fits and (found.waves is None or found.waves.shape == (K + J, TERMS, C, s))
    fits = fits and len(found.learned) == 2 and found.learned[0] > 0
    fits = fits and whitening.mixing.shape == (C, C) and whitening.taps.shape == (C, len(whitening.band_taps))
    if not (fits and whitening.noise.shape == whitening.offset.shape == (C,) and len(whitening.band_taps) % 2):
        raise FileFormatError(f"{path} is a damaged model of spikes: its arrays do not fit each other")
    return found
