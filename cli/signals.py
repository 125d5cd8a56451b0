"""Interrupts: what is under way is brought to an end, saved, and the exit code says what happened."""

import contextlib
import signal
import threading

from . import screen


class Stopped(BaseException):
    """The process was asked to end by a signal.

    Attributes
    ----------
    exit_code : int
        128 and the number of the signal, as a shell reports it.
    """

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


_ASKED = (signal.SIGINT, signal.SIGTERM)
_heard: list[int] = []  # since the command began; what a handler raises is lost in a destructor or a callback from C


@contextlib.contextmanager
def _handled(handler):
    """Let `handler` answer both signals in this context; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in _ASKED if signal.getsignal(number) != signal.SIG_IGN]  # nohup, and & in a script
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def raising():
    """Give a context in which both signals raise `Stopped`, so that whatever is open is cleaned up."""
    _heard.clear()

    def stop(number, _):
        _heard.append(number)
        raise Stopped(number)

    with _handled(stop):
        yield
        _stop_if_asked()


def _stop_if_asked():
    if _heard:
        raise Stopped(_heard[0])


@contextlib.contextmanager
def after_the_iteration(callback):
    """Put signals off to the end of an iteration; the second one, or one before the first iteration, stops at once.

    Parameters
    ----------
    callback : callable or None
        To be called after each iteration.

    Yields
    ------
    callable
        To be called instead; it raises `Stopped` if a signal came.
    """
    _stop_if_asked()
    iterations = []

    def note(number, _):
        _heard.append(number)
        if len(_heard) > 1 or not iterations:
            raise Stopped(number)
        screen.say("finishing this iteration, then saving; once more stops at once")

    def end_of_iteration(progress):
        iterations.append(progress)
        del iterations[:-1]
        if callback is not None:
            callback(progress)
        _stop_if_asked()

    with _handled(note):
        yield end_of_iteration
    _stop_if_asked()
