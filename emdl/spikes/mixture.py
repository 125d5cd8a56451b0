"""How many groups a set of snippets falls into, when the noise is known to have variance 1 in every direction."""

import numpy as np

_FLOOR = 0.5  # smallest variance of a group along a line; the noise has 1
_PRIOR = 20.0  # snippets that the prior of a covariance, the identity, counts for
_WIDTH = 0.4  # of the smoothing of a density, noise standard deviations, for a group of 100
_ALONE = 200_000  # multiplications of a matrix product that BLAS makes in one thread
_STRAY = 0.01  # least share of snippets that belong to no group


def components(x, n_dims, *, n_iter=6):
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
    mean = x.mean(axis=0, dtype=np.float64)
    centred = x - mean
    n_dims = min(n_dims, *x.shape)
    q = centred[np.linspace(0, len(x) - 1, min(n_dims + 4, *x.shape)).astype(int)].T
    pieces = _pieces(centred, q.size)
    for _ in range(n_iter):
        q = np.linalg.qr(q)[0]
        q = sum(piece.T @ (piece @ q) for piece in pieces)
    q = np.linalg.qr(q)[0]
    small = sum((y.T @ y for y in (piece @ q for piece in pieces)), np.zeros((q.shape[1], q.shape[1])))
    return mean, (q @ np.linalg.eigh(small)[1][:, ::-1][:, :n_dims]).T


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
    return np.concatenate([(piece - mean) @ axes.T for piece in _pieces(x, axes.size)])


def _pieces(x, size):
    """Return the rows of a matrix in pieces whose product with a matrix of `size` numbers BLAS makes in one thread.

    It shares larger products among threads, which wait for each other long where other programs keep the cores busy.
    """
    rows = max(1, _ALONE // max(size, 1))
    return [x[i : i + rows] for i in range(0, len(x), rows)]


def _times(a, b):
    """Return a b^T for matrices (n, d) and (m, d), in this thread; see `_pieces`."""
    return np.einsum("nd,md->nm", a, b)


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
        distance = (centres**2).sum(axis=1) - 2 * _times(points, centres)
        label = distance.argmin(axis=1)
        count = np.bincount(label, minlength=len(centres))[:, None]
        sums = np.zeros_like(centres)
        np.add.at(sums, label, points)
        centres = np.where(count > 0, sums / np.maximum(count, 1), centres)
    return label


def _log_density(points, outer, share, mass):
    """Return the log density of the points (n, k) under the Gaussians that their shares (n, k) describe."""
    d = points.shape[1]
    mean = _times(share.T, points.T) / mass[:, None]
    second = _times(share.T, outer.T).reshape(-1, d, d) - mass[:, None, None] * mean[:, :, None] * mean[:, None, :]
    covariance = (second + _PRIOR * np.eye(d)) / (mass + _PRIOR)[:, None, None]
    precision = np.linalg.inv(covariance)
    pulled = np.einsum("kij,kj->ki", precision, mean)
    square = _times(outer, precision.reshape(-1, d * d)) - 2 * _times(points, pulled) + (pulled * mean).sum(axis=1)
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


def gap(values, upper=None, *, n_iter=50):
    """Return how well one line of points falls into two groups.

    Two Gaussians are fitted by EM.

    Parameters
    ----------
    values : array (n,)
        Points on a line; the noise has variance 1.
    upper : array (n,) of bool, optional
        Groups to start from; by default those on either side of the threshold that makes them narrowest.
    n_iter : int
        Most iterations.

    Returns
    -------
    valley : float
        Lowest density between the medians of the groups over the density at the lower of these: 0 for groups far apart,
        1 for one group. The density is that of the points, smoothed; tails that no Gaussian has do not matter.
    gain : float
        How much better two Gaussians are than one, in units of BIC; negative if they are worse.
    upper : ndarray (n,) of bool
        Points of the upper group.
    """
    n, x = len(values), np.asarray(values, dtype=np.float64)
    upper = x > _threshold(x) if upper is None else upper
    parts = (x[~upper], x[upper])
    mean, variance = np.array([p.mean() for p in parts]), np.array([max(p.var(), _FLOOR) for p in parts])
    weight = np.array([len(p) for p in parts]) / n
    before = -np.inf
    for _ in range(n_iter):
        scale = np.log(weight) - 0.5 * np.log(2 * np.pi * variance)
        log = scale[:, None] - 0.5 * (x - mean[:, None]) ** 2 / variance[:, None]
        total = np.logaddexp(log[0], log[1])
        share = np.exp(log - total)
        mass = share.sum(axis=1) + 1e-9
        weight, mean = mass / n, share @ x / mass
        variance = np.maximum((share * (x - mean[:, None]) ** 2).sum(axis=1) / mass, _FLOOR)
        if total.sum() - before < 1e-3:
            break
        before = total.sum()
    single = max(x.var(), _FLOOR)
    gain = 2 * (total.sum() + 0.5 * n * np.log(2 * np.pi * single) + 0.5 * n * x.var() / single) - 3 * np.log(n)
    upper = share[int(mean.argmax())] > 0.5
    return _valley(x, upper), float(gain), upper


def _valley(x, upper):
    """Return the lowest density of points between the medians of two groups, over the density at the lower of these."""
    small = min(upper.sum(), (~upper).sum())
    if small < 2:
        return 1.0
    ends = np.median(x[~upper]), np.median(x[upper])
    width = _WIDTH * np.clip((100 / small) ** 0.2, 0.75, 1.75)
    line = np.linspace(*ends, 41)
    density = np.exp(-0.5 * ((line[:, None] - x) / width) ** 2).sum(axis=1)
    return float(density.min() / min(density[0], density[-1]))


def _threshold(x):
    """Return the threshold that makes the groups on either side narrowest (Otsu)."""
    order, below = np.sort(x), np.arange(1, len(x))
    sums = np.cumsum(order)
    mean = sums[:-1] / below, (sums[-1] - sums[:-1]) / (len(x) - below)
    cut = int((below * (len(x) - below) * (mean[0] - mean[1]) ** 2).argmax())
    return (order[cut] + order[cut + 1]) / 2 if order[cut] < order[cut + 1] else order[cut + 1] - 1e-12
