"""The errors that emdl raises on purpose."""


class EmdlError(Exception):
    """Base of all errors that emdl raises on purpose; the command line prints it as one sentence."""


class InputError(EmdlError, ValueError):
    """An argument has a value that makes no sense; the message says what was got, what was wanted, what to do."""


class InputTypeError(EmdlError, TypeError):
    """An argument has the wrong type, for instance a complex array or NumPy mixed with CuPy."""


class FileFormatError(EmdlError, OSError):
    """A file is missing, damaged or not what its name promises."""


class ConvergenceWarning(UserWarning):
    """A result is returned that does not meet the tolerance asked for; the message names the tolerance reached."""
