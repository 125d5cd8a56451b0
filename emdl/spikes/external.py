"""Recordings that SpikeInterface and Neo can read: files and folders of recording systems, and their objects."""

import logging
import warnings

import numpy as np

from emdl.errors import EmdlError, FileFormatError, InputError
from emdl.spikes import formats
from emdl.spikes.lazy import Lazy, chained, scaled

logger = logging.getLogger(__name__)

_INSTALL = 'pip install "emdl[neo]"'
_SAVED = ("si_folder.json", "spikeinterface_recording.json", "binary.json", "cached.json")  # of a SpikeInterface folder


def is_recording(thing):
    """Return whether an object is a recording of SpikeInterface, without importing it."""
    return hasattr(thing, "get_traces") and hasattr(thing, "get_sampling_frequency")


def content(recording):
    """Return what a recording of SpikeInterface holds; its segments are put one after another.

    Parameters
    ----------
    recording : spikeinterface.BaseRecording
        In uV where it knows how to get there.

    Returns
    -------
    Content
        Traces are read when they are sliced.
    """
    C, dtype = recording.get_num_channels(), recording.get_dtype()

    def segment(index):
        def read(a, b):
            return recording.get_traces(segment_index=index, start_frame=a, end_frame=b).T

        return Lazy(read, (C, recording.get_num_samples(segment_index=index)), dtype)

    parts = [segment(index) for index in range(recording.get_num_segments())]
    joints = np.cumsum([part.shape[1] for part in parts])[:-1]
    data, unit = parts[0] if len(parts) == 1 else chained(parts), formats.DATA_UNIT
    gains, offsets = recording.get_channel_gains(), recording.get_channel_offsets()
    if gains is not None and offsets is not None:
        unit = "uV"
        if not ((gains == 1).all() and (offsets == 0).all()):
            data = scaled(data, gains, offsets)
    positions = recording.get_channel_locations() if recording.has_probe() else None
    if positions is not None:
        positions = np.asarray(positions, float)[:, :2]
    return formats.Content(
        data, recording.get_sampling_frequency(), "channels-first", unit, positions, joints=tuple(map(int, joints))
    )


def load(path, series=None):
    """Return the recording in a file or folder that SpikeInterface has saved or that Neo knows.

    Parameters
    ----------
    path : Path
        A folder of SpikeInterface, or what Neo's classes read: Open Ephys, SpikeGLX, Blackrock, Intan, Neuralynx, ...
    series : str, optional
        Name or id of the stream; needed if there are several.

    Returns
    -------
    Content

    Raises
    ------
    EmdlError
        If a package is missing; the message says how to install it.
    FileFormatError
        If neither knows the file.
    InputError
        If there are several streams and none was chosen, or none of that name.
    """
    if path.is_dir() and any((path / name).is_file() for name in _SAVED):
        return _load_spikeinterface(path)
    return _load_neo(path, series)


def _load_spikeinterface(path):
    try:
        import spikeinterface
    except ImportError as error:
        raise EmdlError(
            f'{path} was saved by SpikeInterface; to read it: pip install "emdl[spikeinterface]"'
        ) from error
    found = spikeinterface.load(path)
    if not is_recording(found):
        raise FileFormatError(f"{path} holds a {type(found).__name__}, wanted a recording")
    return content(found)


