"""Numba kernels of the decision which spikes the codes stand for. One thread; the residual is changed in place.

Templates are a bank (K, F, C, s): K units, F shifts by parts of a sample, of which number F // 2 is no shift.
"""

import math

import numpy as np

from emdl._kernels.compiler import jit

SWEEPS = 2  # times that all spikes of a stretch are reconsidered in a round
LEAST = 0.4  # of the mean amplitude of a unit; what is smaller is no spike of it, however far above the noise


@jit
def product(r, bank, k, f, t):
    """Return the inner product of a template, its first sample at t, with the signal."""
    C, s = bank.shape[2:]
    total = np.float32(0)
    for c in range(C):
        for j in range(s):
            total += r[c, t + j] * bank[k, f, c, j]
    return total


@jit
def add(r, bank, k, f, t, amplitude):
    """Add a template to the signal, its first sample at t."""
    C, s = bank.shape[2:]
    for c in range(C):
        for j in range(s):
            r[c, t + j] += amplitude * bank[k, f, c, j]


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
def best_near(r, bank, k, t, reach):
    """Return the largest product of a unit's template with the signal near t, its place and shift."""
    F, s, N = bank.shape[1], bank.shape[3], r.shape[1]
    at, shift, top = t, F // 2, np.float32(-1e30)
    for i in range(max(0, t - reach), min(N - s, t + reach) + 1):
        u = product(r, bank, k, F // 2, i)
        if u > top:
            top, at = u, i
    for f in range(F):
        if f != F // 2:
            u = product(r, bank, k, f, at)
            if u > top:
                top, shift = u, f
    return top, at, shift


@jit
def reconsider(r, bank, mean, variance, logit, reach, time, unit, shift, amplitude, odds, begin, end):
    """Take each spike out in turn and put back what explains its place best: another unit, another time, nothing."""
    K = bank.shape[0]
    for i in range(begin, end):
        if amplitude[i] == 0:
            continue
        add(r, bank, unit[i], shift[i], time[i], amplitude[i])
        top, best_k, best_t, best_f, best_a = -1e30, 0, 0, 0, 0.0
        for k in range(K):
            u, t, f = best_near(r, bank, k, time[i], reach)
            o, a = judge(u, mean[k], variance[k], logit[k])
            if o > top:
                top, best_k, best_t, best_f, best_a = o, k, t, f, a
        amplitude[i] = 0
        if top > 0 and best_a > 0:
            time[i], unit[i], shift[i], amplitude[i], odds[i] = best_t, best_k, best_f, best_a, top
            add(r, bank, best_k, best_f, best_t, -amplitude[i])


@jit
def choose(score, taken, place, first, last, apart, chosen):
    """Write the candidates in [first, last) more probable than none and than all nearby; return their number."""
    n, low = 0, first
    for i in range(first, last):
        if taken[i] or score[i] <= 0:
            continue
        while place[low] < place[i] - apart:
            low += 1
        j, best = low, True
        while best and j < last and place[j] <= place[i] + apart:
            best = taken[j] or not (score[j] > score[i] or (score[j] == score[i] and j < i))
            j += 1
        if best:
            chosen[n] = i
            n += 1
    return n


@jit
def decide(r, bank, mean, variance, logit, place, label, apart, reach, n_rounds):
    """Turn candidates into spikes: the most probable ones first, each reconsidered whenever others have come.

    Stretches of candidates more than two templates apart are decided each on its own.

    Parameters
    ----------
    r : array (C, N)
        Signal; becomes the residual.
    bank : array (K, F, C, s)
        Unit-norm templates.
    mean, variance, logit : array (K,)
        Amplitudes of each unit, and log odds that a sample holds one of its spikes.
    place, label : array (m,) of int64
        Candidates, by increasing place.
    apart : int
        Of candidates nearer than this, samples, only the most probable is taken in a round.
    reach : int
        How far a spike may move, samples.
    n_rounds : int
        Most rounds.

    Returns
    -------
    time, unit, shift : array (n,) of int64
    amplitude, odds : array (n,) of float32
    """
    m, F, s = len(place), bank.shape[1], bank.shape[3]
    time, unit, shift = np.empty(m, np.int64), np.empty(m, np.int64), np.empty(m, np.int64)
    amplitude, odds = np.zeros(m, np.float32), np.zeros(m, np.float32)
    score, taken, chosen = np.empty(m), np.zeros(m, np.bool_), np.empty(m, np.int64)
    first, count = 0, 0
    while first < m:
        last = first + 1
        while last < m and place[last] - place[last - 1] <= 2 * s:
            last += 1
        begin = count
        for _ in range(n_rounds):
            for i in range(first, last):
                k = label[i]
                if not taken[i]:
                    score[i], _a = judge(product(r, bank, k, F // 2, place[i]), mean[k], variance[k], logit[k])
            n = choose(score, taken, place, first, last, apart, chosen)
            if n == 0:
                break
            for i in chosen[:n]:
                taken[i], unit[count] = True, label[i]
                u, time[count], shift[count] = best_near(r, bank, label[i], place[i], 1)
                odds[count], amplitude[count] = judge(u, mean[label[i]], variance[label[i]], logit[label[i]])
                add(r, bank, unit[count], shift[count], time[count], -amplitude[count])
                count += 1
            for _ in range(SWEEPS):
                reconsider(r, bank, mean, variance, logit, reach, time, unit, shift, amplitude, odds, begin, count)
        first = last
    kept = amplitude[:count] > 0
    return time[:count][kept], unit[:count][kept], shift[:count][kept], amplitude[:count][kept], odds[:count][kept]
