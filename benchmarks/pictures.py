"""Photographs, noise and scores that the benchmarks of denoising share."""

import pathlib
import zlib

import numpy as np

DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "images"


def photographs(folder):
    """Return the PNG files of a folder as {name: (H, W) of float64, 0 ... 255}; colour becomes grey."""
    from PIL import Image

    files = sorted(pathlib.Path(folder).glob("*.png"))
    if not files:
        raise SystemExit(f"there are no PNG files in {folder}; give a folder of photographs")
    return {file.stem: np.asarray(Image.open(file).convert("L"), np.float64) for file in files}


def noisy(image, sigma, name):
    """Return an image with white noise, neither clipped nor rounded; its seed is that of the level and the name."""
    seed = [20240501, int(sigma), zlib.crc32(f"{name}.png".encode())]
    return image + np.random.default_rng(seed).normal(0, sigma, image.shape)


def psnr(estimate, truth):
    """Return the peak signal-to-noise ratio, dB, of an estimate clipped to 0 ... 255."""
    return float(10 * np.log10(255**2 / np.mean((np.clip(estimate, 0, 255) - truth) ** 2)))


def cosines(size):
    """Return the atoms of the two-dimensional discrete cosine transform, (size^2, 1, size, size), low to high."""
    k = np.arange(size)
    one = np.cos(np.pi * np.outer(k, k + 0.5) / size)
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    atoms = np.einsum("ai,bj->abij", one, one).reshape(-1, 1, size, size)
    return atoms[np.argsort(np.add.outer(k, k).ravel(), kind="stable")]
