"""The options that several commands share, each declared once."""

import pathlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from . import config

ABOUT_RECORDING = "About the recording"
DENOISER = "Of a denoiser"
RUNNING = "Running"


class Layout(StrEnum):
    """Which axis of a recording comes first in its file."""

    CHANNELS_FIRST = "channels-first"
    SAMPLES_FIRST = "samples-first"


class DeviceName(StrEnum):
    """Where to compute."""

    CPU = "cpu"
    CUDA = "cuda"
    AUTO = "auto"


@dataclass(frozen=True)
class Source:
    """Where the recording is, and what was said about it."""

    path: pathlib.Path | None
    fs: float | None = None
    key: str | None = None
    dtype: str | None = None
    channels: int | None = None
    layout: Layout | None = None
    skip_channel: tuple[int, ...] = ()
    series: str | None = None
    probe: pathlib.Path | None = None


def _apply_config(ctx: typer.Context, path: pathlib.Path | None):
    """Make what the TOML file says the defaults of this command; flags go on top."""
    if path is not None:
        ctx.default_map = config.defaults(path, ctx.info_name, {param.name for param in ctx.command.params})
    return path


Recording = Annotated[
    pathlib.Path,
    typer.Argument(
        metavar="RECORDING",
        help=".npy, .npz, raw .dat/.bin/.raw, HDF5, NWB, what Neo or SpikeInterface read, or [b]sample[/b].",
        show_default=False,
    ),
]
OptionalRecording = Annotated[
    pathlib.Path | None,
    typer.Argument(
        metavar="DATA",
        help="A recording (.npy, .npz, raw, HDF5; without one: a simulated tetrode), or a folder of photographs.",
    ),
]
Fs = Annotated[
    float | None,
    typer.Option("--fs", metavar="HZ", help="Sampling rate, if the file holds none.", rich_help_panel=ABOUT_RECORDING),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key", metavar="NAME", help="Array in .npz or HDF5 [dim](data)[/dim].", rich_help_panel=ABOUT_RECORDING
    ),
]
Series = Annotated[
    str | None,
    typer.Option(
        "--series",
        metavar="NAME",
        help="Which recording, where NWB or a recording system holds several.",
        rich_help_panel=ABOUT_RECORDING,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", metavar="TYPE", help="Raw binary: type of a sample, as int16.", rich_help_panel=ABOUT_RECORDING
    ),
]
Channels = Annotated[
    int | None,
    typer.Option(
        "--channels", metavar="C", help="Number of channels; raw binary needs it.", rich_help_panel=ABOUT_RECORDING
    ),
]
LayoutOption = Annotated[
    Layout | None,
    typer.Option(
        "--layout",
        metavar="AXES",
        help="channels-first or samples-first, in the file.",
        rich_help_panel=ABOUT_RECORDING,
    ),
]
SkipChannel = Annotated[
    list[int] | None,
    typer.Option(
        "--skip-channel", metavar="C", help="Leave out a channel, from 0; repeatable.", rich_help_panel=ABOUT_RECORDING
    ),
]
Probe = Annotated[
    pathlib.Path | None,
    typer.Option(
        "--probe",
        metavar="FILE",
        help="Places of the channels: probeinterface .json, .prb, or .csv (x,y in each line).",
        rich_help_panel=ABOUT_RECORDING,
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option("--minutes", metavar="M", help="Length of the training [dim](60)[/dim].", rich_help_panel=DENOISER),
]
Atoms = Annotated[
    int | None,
    typer.Option("--atoms", metavar="K", help="Atoms of a layer, a multiple of 32.", rich_help_panel=DENOISER),
]
Layers = Annotated[int | None, typer.Option("--layers", metavar="T", help="Layers.", rich_help_panel=DENOISER)]
Colour = Annotated[bool, typer.Option("--colour", help="Learn colours, not only brightness.", rich_help_panel=DENOISER)]
Noisy = Annotated[
    bool,
    typer.Option(
        "--noisy",
        help="The photographs are noisy: learn from them alone, a dictionary by EM.",
        rich_help_panel=DENOISER,
    ),
]
Model = Annotated[
    pathlib.Path,
    typer.Option("--model", "-m", metavar="FILE", help="A model that emdl train wrote.", show_default=False),
]
Config = Annotated[
    pathlib.Path | None,
    typer.Option(
        "--config",
        metavar="TOML",
        is_eager=True,
        callback=_apply_config,
        help="Options from a file (units = 3); flags go on top.",
        rich_help_panel=RUNNING,
    ),
]
CheckpointEvery = Annotated[
    float,
    typer.Option("--checkpoint-every", metavar="S", min=0, help="Save the state of a run every S seconds."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the saved state of an interrupted run.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite outputs that exist.", rich_help_panel=RUNNING)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.", rich_help_panel=RUNNING)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.", rich_help_panel=RUNNING)]
Dask = Annotated[
    str | None,
    typer.Option(
        "--dask",
        metavar="WHERE",
        help="Compute on workers of Dask: [b]local:N[/b] on this machine, or [b]tcp://host:port[/b] of a scheduler.",
        rich_help_panel=RUNNING,
    ),
]
Device = Annotated[
    DeviceName,
    typer.Option(
        "--device",
        metavar="WHERE",
        help="cpu, cuda, or auto: a GPU where there is one.",
        rich_help_panel=RUNNING,
    ),
]
