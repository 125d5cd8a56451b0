"""The layered denoiser in plain NumPy, float64, dense: slow and clear."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def patches(image, stride):
    """Return the patches of an image (C, H, W), a row each."""
    windows = sliding_window_view(image, (8, 8), axis=(1, 2))[:, ::stride, ::stride]
    return windows.transpose(1, 2, 0, 3, 4).reshape(windows.shape[1] * windows.shape[2], -1)


def draw(codes, atoms, shape, stride):
    """Return the image (C, H, W) that codes (positions, K) make with atoms (K, C * 64)."""
    C, H, W = shape
    rows, columns = (H - 8) // stride + 1, (W - 8) // stride + 1
    made, out = (codes @ atoms).reshape(rows, columns, C, 8, 8), np.zeros(shape)
    for i in range(8):
        for j in range(8):
            part = made[..., i, j].transpose(2, 0, 1)
            out[:, i : i + stride * rows : stride, j : j + stride * columns : stride] += part
    return out


def run(y, analysis, synthesis, tau, stride):
    """Return output and last codes for an image (C, H, W) in units of the noise."""
    y = np.asarray(y, np.float64)
    T, K = tau.shape
    A, B = (np.asarray(x, np.float64).reshape(T, K, -1) for x in (analysis, synthesis))
    z = np.zeros((patches(y, stride).shape[0], K))
    for t in range(T):
        residual = y - draw(z, B[t - 1], y.shape, stride) if t else y
        u = z + patches(residual, stride) @ A[t].T
        z = np.sign(u) * np.maximum(np.abs(u) - tau[t], 0)
    return draw(z, B[-1], y.shape, stride), z


def random_network(rng, *, n_atoms=32, n_layers=3, n_channels=1, stride=2):
    """Return a network whose atoms and thresholds all differ and whose codes do not grow."""
    from emdl.images.network import Network
    from emdl.images.training import start_network

    net = start_network(n_atoms, n_layers, n_channels, stride=stride, rng=0)
    changed = [x + 0.1 * np.abs(x).mean() * rng.standard_normal(x.shape) for x in (net.analysis, net.synthesis)]
    return Network(*changed, np.abs(net.tau * (1 + 0.3 * rng.standard_normal(net.tau.shape))), stride)
