"""Output files: checked before the work begins, written whole or not at all."""

import os

from emdl.errors import FileFormatError, InputError


def check_outputs(paths, *, force, inputs=()):
    """Raise unless every output can be written.

    Parameters
    ----------
    paths : iterable of Path
        The outputs.
    force : bool
        Let outputs exist; they are replaced later.
    inputs : iterable of Path
        What is read: no output may be one of these, whatever `force` says.

    Raises
    ------
    InputError
        If an output exists and `force` is not set, is an input, or is a folder.
    FileFormatError
        If the folder of an output is missing or cannot be written.
    """
    paths = list(paths)
    taken = [path for path in paths if path.exists()]
    for path in taken:
        if path.is_dir() and not _of_phy(path):
            raise InputError(f"{path} is a folder; name a file")
        if any(source.exists() and path.samefile(source) for source in inputs):
            raise InputError(f"{path} is both read and written; choose another -o")
    for folder in {path.parent for path in paths}:
        _check_folder(folder)
    if taken and not force:
        verb = "exists" if len(taken) == 1 else "exist"
        raise InputError(f"{', '.join(map(str, taken))} {verb}; overwrite with --force or choose another -o")


def _of_phy(path):
    """Return whether a folder is one for phy, which may be replaced, or empty."""
    return not path.suffix and ((path / "params.py").is_file() or not any(path.iterdir()))


def _check_folder(folder):
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise FileFormatError(f"cannot write to {folder}: it {what}; make it first or choose another -o")
    probe = folder / f".emdl-{os.getpid()}.part"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FileFormatError(f"cannot write to {folder}: {error.strerror}; choose another -o") from error


def check_checkpoint(path, *, resume, force):
    """Raise if a checkpoint would be overwritten; an old one is removed if that was asked for.

    Parameters
    ----------
    path : Path
        The checkpoint.
    resume : bool
        It is to be gone on from.
    force : bool
        It may be replaced.

    Raises
    ------
    InputError
        If it exists and neither is set.
    """
    if path.exists() and not resume:
        if not force:
            raise InputError(
                f"{path} is left of a run that was interrupted; go on from it with --resume, or start anew with --force"
            )
        path.unlink()


def replacing(path):
    """Give the name of a temporary file beside `path`, which takes its place once it is whole and on the disk.

    Parameters
    ----------
    path : Path
        The output; it keeps its old content until the new one is complete.

    Returns
    -------
    context manager
        Of a Path with the same ending, as writers choose the format by it.
    """
    from emdl import storage

    return storage.replacing(path)


def save_sorting(path, result):
    """Write a sorting to a file, or to a folder for phy, whole or not at all; what stood there is replaced.

    Parameters
    ----------
    path : Path
        As `emdl.spikes.Sorting.save` takes it.
    result : Sorting
        The sorting.
    """
    import shutil

    if path.suffix:
        with replacing(path) as part:
            result.save(part)
        return
    if path.is_dir():
        shutil.rmtree(path)
    result.save(path)
