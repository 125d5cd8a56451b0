"""Write the corpus of the fuzzing: a small file of each kind and format version that emdl reads.

    python tests/fuzz/make_corpus.py

Files that exist stay: those of an old format version can no longer be made, and say whether it is still read.
"""

import numpy as np
from PIL import Image
from readers import CORPUS

from emdl import Model, checkpoint, em_fit, simulate, spikes
from emdl.spikes import tables


def new(name):
    """Return the path if the file is not there yet."""
    return None if (CORPUS / name).exists() else CORPUS / name


def models():
    rng = np.random.default_rng(0)
    D = rng.standard_normal((2, 2, 5)).astype(np.float32)
    if path := new("model-1.h5"):
        Model(D, [1.5, 2.5], 0.5, True, (2,), {"fs": 15000.0, "name": "café", "noise": np.arange(2.0)}).save(path)
    if path := new("checkpoint-1.h5"):
        y = np.sin(np.arange(60.0))[None, None] + 0.1 * rng.standard_normal((1, 1, 60))
        em_fit(y, 2, 5, D0=D[:, :1], max_iter=2, m_step="decoder", n_layers=3, rng=0, checkpoint=path)
        checkpoint.read(path, "em_fit")

    if path := new("network-1.h5"):
        from emdl.images.training import start_network

        start_network(32, 1, rng=0).save(path, dtype=np.float16)


def recordings():
    import h5py

    made = simulate.tetrode(1.0, 2, n_channels=2, fs=10_000.0, rate_hz=(20, 30), peak_uv=(200, 400), rng=1)
    data = np.round(10 * made.data).astype(np.int16)[:, :600]
    if path := new("recording.npy"):
        np.save(path, data)
    if path := new("recording.npz"):
        np.savez_compressed(path, data=data, fs=10_000.0)
    if path := new("recording.dat"):
        data.T.tofile(path)
    if path := new("recording.h5"):
        with h5py.File(path, "w") as file:
            file.create_dataset("data", data=data, chunks=(2, 200), compression="gzip").attrs["fs"] = 10_000.0
    if path := new("recording.nwb"):
        with h5py.File(path, "w") as file:
            series = file.create_group("acquisition/ElectricalSeries")
            series.attrs["neurodata_type"] = "ElectricalSeries"
            values = series.create_dataset("data", data=data.T)
            values.attrs["conversion"], values.attrs["unit"] = 1e-7, "volts"
            series.create_dataset("starting_time", data=0.0).attrs["rate"] = 10_000.0
    if path := new("spikes-1.h5"):
        model = spikes.fit(made.data, made.fs, max_iter=2, window_ms=1.5)
        model.save(path)
        found = spikes.detect(made.data[:, :2000], model)
        tables.write(CORPUS / "table.npz", found)
        tables.write(CORPUS / "table.csv", found)


def pictures():
    rng = np.random.default_rng(2)
    colour = rng.integers(0, 256, (9, 7, 3), np.uint8)
    images = {
        "grey.png": Image.fromarray(colour[..., 0]),
        "palette.png": Image.fromarray(colour).quantize(8),
        "deep.png": Image.fromarray(rng.integers(0, 2**16, (9, 7), np.uint16)),
        "colour.tif": Image.fromarray(colour),
        "colour.jpg": Image.fromarray(colour),
        "colour.webp": Image.fromarray(colour),
        "colour.bmp": Image.fromarray(colour),
    }
    for name, image in images.items():
        if path := new(name):
            image.save(path)


if __name__ == "__main__":
    CORPUS.mkdir(exist_ok=True)
    models()
    recordings()
    pictures()
    if path := new("options.toml"):
        path.write_text("seed = 5\nplot = false\n[train]\nunits = 3\nband = [400.0, 5000.0]\n[detect]\nfs = 1\n")
