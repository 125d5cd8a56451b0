"""The commands and their help. What they do stands in a module each, loaded when it is asked for."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import emdl
from emdl.errors import EmdlError, InputError

from . import options as opt
from . import screen, signals

# Typer brings its own copy of Click in newer versions, so its base exception is found from below.
_CommandLineError: Any = typer.BadParameter.__mro__[2]

EXIT_CODES = "[dim]Exit codes: 0 done, 2 bad input or usage, 130 interrupted, 141 closed pipe, 143 terminated.[/dim]"

app = typer.Typer(
    rich_markup_mode="rich",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)


class Task(StrEnum):
    """What can be learned."""

    SPIKES = "spikes"
    DENOISE = "denoise"


def run(args=None):
    """Run the command line; see `emdl.cli.main`."""
    screen.open_streams()
    try:
        with signals.raising():
            code = typer.main.get_command(app).main(args=args, prog_name="emdl", standalone_mode=False)
            sys.stdout.flush()
        if code == 130:
            screen.say("interrupted; nothing more was written")
        return code or 0
    except (KeyboardInterrupt, typer.Abort):
        screen.say("interrupted; nothing more was written")
        return 130
    except signals.Stopped as stopped:
        screen.say(f"{'interrupted' if stopped.exit_code == 130 else 'terminated'}; nothing more was written")
        return stopped.exit_code
    except BrokenPipeError:
        screen.give_up_output()
        return screen.CLOSED_PIPE
    except EmdlError as error:
        message = str(error)
    except _CommandLineError as error:
        message = error.format_message().replace("Value error, ", "").rstrip(".") + "; see --help"
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    except MemoryError as error:
        message = f"not enough memory: {error}" if str(error) else "not enough memory"
    screen.say(f"error: {message}")
    return 2


def _show_version(wanted: bool):
    if wanted:
        screen.put(f"emdl {emdl.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_show_version)
    ] = False,
):
    """Learn the waveforms in a signal and where each of them stands; take the noise out of pictures.

    [b]emdl sort sample[/b]                                    spikes of a recording; here, of a simulated one
    [b]emdl train --task spikes[/b]                            try it, no data needed
    [b]emdl train --task spikes rec.npz -o model.h5[/b]        learn from a recording
    [b]emdl detect rec.npz --model model.h5 -o spikes.csv[/b]  find every spike
    [b]emdl info model.h5[/b]                                  say what a model holds
    [b]emdl denoise photo.png[/b]                              take the noise out of a picture
    """
    if ctx.invoked_subcommand is None:
        screen.put(ctx.get_help())


@app.command(epilog=EXIT_CODES)
def train(
    recording: opt.OptionalRecording = None,
    task: Annotated[Task, typer.Option("--task", help="What to learn.")] = Task.SPIKES,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.h5",
            help="The model; other outputs share its stem. [dim](default: emdl-spikes.h5, emdl-denoise.h5)[/dim]",
        ),
    ] = None,
    units: Annotated[
        int | None, typer.Option("--units", metavar="N", min=1, help="Number of units; found by default.")
    ] = None,
    band: Annotated[
        tuple[float, float] | None,
        typer.Option("--band", metavar="LOW HIGH", help="Pass band, Hz.", show_default=False),
    ] = None,
    window_ms: Annotated[
        float | None, typer.Option("--window-ms", metavar="MS", help="Length of a waveform, ms.")
    ] = None,
    max_iter: Annotated[
        int | None, typer.Option("--max-iter", metavar="N", min=1, help="Most iterations of EM.")
    ] = None,
    minutes: opt.Minutes = None,
    atoms: opt.Atoms = None,
    layers: opt.Layers = None,
    colour: opt.Colour = False,
    noisy: opt.Noisy = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="The same seed gives the same model.")] = 0,
    plot: Annotated[bool, typer.Option("--plot/--no-plot", help="Draw the picture.")] = True,
    checkpoint_every: Annotated[
        float,
        typer.Option("--checkpoint-every", metavar="S", min=0, help="Save the state of a run every S seconds."),
    ] = 60.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the saved state of an interrupted run.")] = False,
    fs: opt.Fs = None,
    key: opt.Key = None,
    series: opt.Series = None,
    dtype: opt.Dtype = None,
    channels: opt.Channels = None,
    layout: opt.LayoutOption = None,
    skip_channel: opt.SkipChannel = None,
    probe: opt.Probe = None,
    config: opt.Config = None,
    device: opt.Device = opt.DeviceName.CPU,
    dask: opt.Dask = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
):
    """Learn spike waveforms from a recording, or a denoiser from photographs.

    Writes the model (.h5) and a picture of it (.png); of a recording also the spikes found (.csv). All are named
    after -o.

    [b]emdl train --task spikes[/b]
    [b]emdl train --task spikes rec.npz -o model.h5[/b]
    [b]emdl train --task spikes rec.dat --dtype int16 --channels 4 --fs 30000[/b]
    [b]emdl train --task spikes rec.h5 --key /probe/raw --units 3[/b]
    [b]emdl train --task denoise photographs/ -o mine.h5[/b]
    [b]emdl train --task denoise scans/ --noisy -o mine.h5[/b]
    """
    kept = {"checkpoint_every": checkpoint_every, "resume": resume}
    shown = {"force": force, "quiet": quiet, "as_json": json}
    if task == Task.DENOISE:
        from .train_denoise import DEFAULT_MINUTES, DEFAULT_OUTPUT, train_denoiser

        _check_unused(task, units=units, band=band, window_ms=window_ms, fs=fs, key=key, dtype=dtype,
                      channels=channels, layout=layout, skip_channel=skip_channel, probe=probe)  # fmt: skip
        if device == opt.DeviceName.CUDA:
            raise InputError("--task denoise runs on the CPU, got --device cuda; leave it out")
        if noisy:
            from .train_patches import train_patches

            _check_unused(f"{task} --noisy", minutes=minutes, layers=layers, dask=dask)
            learn = {"n_atoms": atoms, "max_iter": max_iter, "grey": not colour, "rng": seed}
            train_patches(recording, output or Path(DEFAULT_OUTPUT), learn=learn, plot=plot, **kept, **shown)
            return
        _check_unused(task, max_iter=max_iter)
        learn = {"n_atoms": atoms, "n_layers": layers, "grey": not colour, "rng": seed}
        length = DEFAULT_MINUTES if minutes is None else minutes
        train_denoiser(
            recording, output or Path(DEFAULT_OUTPUT), minutes=length, learn=learn, plot=plot, dask=dask,
            **kept, **shown,
        )  # fmt: skip
        return
    from .train import train_spikes

    _check_unused(task, minutes=minutes, atoms=atoms, layers=layers, colour=colour, noisy=noisy)
    source = opt.Source(recording, fs, key, dtype, channels, layout, tuple(skip_channel or ()), series, probe)
    learn = {
        "n_units": units,
        "band": band,
        "window_ms": window_ms,
        "max_iter": max_iter,
        "rng": seed,
        "device": device.value,
    }
    train_spikes(source, output or Path("emdl-spikes.h5"), learn, plot=plot, dask=dask, **kept, **shown)


def _check_unused(task, **options):
    """Refuse options that mean nothing for a task."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value not in (None, False, [])]
    if given:
        raise InputError(f"{', '.join(given)} mean nothing with --task {task}; leave out what is for the other task")


