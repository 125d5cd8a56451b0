r"""Spikes on top of each other: what one spike does not explain is tried as two, found together.

Taking the most probable spike first fails where two spikes come within a few samples: their sum looks more like a third
unit, or like one of them at a wrong place, than like either, and no step that changes one spike alone leads out of
that. So each spike in whose window more is left over than noise is put back, and all pairs of units at all pairs of
places near it are tried. With the products u = (u_1, u_2), the Gram matrix G of the two templates, and amplitudes
a ~ N(m, V), the log odds of both against none are

    max_a [a.u - a.G a / 2 - (a - m).V^-1 (a - m) / 2] - log det(I + V G) / 2 + logit_1 + logit_2,                  (S4)

which is (S1) for one spike. Two spikes near each other are put back and tried together too.

A pair takes the place of what was there if it is more probable. Spikes of one unit differ in shape by some hundredths
of their size, which adds to the noise; what is gained in likelihood is divided by its variance, so that a second spike
is not found in what a large one leaves over.
"""

import math

import numpy as np

from emdl._kernels.compiler import jit, part
from emdl.spikes import kernels
from emdl.spikes.groups import VARIETY
from emdl.spikes.kernels import LEAST, LOGIT, MEAN, PRODUCT, VARIANCE, best_of, judge, shift_products

_PASSES = 2  # times that spikes are looked through, the second time near those that changed
_MORE = 1.0  # standard deviations of the energy of noise, above which something is left over
_WINDOW = (0.5, 2.0)  # duration units of a waveform in which that is looked for
_SKIPPED = 0.8  # of the least product of a unit; one whose products do not come to that is in no pair
_PROMISE = 0.7  # of what one spike explains, that two must explain, each on its own and added up
_STEP = 2  # samples between places tried for the first spike of a pair
_FAIR = 0.8  # of the best value at whole samples, above which a pair of units is tried at parts of a sample
_MOVES = 25  # by a part of a sample, at most, on the way to the best places
_FELT = 1.0  # standard deviations of the noise, that a spike must add to the product of another to be tried with it
_BESIDE = 6  # spikes on either side that are looked at for one that is near


