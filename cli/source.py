"""The recording that a command works on."""

import shlex

from emdl.errors import InputError
from emdl.spikes import recordings

from . import screen

SAMPLE = "sample"


def is_sample(source):
    """Return whether the simulated tetrode is meant: no recording is named, or the word ``sample``."""
    return source.path is None or (str(source.path) == SAMPLE and not source.path.exists())


def inputs(source):
    """Return the files that are read."""
    return [] if is_sample(source) else [path for path in (source.path, source.probe) if path is not None]


def read(source, model=None, *, quiet=False):
    """Read the recording, and hold it against a model.

    Parameters
    ----------
    source : Source
        The file and what was said about it.
    model : SpikeModel, optional
        Its sampling rate and number of channels must be those of the recording; where the file says neither, they are
        taken from it.
    quiet : bool
        Do not say that a simulation stands in for a recording.

    Returns
    -------
    Recording

    Raises
    ------
    EmdlError
        If the recording cannot be read or does not fit the model.
    """
    if is_sample(source):
        if source.path is None and not quiet:
            screen.say("a simulated tetrode is used; name a file to use your own recording")
        recording = recordings.sample()
    else:
        recording = recordings.read(source.path, **_said(source, model))
    if model is not None:
        check_fit(recording, model)
    if not quiet:
        _warn_of_oddities(recording, model)
        if model is not None:
            warn_of_scale(recording, model)
    return recording


def _warn_of_oddities(recording, model):
    from emdl.spikes import checks

    band = {} if model is None else {"low_hz": model.band[0]}
    for sentence in checks.of_recording(recording, **band):
        screen.say(f"warning: {sentence}")


def warn_of_scale(recording, model, *, quiet=False):
    """Say if a recording is in another unit than the one that a model was learned on, as its noise tells."""
    from emdl.spikes import checks

    for sentence in [] if quiet else checks.of_fit(recording, model):
        screen.say(f"warning: {sentence}")


def warn_of_units(model, *, quiet=False):
    """Say if the waveforms of a model last as no spikes do, as with a wrong sampling rate."""
    from emdl.spikes import checks

    for sentence in [] if quiet else checks.of_units(model):
        screen.say(f"warning: {sentence}")


def warn_of_growth(recording):
    """Say if the file has grown since it was read: what was added was not looked at."""
    grown = recording.growth()
    if grown:
        screen.say(
            f"warning: {recording.name} has grown by {grown:,} bytes since it was opened; what came after the first "
            f"{recording.seconds:.1f} s was not looked at"
        )


def _said(source, model):
    """Return the arguments of `recordings.read`; a model fills in what raw binary leaves open."""
    channels = source.channels
    if model is not None and channels is None and source.path.suffix.lower() in recordings.formats.RAW_SUFFIXES:
        channels = model.waveforms.shape[1] + len(source.skip_channel)
    return {
        "fs": source.fs,
        "key": source.key,
        "series": source.series,
        "dtype": source.dtype,
        "n_channels": channels,
        "layout": source.layout and source.layout.value,
        "skip_channels": source.skip_channel,
        "default_fs": None if model is None else model.fs,
        "probe": source.probe,
    }


def check_fit(recording, model):
    """Raise unless the recording has the channels and the sampling rate of the model.

    Raises
    ------
    InputError
        With the numbers of both.
    """
    channels = model.waveforms.shape[1]
    if recording.n_channels != channels:
        raise InputError(
            f"{recording.name} has {recording.n_channels} channels, but the model was learned on {channels}; "
            "choose the same ones (--skip-channel)"
        )
    if abs(recording.fs - model.fs) > 1e-6 * model.fs:
        raise InputError(
            f"{recording.name} is sampled at {recording.fs:g} Hz, but the model was learned at {model.fs:g} Hz; "
            "resample it, or learn a new model"
        )


def command_line(source):
    """Return what to type after a command to name this recording again."""
    if is_sample(source):
        return SAMPLE
    words = [str(source.path)]
    for flag in ("fs", "key", "series", "dtype", "channels", "layout", "probe"):
        value = getattr(source, flag)
        if value is not None:
            words += [f"--{flag}", f"{value:.15g}" if isinstance(value, float) else str(value)]
    for channel in source.skip_channel:
        words += ["--skip-channel", str(channel)]
    return shlex.join(words)