@app.command(epilog=EXIT_CODES)
def denoise(
    pictures: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE", help="PNG, JPEG, TIFF (all pages), WebP, BMP; or folders.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="A file, or a folder for several; default: IMAGE_denoised beside each.",
        ),
    ] = None,
    sigma: Annotated[
        str,
        typer.Option(
            "--sigma", metavar="S", help="Noise level from 0 to 255, or [b]auto[/b]: estimated. Float TIFF: its unit."
        ),
    ] = "auto",
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", metavar="FILE", help="A network that emdl train --task denoise wrote."),
    ] = None,
    learn: Annotated[bool, typer.Option("--learn", help="Learn a dictionary on the very picture instead.")] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="PNG", help="A page: before, after, what was taken out, the atoms."),
    ] = None,
    config: opt.Config = None,
    device: opt.Device = opt.DeviceName.CPU,
    dask: opt.Dask = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
):
    """Take the noise out of pictures.

    Size, depth, transparency, colour profile and orientation stay as they are. White noise is assumed.

    [b]emdl denoise photo.png[/b]                      writes photo_denoised.png
    [b]emdl denoise photo.png --report page.png[/b]    shows what was taken out
    [b]emdl denoise stack.tif -o clean.tif[/b]         all pages
    [b]emdl denoise scans/ -o clean/[/b]               every picture of a folder
    """
    from .denoise import denoise_pictures

    denoise_pictures(
        pictures, output, sigma=sigma, model=model, learn=learn, report=report, device=device.value, force=force,
        quiet=quiet, as_json=json, dask=dask,
    )  # fmt: skip


