"""Options from a TOML file."""

import tomllib

from emdl.errors import FileFormatError, InputError

SECTIONS = ("train", "sort", "detect", "encode", "denoise")


def defaults(path, command, known):
    """Return the options of one command that a TOML file sets.

    Parameters
    ----------
    path : Path
        Keys at the top go to every command, those of a section ``[train]`` to that command alone.
    command : str
        Name of the command.
    known : set of str
        Options of the command, with underscores.

    Returns
    -------
    dict
        Option (with underscores) to value.

    Raises
    ------
    FileFormatError
        If the file is missing or no TOML.
    InputError
        If a key is no option of the command, or a section no command.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise FileFormatError(f"{path} is no TOML file: {error}") from error
    sections = {key: value for key, value in table.items() if isinstance(value, dict)}
    for key in sections:
        if key not in SECTIONS:
            raise InputError(f"{path}: unknown section [{key}]; wanted one of [{'], ['.join(SECTIONS)}]")
    top = {key: value for key, value in table.items() if key not in sections}
    options = {}
    for key, value in (top | sections.get(command, {})).items():
        name = key.replace("-", "_")
        if name not in known - {"config", "help"}:
            listed = ", ".join(sorted(known - {"config", "help"}))
            raise InputError(f"{path}: emdl {command} has no option {key!r}; it has {listed}")
        options[name] = value
    return options
