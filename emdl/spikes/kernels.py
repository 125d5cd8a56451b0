"""Numba kernels of the decision which spikes a whitened signal holds. One thread.

A piece of the signal is known by its products P (K, n) with all templates at all places. Taking a spike out of the
signal, or putting it back, changes the products by rows of the Gram matrix of the templates, so nothing is ever
correlated again. Places between samples are read off a parabola through three products.
"""

import math

import numpy as np

from emdl._kernels.compiler import jit

SWEEPS = 2  # times that the spikes near a new one are reconsidered in a round
LEAST = 0.4  # of the mean amplitude of a unit; what is smaller is no spike of it, however far above the noise
PRODUCT, MEAN, VARIANCE, LOGIT = 0, 1, 2, 3  # columns of what is known of a unit: least product, amplitude, log odds


@jit
def judge(u, mean, variance, logit):
    """Return the log odds that a spike of a unit is there, and its amplitude, from the product u with its template.

    log N(u; mean, 1 + variance) - log N(u; 0, 1) + logit; the amplitude, the most probable one, must reach LEAST mean.
    """
    amplitude = (u * variance + mean) / (1 + variance)
    if amplitude < LEAST * mean:
        return -1e30, amplitude
    return 0.5 * u * u - 0.5 * (u - mean) ** 2 / (1 + variance) - 0.5 * math.log(1 + variance) + logit, amplitude