def _load_neo(path, series):
    listed = ", ".join(formats.KNOWN)
    what = f"{path} is a folder, not" if path.is_dir() else f"{path.name} is not"
    try:
        import neo.rawio
    except ImportError as error:
        raise FileFormatError(
            f"{what} one of {listed} (raw binary: rename it .dat); "
            f"files and folders of recording systems are read through Neo: {_INSTALL}"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Neo's own deprecations
        reader = _neo_reader(path, neo.rawio)
    if reader is None:
        raise FileFormatError(f"{what} one of {listed}, nor a file or folder that Neo knows")
    stream = _choose_stream(path.name, reader.header["signal_streams"], series)
    channels = reader.header["signal_channels"]
    channels = channels[channels["stream_id"] == reader.header["signal_streams"][stream]["id"]]
    parts = [_neo_part(reader, seg, stream, len(channels)) for seg in range(reader.segment_count(0))]
    joints = np.cumsum([part.shape[1] for part in parts])[:-1]
    data, gain, unit = parts[0] if len(parts) == 1 else chained(parts), channels["gain"].astype(float), "uV"
    units = {str(u) for u in channels["units"]}
    factor = {"V": 1e6, "mV": 1e3, "uV": 1.0, "µV": 1.0}
    if len(units) == 1 and (u := next(iter(units))) in factor:
        data = scaled(data, factor[u] * gain, factor[u] * channels["offset"].astype(float))
    else:
        unit = formats.DATA_UNIT
    fs = float(channels["sampling_rate"][0])
    logger.warning("%s: read by Neo as %s", path.name, type(reader).__name__.removesuffix("RawIO"))
    return formats.Content(data, fs, "channels-first", unit, None, joints=tuple(map(int, joints)))


def _neo_reader(path, rawio):
    """Return the first of Neo's readers that makes sense of the file or folder, its header parsed; or None."""
    candidates = rawio.get_rawio(path, exclusive_rawio=False)
    if path.is_dir():  # these tell their folders by what lies deeper in them
        candidates = [rawio.OpenEphysBinaryRawIO, rawio.SpikeGLXRawIO, *candidates]
    elif path.with_suffix(".meta").is_file():
        candidates = [rawio.SpikeGLXRawIO]
    for kind in candidates:
        if kind is rawio.RawBinarySignalRawIO:  # would take any file for int16
            continue
        place = path.parent if kind is rawio.SpikeGLXRawIO and path.is_file() else path
        try:
            reader = kind(**{"dirname" if kind.rawmode == "one-dir" else "filename": str(place)})
            reader.parse_header()
        except Exception as error:  # noqa: BLE001 each reader fails in its own way on what is not its own
            logger.info("%s does not read %s: %s", kind.__name__, path, error)
            continue
        if len(reader.header["signal_streams"]):
            return reader
    return None


def _choose_stream(name, streams, series):
    named = [str(s["name"]) for s in streams]
    if series is None:
        if len(streams) > 1:
            first = named[0]
            raise InputError(
                f"{name} holds {len(streams)} recordings: {', '.join(named)}; choose one, as --series '{first}'"
            )
        return 0
    matching = [i for i, s in enumerate(streams) if series in (str(s["name"]), str(s["id"]))]
    if len(matching) != 1:
        raise InputError(f"{name} holds no recording named {series!r}; it holds {', '.join(named)}")
    return matching[0]


def _neo_part(reader, segment, stream, n_channels):
    n_samples = reader.get_signal_size(0, segment, stream)

    def read(a, b):
        chunk = reader.get_analogsignal_chunk(
            block_index=0, seg_index=segment, i_start=a, i_stop=b, stream_index=stream
        )
        return chunk.T

    dtype = reader.get_analogsignal_chunk(0, segment, 0, 1, stream).dtype
    return Lazy(read, (n_channels, n_samples), dtype)


def as_sorting(result):
    """Return a `Sorting` as a `spikeinterface.NumpySorting`, its segments those of the recording.

    Parameters
    ----------
    result : Sorting
        From `emdl.sort`. The columns of its quality become properties of the units.

    Returns
    -------
    spikeinterface.NumpySorting

    Raises
    ------
    EmdlError
        If SpikeInterface is not installed.
    """
    try:
        from spikeinterface.core import NumpySorting
    except ImportError as error:
        raise EmdlError(f"{error}; SpikeInterface is needed for it: pip install 'emdl[spikeinterface]'") from error
    spikes, gaps = result.spikes, result.recording.gaps
    begin = np.append(0, gaps[gaps[:, 0] == gaps[:, 1], 0])
    segment = np.searchsorted(begin, spikes.sample, "right") - 1
    samples = [spikes.sample[segment == i] - begin[i] for i in range(len(begin))]
    labels = [spikes.unit[segment == i] for i in range(len(begin))]
    made = NumpySorting.from_samples_and_labels(samples, labels, spikes.fs, unit_ids=np.arange(result.model.n_units))
    for name in result.quality[0] if result.quality else ():
        if name != "unit":
            made.set_property(name, np.array([row[name] for row in result.quality]))
    made.annotate(emdl_message=result.model.message)
    return made
