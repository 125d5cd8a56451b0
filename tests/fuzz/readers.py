"""The readers that are fuzzed: each takes a file and either returns or raises an error of emdl."""

import pathlib

CORPUS = pathlib.Path(__file__).with_name("corpus")


def model(path):
    import emdl

    emdl.load(path)


def spike_model(path):
    from emdl import spikes

    spikes.load(path)


def checkpoint(path):
    """The reader, and the part of `em_fit` that believes what is read."""
    import numpy as np

    from emdl import checkpoint as kept
    from emdl import course, optim, plan

    y = np.sin(np.arange(60.0))[None, None]
    made = plan.make(
        y, 2, 5, None, stride=1, m_step="decoder", n_layers=3, n_backward=None, batch_size=None, rule="gcv",
        tol_codes=1e-3, validation=None, prior=None, positive=False, learn_sigma=False, learn_dictionary=True,
        may_repair=False, may_restart=False, max_iter=3, tol=1e-3,
    )  # fmt: skip
    state = kept.read(path, "em_fit")
    run = course.restored(state, made, optim.Optimizer(), np.random.default_rng(0))
    if run.state.codes is not None:
        run.state.codes.dense()


def network(path):
    from emdl.images.network import Network

    Network.load(path)


def recording(path):
    import numpy as np

    from emdl.spikes import recordings

    said = {"dtype": "int16", "n_channels": 2} if path.suffix == ".dat" else {}
    found = recordings.read(path, default_fs=20_000.0, **said)
    np.asarray(found.data[:, :100])


def table(path):
    from emdl.spikes import tables

    tables.read(path)


def config(path):
    from emdl.cli import config as options

    options.defaults(path, "train", {"units", "seed", "plot", "band"})


def picture(path):
    from emdl.images import files

    for page in files.read(path):
        page.samples()


OURS = ("model-1.h5", "spikes-1.h5", "checkpoint-1.h5", "network-1.h5")
READERS = {
    "model-1.h5": model,
    "spikes-1.h5": spike_model,
    "checkpoint-1.h5": checkpoint,
    "network-1.h5": network,
    "recording.h5": recording,
    "recording.npy": recording,
    "recording.npz": recording,
    "recording.dat": recording,
    "recording.nwb": recording,
    "table.npz": table,
    "table.csv": table,
    "options.toml": config,
    "grey.png": picture,
    "palette.png": picture,
    "deep.png": picture,
    "colour.tif": picture,
    "colour.jpg": picture,
    "colour.webp": picture,
    "colour.bmp": picture,
}