@jit
def summit(P, k, t, F):
    """Return the largest product near a place, between samples, and which of the F parts of a sample it is at."""
    n, middle = P.shape[1], P[k, t]
    if t == 0 or t == n - 1:
        return middle, F // 2
    slope, bend = 0.5 * (P[k, t + 1] - P[k, t - 1]), 2 * middle - P[k, t - 1] - P[k, t + 1]
    if bend <= 0:
        return middle, F // 2
    offset = min(max(slope / bend, np.float32(-0.5)), np.float32(0.5))
    f = F // 2 + round(offset * F)
    offset = np.float32(min(max(f, 0), F - 1) - F // 2) / F
    return middle + offset * (slope - np.float32(0.5) * offset * bend), min(max(f, 0), F - 1)


@jit
def shift_products(P, gram, friends, k, f, t, amplitude):
    """Add the products of a template, its first sample at t, times an amplitude."""
    n, s = P.shape[1], (gram.shape[3] + 1) // 2
    first, last = max(0, t - s + 1), min(n, t + s)
    for i in range(friends.shape[1]):
        j = friends[k, i]
        if j < 0:
            break
        row, out = gram[k, f, i, first - (t - s + 1) :], P[j, first:last]
        for m in range(last - first):
            out[m] += amplitude * row[m]


@jit
def best_of(P, known, friends, kind, t, reach, F):
    """Return odds, unit, place, shift and amplitude of the most probable spike near t of the friends of a unit."""
    top, best_k, best_t, best_f, best_a = -1e30, -1, t, F // 2, np.float32(0)
    low, high = max(0, t - reach), min(P.shape[1] - 1, t + reach)
    for i in range(friends.shape[1]):
        k = friends[kind, i]
        if k < 0:
            break
        at = low
        for j in range(low + 1, high + 1):
            if P[k, j] > P[k, at]:
                at = j
        if P[k, at] > np.float32(0.9) * known[k, PRODUCT]:
            u, f = summit(P, k, at, F)
            odds, amplitude = judge(u, known[k, MEAN], known[k, VARIANCE], known[k, LOGIT])
            if odds > top:
                top, best_k, best_t, best_f, best_a = odds, k, at, f, amplitude
    return top, best_k, best_t, best_f, best_a


@jit
def find_peaks(P, known, F, first, last, stamp, since, place, label, score, peak, count):
    """Append the peaks of products in [first, last) that make a spike more probable than none; return their number.

    Only places with a `stamp` of at least `since` are looked at. The output is by increasing place.
    """
    K, n = P.shape
    span = 256
    hot = np.empty(span, np.bool_)
    for begin in range(first, last, span):
        m = min(span, last - begin)
        hot[:] = False
        for k in range(K):
            least, row = known[k, PRODUCT], P[k, begin:]
            for j in range(m):
                hot[j] |= row[j] > least
        for j in range(m):
            t = begin + j
            if not hot[j] or stamp[t] < since:
                continue
            for k in range(K):
                u = P[k, t]
                if (
                    u > known[k, PRODUCT]
                    and (t == 0 or u >= P[k, t - 1])
                    and (t == n - 1 or u > P[k, t + 1])
                    and count < len(place)
                ):
                    u, _f = summit(P, k, t, F)
                    odds, a = judge(u, known[k, MEAN], known[k, VARIANCE], known[k, LOGIT])
                    place[count], label[count], score[count], peak[count] = t, k, odds, a
                    count += 1
    return count


@jit
def choose(place, label, score, count, apart, strange, chosen):
    """Write the peaks more probable than all nearby of units that share a channel; return their number."""
    n, low = 0, 0
    for i in range(count):
        while place[low] < place[i] - apart:
            low += 1
        j, best = low, score[i] > 0
        while best and j < count and place[j] <= place[i] + apart:
            better = score[j] > score[i] or (score[j] == score[i] and j < i)
            best = not better or strange[label[i], label[j]]
            j += 1
        if best:
            chosen[n] = i
            n += 1
    return n


@jit
def mark(stamp, t, s, value):
    """Note that the products within a template of a place have changed."""
    for i in range(max(0, t - s), min(len(stamp), t + s + 1)):
        stamp[i] = value


@jit
def decide(P, known, gram, friends, strange, apart, reach, n_rounds):
    """Find the spikes that explain the products: the most probable first, each reconsidered whenever others have come.

    Parameters
    ----------
    P : array (K, n)
        Products with all templates; become those of the residual.
    known : array (K, 4)
        Of each unit: the least product that makes a spike more probable than none, mean and variance of the amplitude,
        log odds that a sample holds one of its spikes.
    gram : array (K, F, m, 2 s - 1)
        Products of each template, at F parts of a sample, with those of its friends, for lags 1 - s to s - 1.
    friends : array (K, m) of int64
        Units that share a channel with each unit, itself included; -1 beyond the last.
    strange : array (K, K) of bool
        Which do not.
    apart : int
        Of peaks nearer than this, samples, only the most probable is taken in a round.
    reach : int
        How far a spike may move, samples.
    n_rounds : int
        Most rounds.

    Returns
    -------
    time, unit, shift : array (n,) of int64
    amplitude, odds : array (n,) of float32
    """
    n, F, s = P.shape[1], gram.shape[1], (gram.shape[3] + 1) // 2
    room = 1024
    place, label = np.empty(room, np.int64), np.empty(room, np.int64)
    score, peak, chosen = np.empty(room), np.empty(room, np.float32), np.empty(room, np.int64)
    most = 256
    time, unit, shift = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    amplitude, odds, seen = np.zeros(most, np.float32), np.zeros(most, np.float32), np.zeros(most, np.int64)
    stamp, clock, count = np.zeros(n, np.int64), 1, 0
    begun = 0
    for _ in range(n_rounds):
        found = find_peaks(P, known, F, 0, n, stamp, begun, place, label, score, peak, 0)
        while found == len(place):  # no room: more of it
            place, label = np.empty(4 * found, np.int64), np.empty(4 * found, np.int64)
            score, peak, chosen = np.empty(4 * found), np.empty(4 * found, np.float32), np.empty(4 * found, np.int64)
            found = find_peaks(P, known, F, 0, n, stamp, begun, place, label, score, peak, 0)
        taken = choose(place, label, score, found, apart, strange, chosen)
        if taken == 0:
            break
        begun = clock
        while count + taken > len(time):
            time, unit, shift = np.append(time, time), np.append(unit, unit), np.append(shift, shift)
            amplitude, odds, seen = np.append(amplitude, amplitude), np.append(odds, odds), np.append(seen, seen)
        for i in chosen[:taken]:
            _u, f = summit(P, label[i], place[i], F)
            time[count], unit[count], shift[count] = place[i], label[i], f
            amplitude[count], odds[count] = peak[i], score[i]
            seen[count] = begun - 1 if stamp[place[i]] >= begun else clock  # another one of this round is near
            mark(stamp, place[i], s, clock)
            clock += 1
            count += 1
        for i in range(count - taken, count):
            shift_products(P, gram, friends, unit[i], shift[i], time[i], -amplitude[i])
        for _sweep in range(SWEEPS):
            for i in range(count):
                if amplitude[i] == 0 or stamp[time[i]] <= seen[i]:
                    continue
                k, f, t, a = unit[i], shift[i], time[i], amplitude[i]
                shift_products(P, gram, friends, k, f, t, a)
                odds[i], unit[i], time[i], shift[i], amplitude[i] = best_of(P, known, friends, k, t, reach, F)
                moved = unit[i] != k or time[i] != t or shift[i] != f or abs(amplitude[i] - a) > 0.01 * a
                if odds[i] <= 0:
                    amplitude[i], unit[i] = 0, k
                else:
                    shift_products(P, gram, friends, unit[i], shift[i], time[i], -amplitude[i])
                if moved:
                    mark(stamp, t, s, clock)
                    clock += 1
                seen[i] = clock - 1
    kept = np.flatnonzero(amplitude[:count] > 0)
    return time[kept], unit[kept], shift[kept], amplitude[kept], odds[kept]


@jit
def subtract(r, bank, near, unit, shift, time, amplitude):
    """Take spikes out of a signal in place."""
    M, s = bank.shape[2:]
    for i in range(len(unit)):
        k, t, a = unit[i], time[i], amplitude[i]
        for c in range(M):
            if near[k, c] < 0:
                break
            d, out = bank[k, shift[i], c], r[near[k, c], t : t + s]
            for j in range(s):
                out[j] -= a * d[j]