@app.command(epilog=EXIT_CODES)
def sort(
    recording: opt.Recording,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Spikes: .csv, .npz, .nwb, or no ending: a folder for phy; repeatable. Others share the stem of the "
            "first. [dim](default: emdl-sorted.csv)[/dim]",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="The page, .html or .png. [dim](default: STEM.html)[/dim]"),
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no page.")] = False,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", metavar="FILE", help="Use this model, learn none.")
    ] = None,
    units: Annotated[
        int | None, typer.Option("--units", metavar="N", min=1, help="Number of units; found by default.")
    ] = None,
    band: Annotated[
        tuple[float, float] | None,
        typer.Option("--band", metavar="LOW HIGH", help="Pass band, Hz.", show_default=False),
    ] = None,
    window_ms: Annotated[
        float | None, typer.Option("--window-ms", metavar="MS", help="Length of a waveform, ms.")
    ] = None,
    max_iter: Annotated[
        int | None, typer.Option("--max-iter", metavar="N", min=1, help="Most iterations of EM.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="The same seed gives the same units.")] = 0,
    checkpoint_every: opt.CheckpointEvery = 60.0,
    resume: opt.Resume = False,
    fs: opt.Fs = None,
    key: opt.Key = None,
    series: opt.Series = None,
    dtype: opt.Dtype = None,
    channels: opt.Channels = None,
    layout: opt.LayoutOption = None,
    skip_channel: opt.SkipChannel = None,
    probe: opt.Probe = None,
    config: opt.Config = None,
    device: opt.Device = opt.DeviceName.CPU,
    dask: opt.Dask = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
):
    """Sort the spikes of a recording: learn its units, find every spike, say what each unit is worth.

    Writes the spikes, a page that shows them (.html), a table of the units (-units.csv) and the model (.h5).

    [b]emdl sort sample[/b]                          try it, no data needed
    [b]emdl sort rec.dat --dtype int16 --channels 4 --fs 30000[/b]
    [b]emdl sort day.nwb -o sorted.nwb -o phy[/b]    units for NWB, a folder for phy
    [b]emdl sort rec.npz --units 5 --report page.png[/b]
    """
    from .sort import DEFAULT, sort_recording

    source = opt.Source(recording, fs, key, dtype, channels, layout, tuple(skip_channel or ()), series, probe)
    outputs = output or [Path(DEFAULT)]
    if no_report and report:
        raise InputError("--report and --no-report contradict each other; leave out one")
    page = None if no_report else report or outputs[0].with_name(outputs[0].with_suffix("").name + ".html")
    learn = {"n_units": units, "band": band, "window_ms": window_ms, "max_iter": max_iter, "rng": seed}
    if model and any(value is not None for name, value in learn.items() if name != "rng"):
        raise InputError("--units, --band, --window-ms and --max-iter say how to learn, but --model was given")
    sort_recording(
        source, outputs, page, learn | {"device": device.value}, model_path=model, checkpoint_every=checkpoint_every,
        resume=resume, force=force, quiet=quiet, as_json=json, dask=dask,
    )  # fmt: skip


@app.command(epilog=EXIT_CODES)
def compare(
    spikes: Annotated[
        Path,
        typer.Argument(metavar="SPIKES", help="What was found: .csv, .npz, or a folder of phy.", show_default=False),
    ],
    truth: Annotated[
        Path, typer.Argument(metavar="TRUTH", help="What is true, or another sorting.", show_default=False)
    ],
    delta_ms: Annotated[float, typer.Option("--delta-ms", metavar="MS", min=0, help="Spikes match within this.")] = 0.4,
    fs: opt.Fs = None,
    json: opt.Json = False,
):
    """Hold spikes against the truth, unit by unit: accuracy, recall and precision, as SpikeInterface defines them.

    Units are paired one to one (Hungarian method) if they agree to at least 0.5.

    [b]emdl compare emdl-sorted.csv truth.npz[/b]
    [b]emdl compare mine.csv phy-folder --delta-ms 1[/b]
    """
    from .compare import compare_spikes

    compare_spikes(spikes, truth, delta_ms=delta_ms, fs=fs, as_json=json)


@app.command(epilog=EXIT_CODES)
def detect(
    recording: opt.Recording,
    model: opt.Model,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Spikes: .csv, .npz, .nwb, or no ending: a folder for phy; default: CSV on stdout.",
        ),
    ] = None,
    checkpoint_every: opt.CheckpointEvery = 60.0,
    resume: opt.Resume = False,
    fs: opt.Fs = None,
    key: opt.Key = None,
    series: opt.Series = None,
    dtype: opt.Dtype = None,
    channels: opt.Channels = None,
    layout: opt.LayoutOption = None,
    skip_channel: opt.SkipChannel = None,
    config: opt.Config = None,
    device: opt.Device = opt.DeviceName.CPU,
    dask: opt.Dask = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
):
    """Find time, unit and amplitude of every spike in a recording.

    The table has the columns sample (from 0), time_s, unit and amplitude.

    [b]emdl detect rec.npz --model model.h5 -o spikes.csv[/b]
    [b]emdl detect rec.npz --model model.h5 | head[/b]
    [b]emdl detect day.dat --model model.h5 -o spikes.npz --resume[/b]  go on after an interrupt
    """
    from .detect import detect_spikes

    source = opt.Source(recording, fs, key, dtype, channels, layout, tuple(skip_channel or ()), series)
    detect_spikes(
        source, model, output, device=device.value, checkpoint_every=checkpoint_every, resume=resume, force=force,
        quiet=quiet, as_json=json, dask=dask,
    )  # fmt: skip


