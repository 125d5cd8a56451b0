"""The directions in the space of colours along which an image is denoised one by one."""

import numpy as np


def principal(samples):
    """Return the principal directions of colours, which turn channels into planes that are not correlated.

    Being orthonormal they leave white noise white, with the same standard deviation in every plane. For a photograph
    they are close to luminance and two differences of colours; for channels that have nothing in common, close to the
    channels themselves. Which they are is found from the image, noise and all: white noise does not turn them.

    Parameters
    ----------
    samples : array (C, n)
        Colours of some pixels.

    Returns
    -------
    ndarray (C, C) of float64
        A direction in each row, the one with the largest variance first; the largest entry of each is positive.
    """
    _, vectors = np.linalg.eigh(np.cov(samples.astype(np.float64), ddof=0).reshape(len(samples), -1))
    basis = vectors.T[::-1]
    largest = np.take_along_axis(basis, np.abs(basis).argmax(axis=1)[:, None], axis=1)
    return basis * np.where(largest < 0, -1.0, 1.0)
