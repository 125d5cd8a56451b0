"""From a recording to units, spikes and what they are worth, in one call."""

import pathlib
import shutil
import tempfile
from dataclasses import dataclass

from emdl.errors import InputError
from emdl.spikes import external, quality, recordings, tables
from emdl.spikes.detection import Spikes, detect
from emdl.spikes.learning import fit
from emdl.spikes.model import SpikeModel

SUFFIXES = (*tables.SUFFIXES, ".nwb")


@dataclass(frozen=True)
class Sorting:
    """A sorted recording.

    Attributes
    ----------
    recording : Recording
        What was sorted.
    model : SpikeModel
        What was learned.
    spikes : Spikes
        What was found.
    quality : list of dict
        What each unit is worth, see `emdl.spikes.quality.assess`.
    """

    recording: recordings.Recording
    model: SpikeModel
    spikes: Spikes
    quality: list

    def save(self, path):
        """Write the spikes to a file, or a folder for phy.

        Parameters
        ----------
        path : str or Path
            ``.csv`` or ``.npz``: a table of spikes. ``.nwb``: units with their spikes, waveforms and quality (needs
            pynwb). No ending: a new folder that phy opens.

        Raises
        ------
        InputError
            If the ending is unknown, or the folder exists and is not empty.
        EmdlError
            If pynwb is missing.
        """
        path = pathlib.Path(path)
        check_suffix(path)
        if path.suffix.lower() in tables.SUFFIXES:
            tables.write(path, self.spikes)
        elif path.suffix.lower() == ".nwb":
            from emdl.spikes import nwb

            nwb.write_units(path, self)
        else:
            self._save_folder(path)

    def _save_folder(self, path):
        """Write the folder for phy, whole or not at all."""
        from emdl.spikes import phy

        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} exists and is not empty; choose another name for the folder")
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.part-", dir=path.resolve().parent) as part:
            made = pathlib.Path(part) / path.name
            made.mkdir()
            phy.write(made, self)
            if path.exists():
                path.rmdir()
            shutil.move(made, path)

    def to_spikeinterface(self):
        """Return the units as a sorting of SpikeInterface, their quality as properties of the units.

        Returns
        -------
        spikeinterface.NumpySorting

        Raises
        ------
        EmdlError
            If SpikeInterface is not installed.
        """
        return external.as_sorting(self)


def check_suffix(path):
    """Raise unless a sorting can be written to a file of that name.

    Parameters
    ----------
    path : Path
        The file, or the folder for phy.

    Raises
    ------
    InputError
        If the name has an ending that is not one of `SUFFIXES`.
    EmdlError
        If it ends in ``.nwb`` and pynwb is not installed.
    """
    if path.suffix and path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"spikes are written as {', '.join(SUFFIXES)} or, without an ending, as a folder for phy; got {path.name!r}"
        )
    if path.suffix.lower() == ".nwb":
        from emdl.spikes import nwb

        nwb.find_pynwb()


def sort(recording, fs=None, *, model=None, device="cpu", name="recording", client=None, **learn):
    """Sort a recording: learn its units, find their spikes, and say what each unit is worth.

    Parameters
    ----------
    recording : array (C, N) or (N,), Recording, or spikeinterface.BaseRecording
        What to sort.
    fs : float, optional
        Sampling rate, Hz; needed for an array.
    model : SpikeModel, optional
        Learned before, on the same channels; by default it is learned from this recording.
    device : {"cpu", "cuda", "auto"}
        As in `emdl.spikes.fit`.
    name : str
        What to call an array.
    client : distributed.Client, optional
        As in `emdl.spikes.detect`.
    **learn
        More arguments of `emdl.spikes.fit`: `n_units`, `band`, `window_ms`, `max_iter`, `rng`, `callback`.

    Returns
    -------
    Sorting or spikeinterface.NumpySorting
        The latter for a recording of SpikeInterface, with the quality as properties of the units.

    Raises
    ------
    InputError
        If `fs` is missing, or the recording cannot be sorted; the message says why.
    InputTypeError
        If the data are not real numbers.

    Examples
    --------
    >>> from emdl.simulate import tetrode
    >>> made = tetrode(5.0, 2, rng=1)
    >>> result = sort(made.data, made.fs)
    >>> [round(row["expected_misses"], 1) for row in result.quality]
    [0.0, 0.0]
    """
    if external.is_recording(recording):
        if fs is not None:
            raise InputError("a recording of SpikeInterface knows its sampling rate; leave out fs")
        return sort_recording(
            recordings.from_object(recording), model=model, device=device, client=client, **learn
        ).to_spikeinterface()
    if not isinstance(recording, recordings.Recording):
        if fs is None:
            raise InputError("fs, the sampling rate in Hz, is missing; an array does not know it")
        recording = recordings.from_array(recording, fs, name=name)
    return sort_recording(recording, model=model, device=device, client=client, **learn)


def sort_recording(recording, *, model=None, device="cpu", client=None, **learn):
    """Return the `Sorting` of a `Recording`; the arguments are those of `sort`."""
    if model is None:
        model = fit(
            recording.without_gaps(), recording.fs, device=device, **({"positions": recording.positions} | learn)
        )
    elif learn:
        raise InputError(f"{', '.join(learn)} say how to learn, but a model was given; leave out one of them")
    spikes = find(recording, model, device=device, client=client)
    return Sorting(recording, model, spikes, assess(recording, model, spikes))


def find(recording, model, **more):
    """Return the spikes of a `Recording`, none in its gaps or within 1 ms of them.

    Parameters
    ----------
    recording : Recording
        What is searched.
    model : SpikeModel
        What for.
    **more
        Arguments of `emdl.spikes.detect`.

    Returns
    -------
    Spikes
    """
    return without(detect(recording.data, model, **more), recording)


def without(spikes, recording):
    """Return the spikes that lie in no gap of the recording."""
    if len(recording.gaps) == 0:
        return spikes
    kept = recording.outside_gaps(spikes.sample)
    return Spikes(spikes.sample[kept], spikes.unit[kept], spikes.amplitude[kept], spikes.fs)


def assess(recording, model, spikes):
    """Return what each unit is worth; see `emdl.spikes.quality.assess`."""
    return quality.assess(model, recording.data, spikes, seconds=recording.covered_s)