@app.command(epilog=EXIT_CODES)
def encode(
    recording: opt.Recording,
    model: opt.Model,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.npz", help="The codes.", show_default=False)],
    fs: opt.Fs = None,
    key: opt.Key = None,
    series: opt.Series = None,
    dtype: opt.Dtype = None,
    channels: opt.Channels = None,
    layout: opt.LayoutOption = None,
    skip_channel: opt.SkipChannel = None,
    config: opt.Config = None,
    device: opt.Device = opt.DeviceName.CPU,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
):
    """Write the sparse codes of a recording.

    Arrays unit, sample and value: one entry per code that is not zero. Array shape: (units, positions).
    Array peak: by how many samples the peak of each unit lies behind its code.

    [b]emdl encode rec.npz --model model.h5 -o codes.npz[/b]
    """
    from .encode import encode_recording

    source = opt.Source(recording, fs, key, dtype, channels, layout, tuple(skip_channel or ()), series)
    encode_recording(source, model, output, device=device.value, force=force, quiet=quiet, as_json=json)


@app.command(epilog=EXIT_CODES)
def info(
    file: Annotated[Path, typer.Argument(help="A model that emdl train wrote.")],
    json: opt.Json = False,
):
    """Say what a model holds.

    [b]emdl info emdl-spikes.h5[/b]
    """
    from .info import show_model

    show_model(file, as_json=json)


@app.command(epilog=EXIT_CODES)
def doctor(json: opt.Json = False):
    """Say what works on this machine, what is missing, and what to do about it.

    [b]emdl doctor[/b]
    """
    from .doctor import examine

    examine(as_json=json)


@app.command(epilog=EXIT_CODES)
def bench(
    samples: Annotated[int, typer.Option("--samples", metavar="N", min=1000, help="Length of the signal.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="The same seed gives the same signal.")] = 0,
    json: opt.Json = False,
):
    """Measure how fast this machine finds sparse codes, beside SciPy.

    [b]emdl bench[/b]
    [b]emdl bench --samples 30000[/b]
    """
    from .bench import measure

    measure(samples=samples, seed=seed, as_json=json)
