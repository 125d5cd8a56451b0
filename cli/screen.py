"""What a person sees: notes and progress on standard error, results on standard output."""

import contextlib
import io
import json
import logging
import os
import sys
import time
import warnings

import typer

from emdl.text import printable

CLOSED_PIPE = 141  # what a shell reports of a program that SIGPIPE ended


def open_streams():
    """Make sure that there is somewhere to write to, and that every name can be written."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started this; what is opened next would take its place
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.closed:
        sys.stdout.reconfigure(errors="backslashreplace")  # a character that the encoding lacks is written out


def say(text):
    """Print one line for the person, on standard error; what would command the terminal is written out."""
    print("emdl:", printable(" ".join(str(text).split())), file=sys.stderr)


def escape(text):
    """Return text from outside, a name or a message, so that it is shown as it is: no markup, no escape sequences."""
    from rich.markup import escape

    return escape(printable(text))


def put(text):
    """Print a result on standard output; leave quietly if its reader has gone.

    Raises
    ------
    typer.Exit
        If standard output is a closed pipe.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError as error:
        give_up_output()
        raise typer.Exit(CLOSED_PIPE) from error


def give_up_output():
    """Point standard output to nowhere, so that the interpreter can flush it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def put_json(result):
    """Print a result as one JSON object in one line; NaN, which JSON has no word for, becomes null."""
    put(json.dumps(_plain(result), allow_nan=False))


def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


class _Notes(logging.Handler):
    def emit(self, record):
        say(record.getMessage())


@contextlib.contextmanager
def notes(*, quiet):
    """Show what the package logs and warns of as lines on standard error.

    Parameters
    ----------
    quiet : bool
        Show nothing.
    """
    logger, handler = logging.getLogger("emdl"), _Notes(logging.WARNING)
    if quiet:
        handler = logging.NullHandler()
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_nothing if quiet else _show_warning
            yield
    finally:
        logger.propagate = before
        logger.removeHandler(handler)


def _show_warning(message, *_):
    say(f"warning: {message}")


def _show_nothing(*_):
    pass


def name_device(device, *, quiet):
    """Say where is computed, if anything but the CPU was asked for.

    Parameters
    ----------
    device : str
        ``cpu``, ``cuda`` or ``auto``.
    quiet : bool
        Say nothing.

    Raises
    ------
    DeviceError
        If ``cuda`` was asked for and is not there.
    """
    from emdl.device import choose

    _, sentence = choose(device)
    if device != "cpu" and not quiet:
        say(sentence)


def compile_notice(*, quiet):
    """Return a context that says once that kernels are compiled, at the first one that is not in numba's cache.

    Parameters
    ----------
    quiet : bool
        Say nothing.

    Returns
    -------
    context manager
    """
    from numba.core import event

    class Notice(event.Listener):
        said = quiet

        def on_start(self, event):
            if not self.said:
                self.said = True
                kept = getattr(event.data["dispatcher"].stats, "cache_path", None)
                when = (
                    "once per version" if kept else "in every run: their cache cannot be written, set NUMBA_CACHE_DIR"
                )
                say(f"compiling kernels, which happens {when} and takes some seconds ...")

        def on_end(self, event):
            pass

    return event.install_listener("numba:compile", Notice())


def console(stream=None):
    """Return a rich console on standard output, or on another stream."""
    from rich.console import Console

    return Console(file=stream or sys.stdout, highlight=False, soft_wrap=False)


def put_renderables(*parts):
    """Print tables and lines of markup on standard output; a line is left whole, so that it can be copied."""
    screen = console()
    with screen.capture() as captured:
        for part in parts:
            screen.print(part, soft_wrap=isinstance(part, str))
    put(captured.get().rstrip("\n"))


@contextlib.contextmanager
def learning(*, quiet):
    """Show the progress of EM: a live bar in a terminal, short lines elsewhere, nothing if `quiet`.

    Yields
    ------
    callable or None
        To be called with the state of every iteration.
    """
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _live_bar() as callback:
            yield callback
    else:
        yield _Lines()


def _values(state):
    """Return what an iteration looks like, in one line."""
    return (
        f"objective {state.objective:.5g}, {state.n_nonzero:,} non-zeros, "
        f"lambda {_span(state.lmbd)}, sigma {state.sigma:.3g}"
    )


def _span(values):
    """Return a number as text, or the range of several."""
    flat = values.ravel().tolist() if hasattr(values, "ravel") else [values]
    low, high = f"{min(flat):.3g}", f"{max(flat):.3g}"
    return low if low == high else f"{low} to {high}"


class _Lines:
    """Print an iteration as a line, at most one every two seconds, and always the first and the last."""

    def __init__(self, every=2.0):
        self.every, self.last = every, -every

    def __call__(self, state):
        now = time.monotonic()
        if now - self.last >= self.every or state.iteration in (1, state.max_iter):
            self.last = now
            left = clock(state.seconds / state.iteration * (state.max_iter - state.iteration))
            say(f"iteration {state.iteration} of at most {state.max_iter}, at most {left} left: {_values(state)}")


@contextlib.contextmanager
def searching(*, quiet):
    """Show the progress of a search for spikes: a bar in a terminal, a line every few seconds elsewhere.

    Yields
    ------
    callable or None
        To be called with an `emdl.spikes.streaming.Searched` after every block.
    """
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _search_bar() as callback:
            yield callback
    else:
        yield _SearchLines()


class _SearchLines:
    """Print how far a search has come, every five seconds; one that is over sooner says nothing."""

    def __init__(self, every=5.0):
        self.every, self.last = every, time.monotonic()

    def __call__(self, state):
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            say(
                f"searched {clock(state.done_s)} of {clock(state.total_s)}: {state.n_spikes:,} spikes, "
                f"about {clock(state.left)} left"
            )


def clock(seconds):
    """Return a duration as text: 1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def _search_bar():
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("searching"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console(sys.stderr),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=None)

        def show(state):
            words = f"{clock(state.done_s)} of {clock(state.total_s)}, {state.n_spikes:,} spikes"
            bar.update(task, description=words, total=state.total_s, completed=state.done_s)

        yield show


@contextlib.contextmanager
def _live_bar():
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("at most"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    task = bar.add_task("filtering, first guess", total=None)
    with Live(bar, console=console(sys.stderr), transient=True, refresh_per_second=8) as live:

        def show(state):
            bar.update(task, description="learning", total=state.max_iter, completed=state.iteration)
            live.update(Group(bar, Text(f"  {_values(state)}", style="dim")))

        yield show
