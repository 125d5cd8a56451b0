"""How many groups a set of snippets falls into, when the noise is known to have variance 1 in every direction."""

import numpy as np

_PRIOR = 20.0  # snippets that the prior of a covariance, the identity, counts for
_STRAY = 0.01  # least share of snippets that belong to no group


def components(x, n_dims, *, n_iter=5):
    """Return the first principal components of snippets, by subspace iteration.

    Parameters
    ----------
    x : array (n, d)
        Snippets.
    n_dims : int
        How many; fewer if the data have fewer.
    n_iter : int
        Rounds of the iteration. More make components of nearly equal variance exact, which nothing here needs.

    Returns
    -------
    mean : ndarray (d,)
    axes : ndarray (n_dims, d)
        Orthonormal.
    """
    x = np.asarray(x, np.float32)
    mean = x.mean(axis=0)
    centred = x - mean
    n_dims = min(n_dims, *x.shape)
    q = centred[np.linspace(0, len(x) - 1, min(n_dims + 4, *x.shape)).astype(int)].T
    for _ in range(n_iter):
        q = centred.T @ (centred @ np.linalg.qr(q)[0])
    q = np.linalg.qr(q)[0]
    y = (centred @ q).astype(np.float64)
    return mean, (q @ np.linalg.eigh(y.T @ y)[1][:, ::-1][:, :n_dims]).T.astype(np.float32)


def project(x, mean, axes):
    """Return the coordinates of snippets along some axes.

    Parameters
    ----------
    x : array (n, d)
        Snippets.
    mean : array (d,)
        Origin.
    axes : array (m, d)
        Orthonormal.

    Returns
    -------
    ndarray (n, m)
    """
    return (x - mean).astype(np.float32) @ axes.T


def cluster(points, largest, rng, *, n_iter=60):
    """Return the group of each point under a Gaussian mixture with a background of strays.

    It starts with `largest` groups and drops those that hold fewer points than they have parameters in one direction
    (Figueiredo and Jain [1]_), so it finds at least as many groups as there are; merging them is left to a test that
    looks at the gap between two groups.

    Parameters
    ----------
    points : array (n, d)
        Noise of variance 1 in every direction.
    largest : int
        Groups to start with.
    rng : Generator
        Chooses the first centres.
    n_iter : int
        Most iterations.

    Returns
    -------
    ndarray (n,) of int
        Label of each point, from 0; -1 for strays.

    References
    ----------
    .. [1] M. A. T. Figueiredo, A. K. Jain, Unsupervised learning of finite mixture models, IEEE Trans. PAMI 24 (2002),
       doi:10.1109/34.990138.
    """
    points = points.astype(np.float64)
    n, d = points.shape
    outer = (points[:, :, None] * points[:, None, :]).reshape(n, d * d)
    stray = -np.log(np.ptp(points, axis=0) + 1).sum()
    share = np.eye(largest)[_nearest(points, _spread_centres(points, largest, rng))]
    share = np.column_stack([share, np.zeros(n)])
    before = -np.inf
    for _ in range(n_iter):
        mass = share.sum(axis=0)
        kept = np.flatnonzero(np.append(mass[:-1] > d + 2, True))
        share, mass = share[:, kept], mass[kept]
        log = np.empty((n, len(mass)))
        log[:, -1] = np.log(max(mass[-1] / n, _STRAY)) + stray
        log[:, :-1] = _log_density(points, outer, share[:, :-1], mass[:-1]) + np.log(mass[:-1] / n)
        top = log.max(axis=1, keepdims=True)
        total = top + np.log(np.exp(log - top).sum(axis=1, keepdims=True))
        share = np.exp(log - total)
        if abs(total.sum() - before) < 1e-4 * n:
            break
        before = total.sum()
    label = share.argmax(axis=1)
    label[label == share.shape[1] - 1] = -1
    return label


def _spread_centres(points, count, rng):
    """Return centres far from one another (k-means++)."""
    chosen = [int(rng.integers(len(points)))]
    distance = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    for _ in range(min(count, len(points)) - 1):
        chosen.append(int(rng.choice(len(points), p=distance / distance.sum())) if distance.sum() > 0 else 0)
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
    return np.concatenate([points[chosen], np.repeat(points[:1], count - len(chosen), axis=0)])


def _nearest(points, centres, n_iter=8):
    """Return the nearest centre of each point after some rounds of k-means."""
    for _ in range(n_iter):
        distance = (centres**2).sum(axis=1) - 2 * points @ centres.T
        label = distance.argmin(axis=1)
        count = np.bincount(label, minlength=len(centres))[:, None]
        sums = np.zeros_like(centres)
        np.add.at(sums, label, points)
        centres = np.where(count > 0, sums / np.maximum(count, 1), centres)
    return label


def _log_density(points, outer, share, mass):
    """Return the log density of the points (n, k) under the Gaussians that their shares (n, k) describe."""
    d = points.shape[1]
    mean = share.T @ points / mass[:, None]
    second = (share.T @ outer).reshape(-1, d, d) - mass[:, None, None] * mean[:, :, None] * mean[:, None, :]
    covariance = (second + _PRIOR * np.eye(d)) / (mass + _PRIOR)[:, None, None]
    precision = np.linalg.inv(covariance)
    pulled = np.einsum("kij,kj->ki", precision, mean)
    square = outer @ precision.reshape(-1, d * d).T - 2 * points @ pulled.T + (pulled * mean).sum(axis=1)
    return -0.5 * (square + np.linalg.slogdet(covariance)[1] + d * np.log(2 * np.pi))


def discriminant(first, second):
    """Return the line along which two groups differ most for their width (Fisher), a unit vector (d,).

    Parameters
    ----------
    first, second : array (n, d), (m, d)
        Points.

    Returns
    -------
    ndarray (d,)
        From the second to the first.
    """
    apart = first.mean(axis=0) - second.mean(axis=0)
    inner = np.concatenate([first - first.mean(axis=0), second - second.mean(axis=0)])
    width = (inner.T @ inner + _PRIOR * np.eye(inner.shape[1])) / (len(inner) + _PRIOR)
    line = np.linalg.solve(width, apart)
    return line / max(np.linalg.norm(line), 1e-12)
