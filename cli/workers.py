"""The workers of Dask that a command computes on."""

import contextlib

from . import screen


@contextlib.contextmanager
def of(where, *, quiet):
    """Give a client of the cluster for as long as the context lasts, and say where it can be watched.

    Parameters
    ----------
    where : str or None
        ``local:N``, ``tcp://host:port``, or None.
    quiet : bool
        Say nothing.

    Yields
    ------
    distributed.Client or None

    Raises
    ------
    EmdlError
        If there is no such cluster, or it cannot be used.
    """
    if where is None:
        yield None
        return
    from emdl import cluster

    with cluster.connect(where) as client:
        cluster.check(client)
        if not quiet:
            screen.say(cluster.describe(client))
        yield client
