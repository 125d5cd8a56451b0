"""Text from file names and files, made safe to show."""

import unicodedata

_UNSEEN = {"Cc", "Cs", "Zl", "Zp"}  # controls, halves of characters, separators of lines
_TURNING = {*"\u061c\u200e\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def printable(text):
    r"""Return text in which no character is a command to a terminal, to a browser or to an XML parser.

    Parameters
    ----------
    text : object
        What is to be shown, such as the name of a file: escape sequences, line breaks, marks that turn the direction of
        writing, and bytes that are no UTF-8 can stand in one.

    Returns
    -------
    str
        With each such character written out, ``\x1b`` for escape. It is not marked up for HTML.
    """
    return "".join(_written_out(c) if _is_command(c) else c for c in str(text))


def _is_command(c):
    return unicodedata.category(c) in _UNSEEN or c in _TURNING


def _written_out(c):
    return c.encode("unicode_escape").decode("ascii")