def resolve(x, P, ready, found, unit_length):
    """Return spikes with those replaced that are better explained as pairs.

    Parameters
    ----------
    x : ndarray (C, N) of float32
        Whitened signal.
    P : ndarray (K, n) of float32
        What `kernels.decide` has made of its products with the templates. Changed.
    ready : decision.Bank
        The units, with the variance of a sample of noise.
    found : tuple of ndarray
        Time, unit, shift, amplitude and odds of the spikes, by increasing time.
    unit_length : int
        Duration unit, samples.

    Returns
    -------
    tuple of ndarray
        As `found`.
    """
    if P.shape[1] < 2 * unit_length:
        return found
    fresh = np.ones(P.shape[1], np.bool_)
    first, last = (min(round(part * unit_length), ready.templates.shape[3]) for part in _WINDOW)
    left = np.empty_like(x)
    for _ in range(_PASSES):
        np.copyto(left, x)
        kernels.subtract(left, ready.templates, ready.near, found[1], found[2], found[0], found[3])
        suspect = excess(left, ready.near, found[1], found[0], first, last, ready.density) > _MORE
        suspect &= fresh[found[0]]
        fresh[:] = False
        found = reconsider(P, ready.known, ready.gram, ready.friends, *found, suspect, unit_length // 2, fresh)
        order = np.argsort(found[0], kind="stable")
        found = tuple(values[order] for values in found)
        if not fresh.any():
            break
    return found


@jit
def excess(r, near, unit, time, first, last, density):
    """Return the energy of a residual in samples [first, last) of each spike, less that of noise, over its spread."""
    out = np.empty(len(time))
    for i in range(len(time)):
        k, energy, count = unit[i], 0.0, 0
        for c in near[k]:
            if c < 0:
                break
            for t in range(time[i] + first, time[i] + last):
                energy += r[c, t] * r[c, t]
            count += last - first
        n = count * density  # directions of noise of variance 1 in these samples
        out[i] = (energy - n) / math.sqrt(2 * n)
    return out


@part
def joint(u1, u2, g, first, second):
    """Return the log odds (S4) of two spikes, and their amplitudes."""
    m1, m2, v1, v2 = first[MEAN], second[MEAN], first[VARIANCE], second[VARIANCE]
    b1, b2, q1, q2 = u1 + m1 / v1, u2 + m2 / v2, 1 + 1 / v1, 1 + 1 / v2
    det = q1 * q2 - g * g
    a1, a2 = (q2 * b1 - g * b2) / det, (q1 * b2 - g * b1) / det
    if a1 < LEAST * m1 or a2 < LEAST * m2:
        return -1e30, a1, a2
    value = b1 * a1 + b2 * a2 - m1 * m1 / v1 - m2 * m2 / v2 - math.log(det * v1 * v2)
    return 0.5 * value + first[LOGIT] + second[LOGIT], a1, a2


@part
def product_at(P, k, t, f, F):
    """Return the product of a unit at a place and part of a sample, off a parabola."""
    o = (f - F // 2) / F
    if o == 0 or t == 0 or t == P.shape[1] - 1:
        return float(P[k, t])
    return P[k, t] + 0.5 * o * (P[k, t + 1] - P[k, t - 1]) - 0.5 * o * o * (2 * P[k, t] - P[k, t - 1] - P[k, t + 1])


@part
def cross(gram, seat, k, t, f, j, t2, f2):
    """Return the product of two templates at their places and parts of a sample."""
    F, d = gram.shape[1], f - f2
    if d > F // 2:
        d, t = d - F, t + 1
    elif d < -(F // 2):
        d, t = d + F, t - 1
    lag = t2 - t + gram.shape[3] // 2
    if seat[k, j] < 0 or lag < 0 or lag >= gram.shape[3]:
        return 0.0
    return float(gram[k, d + F // 2, seat[k, j], lag])


@part
def odds_of_pair(P, known, gram, seat, k, x, j, y):
    """Return the log odds of two spikes at places x, y that count parts of a sample, and their amplitudes."""
    F = gram.shape[1]
    t, f, t2, f2 = x // F, x % F, y // F, y % F
    g = cross(gram, seat, k, t, f, j, t2, f2)
    return joint(product_at(P, k, t, f, F), product_at(P, j, t2, f2, F), g, known[k], known[j])


@part
def whole_samples(P, known, gram, seat, k, j, low, high, row):
    """Return the best value, twice (S4) but for constants, and places of two units at whole samples [low, high]."""
    best, best_t, best_t2, count = np.float32(0), low, low, high - low + 1
    one = np.float32(1)
    q1, q2 = one + one / known[k, VARIANCE], one + one / known[j, VARIANCE]
    more1, more2, q12 = known[k, MEAN] / known[k, VARIANCE], known[j, MEAN] / known[j, VARIANCE], q1 * q2
    second, zero = P[j, low : high + 1], np.zeros(count, np.float32)
    for t in range(low, high + 1, _STEP):
        b1, start = P[k, t] + more1, low - t + gram.shape[3] // 2
        g = gram[k, gram.shape[1] // 2, seat[k, j], start : start + count] if seat[k, j] >= 0 else zero
        for i in range(count):
            b2 = second[i] + more2
            a1, a2 = q2 * b1 - g[i] * b2, q1 * b2 - g[i] * b1
            value = (b1 * a1 + b2 * a2) / (q12 - g[i] * g[i])
            row[i] = value if min(a1, a2) > 0 else np.float32(0)
        for i in range(count):
            if row[i] > best:
                best, best_t, best_t2 = row[i], t, low + i
    return best, best_t, best_t2


@part
def refined(P, known, gram, seat, k, t, j, t2, low, high):
    """Return odds, places that count parts of a sample, and amplitudes of a pair, moved to the best places nearby."""
    F = gram.shape[1]
    x, y = t * F + F // 2, t2 * F + F // 2
    best, a1, a2 = odds_of_pair(P, known, gram, seat, k, x, j, y)
    for _ in range(_MOVES):
        better, from_x, from_y = False, x, y
        for dx in range(-1, 2):
            for dy in range(-1, 2):
                to_x, to_y = from_x + dx, from_y + dy
                if (dx == 0 and dy == 0) or min(to_x, to_y) < low * F or max(to_x, to_y) >= (high + 1) * F:
                    continue
                odds, b1, b2 = odds_of_pair(P, known, gram, seat, k, to_x, j, to_y)
                if odds > best + 1e-6:
                    best, a1, a2, x, y, better = odds, b1, b2, to_x, to_y, True
        if not better:
            break
    return best, x, y, a1, a2


@part
def likelihood(u, mean, variance):
    """Return the log odds that a spike of a unit is there, but for the prior, from its product."""
    return 0.5 * u * u - 0.5 * (u - mean) ** 2 / (1 + variance) - 0.5 * math.log(1 + variance)


@part
def best_pair(P, known, gram, friends, seat, kind, low, high):
    """Return odds, units, places that count parts of a sample, and amplitudes of the best pair at [low, high]."""
    M = friends.shape[1]
    label, explained, m = np.empty(M, np.int64), np.empty(M), 0
    for k in friends[kind]:
        if k < 0:
            break
        u = P[k, low : high + 1].max()
        if u > np.float32(_SKIPPED) * known[k, PRODUCT]:
            label[m], explained[m] = k, likelihood(u, known[k, MEAN], known[k, VARIANCE])
            m += 1
    least = _PROMISE * explained[:m].max() if m > 1 else 0.0
    value, place = np.zeros((m, m), np.float32), np.zeros((m, m, 2), np.int64)
    row = np.empty(high - low + 1, np.float32)
    for i in range(m):
        for i2 in range(i):
            k, j = label[i], label[i2]
            if explained[i] + explained[i2] < least:
                continue
            value[i, i2], place[i, i2, 0], place[i, i2, 1] = whole_samples(P, known, gram, seat, k, j, low, high, row)
            value[i, i2] -= known[k, MEAN] ** 2 / known[k, VARIANCE] + known[j, MEAN] ** 2 / known[j, VARIANCE]
    top, out = -1e30, (-1e30, 0, 0, 0, 0, 0.0, 0.0)
    fair = np.float32(_FAIR) * value.max() if m > 1 else np.float32(0)
    for i in range(m):
        for i2 in range(i):
            if value[i, i2] > 0 and value[i, i2] >= fair:
                k, j = label[i], label[i2]
                odds, x, y, a1, a2 = refined(P, known, gram, seat, k, place[i, i2, 0], j, place[i, i2, 1], low, high)
                if odds > top:
                    top, out = odds, (odds, k, x, j, y, a1, a2)
    return out


@part
def gains(odds, logit, was, logit_was, amplitude):
    """Return whether spikes are more probable than others, given log odds and the priors, log odds too, in these."""
    likelihood = (odds - logit) - (was - logit_was)
    return likelihood / (1 + (VARIETY * amplitude) ** 2) + logit - logit_was > 0


@part
def place(P, gram, friends, spikes, i, k, x, a):
    """Write a spike at a place that counts parts of a sample, and take it out of the products."""
    time, unit, shift, amplitude, _odds = spikes
    F = gram.shape[1]
    time[i], unit[i], shift[i], amplitude[i] = x // F, k, x % F, np.float32(a)
    shift_products(P, gram, friends, k, shift[i], time[i], -amplitude[i])


@part
def settle(P, known, gram, friends, spikes, i, fresh):
    """Write amplitude and odds of a spike given all others; it goes if it is less probable than none."""
    time, unit, shift, amplitude, odds = spikes
    k, t, s = unit[i], time[i], (gram.shape[3] + 1) // 2
    shift_products(P, gram, friends, k, shift[i], t, amplitude[i])
    u = product_at(P, k, t, shift[i], gram.shape[1])
    odds[i], amplitude[i] = judge(u, known[k, MEAN], known[k, VARIANCE], known[k, LOGIT])
    if odds[i] <= 0:
        amplitude[i] = 0
    else:
        shift_products(P, gram, friends, k, shift[i], t, -amplitude[i])
    fresh[max(0, t - s) : t + s] = True


@jit
def reconsider(P, known, gram, friends, time, unit, shift, amplitude, odds, suspect, apart, fresh):
    """Replace spikes by pairs where these are more probable, and pairs by others or by one spike.

    Parameters
    ----------
    P, known, gram, friends
        As in `kernels.decide`.
    time, unit, shift, amplitude, odds : array (n,)
        Spikes, by increasing time.
    suspect : array (n,) of bool
        Which leave over more than noise.
    apart : int
        How far from a spike the spikes of a pair may be, samples.
    fresh : array of bool
        Becomes true for places near what has changed.

    Returns
    -------
    tuple of ndarray
        As `time` to `odds`, in no order.
    """
    n, F, last = len(time), gram.shape[1], P.shape[1] - 2
    spare = np.zeros(np.count_nonzero(suspect), np.int64)
    time, unit, shift = np.append(time, spare), np.append(unit, spare), np.append(shift, spare)
    amplitude, odds = np.append(amplitude, spare.astype(np.float32)), np.append(odds, spare.astype(np.float32))
    spikes, seat, count = (time, unit, shift, amplitude, odds), seats(friends), n
    for i in range(n):
        if not suspect[i] or amplitude[i] == 0:
            continue
        k, t, f, a = unit[i], time[i], shift[i], amplitude[i]
        shift_products(P, gram, friends, k, f, t, a)
        u = product_at(P, k, t, f, F)
        was = judge(u, known[k, MEAN], known[k, VARIANCE], known[k, LOGIT])[0]
        value, k1, x1, k2, x2, a1, a2 = best_pair(
            P, known, gram, friends, seat, k, max(1, t - apart), min(last, t + apart)
        )
        if gains(value, known[k1, LOGIT] + known[k2, LOGIT], was, known[k, LOGIT], a):
            place(P, gram, friends, spikes, i, k1, x1, a1)
            place(P, gram, friends, spikes, count, k2, x2, a2)
            settle(P, known, gram, friends, spikes, i, fresh)
            settle(P, known, gram, friends, spikes, count, fresh)
            count += 1
        elif not another_pair(P, known, gram, friends, seat, spikes, i, n, apart, fresh):
            shift_products(P, gram, friends, k, f, t, -a)
    kept = np.flatnonzero(amplitude[:count] > 0)
    return time[kept], unit[kept], shift[kept], amplitude[kept], odds[kept]


@part
def another_pair(P, known, gram, friends, seat, spikes, i, n, apart, fresh):
    """Try a spike that is taken out already, and one near it, as another pair or as one; return whether they are."""
    time, unit, shift, amplitude, _odds = spikes
    F, k, x, last = gram.shape[1], unit[i], time[i] * gram.shape[1] + shift[i], P.shape[1] - 2
    for j in range(max(0, i - _BESIDE), min(n, i + _BESIDE + 1)):
        if j == i or amplitude[j] == 0 or abs(time[j] - time[i]) > apart:
            continue
        shared = cross(gram, seat, k, time[i], shift[i], unit[j], time[j], shift[j])
        if abs(shared) * max(amplitude[i], amplitude[j]) < _FELT:
            continue
        shift_products(P, gram, friends, unit[j], shift[j], time[j], amplitude[j])
        was = odds_of_pair(P, known, gram, seat, k, x, unit[j], time[j] * F + shift[j])[0]
        logit, large = known[k, LOGIT] + known[unit[j], LOGIT], max(amplitude[i], amplitude[j])
        low, high = min(time[i], time[j]) - apart // 2, max(time[i], time[j]) + apart // 2
        value, k1, x1, k2, x2, a1, a2 = best_pair(P, known, gram, friends, seat, k, max(1, low), min(last, high))
        if gains(value, known[k1, LOGIT] + known[k2, LOGIT], was, logit, large):
            place(P, gram, friends, spikes, i, k1, x1, a1)
            place(P, gram, friends, spikes, j, k2, x2, a2)
            settle(P, known, gram, friends, spikes, i, fresh)
            settle(P, known, gram, friends, spikes, j, fresh)
            return True
        value, k1, t, f, a1 = best_of(P, known, friends, k, (time[i] + time[j]) // 2, apart, F)
        if k1 >= 0 and gains(value, known[k1, LOGIT], was, logit, large):
            amplitude[j] = 0
            place(P, gram, friends, spikes, i, k1, t * F + f, a1)
            settle(P, known, gram, friends, spikes, i, fresh)
            return True
        shift_products(P, gram, friends, unit[j], shift[j], time[j], -amplitude[j])
    return False


@part
def seats(friends):
    """Return where each unit stands among the friends of another, (K, K), -1 if it does not."""
    found = np.full((len(friends), len(friends)), -1)
    for k in range(len(friends)):
        for i in range(friends.shape[1]):
            if friends[k, i] >= 0:
                found[k, friends[k, i]] = i
    return found
