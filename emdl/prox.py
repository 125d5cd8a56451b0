"""Soft threshold: the proximal operator of the l1 norm, and the ReLU of the paper's network."""

from emdl.backend import array_module


def shrink(u, theta, *, positive=False):
    r"""Return the soft threshold of `u`.

    .. math:: \mathrm{shrink}(u, \theta) = \mathrm{sign}(u) \max(|u| - \theta, 0)

    or, with codes kept non-negative, :math:`\max(u - \theta, 0)`.

    Parameters
    ----------
    u : array
        Values, data unit.
    theta : float or array that broadcasts against `u`
        Threshold, data unit, >= 0. A large value sets more codes to zero and takes more off the others.
    positive : bool
        One-sided: codes >= 0.

    Returns
    -------
    array
        Shape of `u`.
    """
    xp = array_module(u)
    if positive:
        return xp.maximum(u - theta, 0)
    return xp.sign(u) * xp.maximum(xp.abs(u) - theta, 0)


def shrink_backward(g_z, z):
    r"""Return the gradients with respect to `u` and `theta`, given z = shrink(u, theta) and the gradient of `z`.

    .. math:: g_u = g_z\,[z \ne 0], \qquad g_\theta = -g_z\,\mathrm{sign}(z)

    Parameters
    ----------
    g_z, z : array
        Gradient and value of the codes, one shape.

    Returns
    -------
    g_u, g_theta : array
        Shape of `z`; `g_theta` is not yet summed over the codes that share a threshold.
    """
    xp = array_module(g_z, z)
    return g_z * (z != 0), -g_z * xp.sign(z)
