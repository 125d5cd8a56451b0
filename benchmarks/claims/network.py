"""Claim 4: the encoder is a residual network with shared weights, and a recurrent network; depth, and beyond it.

As a residual network, each layer adds to its input what the residual of the signal says, w + step D^T (y - D w), and
shrinks. As a recurrent network, a state (z_t, z_{t-1}) goes through z_{t+1} = shrink((I - step D^T D) w_t + step D^T y,
theta), whose matrices are fixed. Both must give the numbers of `emdl.unroll`.

Then networks of a few depths are trained, the dictionary by the gradient through all layers, the bias by EM or by
backprop, and are run at other depths than they were trained with.
"""

import numpy as np

from emdl import backward, em_fit, ops, rates, simulate, unroll
from emdl.metrics import snr_db
from emdl.optim import Optimizer
from emdl.prox import shrink

from . import data, drawing
from .store import groups

VERSION = 2
SNR_DB, TRAINED, TESTED = 12, (3, 10, 30, 100), (3, 6, 10, 30, 100, 300, 1000)


def cells(quick):
    seeds = list(data.SEEDS)[: 1 if quick else None]
    depths = TRAINED[:2] if quick else TRAINED
    return [{"part": "readings", "seed": seed} for seed in seeds] + [
        {"part": "depth", "bias": bias, "trained": T, "seed": seed}
        for bias in ("EM", "backprop") for T in depths for seed in seeds
    ]  # fmt: skip


def run(part, seed, bias="", trained=0):
    if part == "readings":
        return _readings(seed)
    return _depth(bias, trained, seed)


def _readings(seed):
    """Return the largest difference of the three texts over 50 layers, relative to the largest code."""
    sim = data.problem(seed, SNR_DB, dtype=np.float64, signals=2)
    step, T = 1 / ops.lipschitz(sim.D), 50
    theta = np.full(data.ATOMS, rates.start_lmbd(data.ATOMS, sim.z[0].size, sim.sigma) * sim.sigma**2 * step)
    want = unroll(sim.y, sim.D, theta, step, T, positive=True).z
    column = theta[:, None]
    z = before = np.zeros_like(sim.z)
    for beta in _momenta(T):  # residual blocks: what comes in, plus what is left of the signal
        w = z + beta * (z - before)
        z, before = shrink(w + step * ops.analyze(sim.y - ops.synthesize(w, sim.D), sim.D), column, positive=True), z
    drive = step * ops.analyze(sim.y, sim.D)  # what the recurrent network is told at every step
    state = (np.zeros_like(sim.z), np.zeros_like(sim.z))
    for beta in _momenta(T):  # one matrix, I - step D^T D, on a state of two codes
        w = (1 + beta) * state[0] - beta * state[1]
        hidden = w - step * ops.analyze(ops.synthesize(w, sim.D), sim.D)
        state = (shrink(hidden + drive, column, positive=True), state[0])
    size = np.abs(want).max()
    return {"residual": float(np.abs(z - want).max() / size), "recurrent": float(np.abs(state[0] - want).max() / size)}


def _momenta(n_layers):
    """Return beta_t = (s_{t-1} - 1) / s_t with s_t = (1 + sqrt(1 + 4 s_{t-1}^2)) / 2, s_0 = 1."""
    s, betas = 1.0, []
    for _ in range(n_layers):
        s, last = (1 + np.sqrt(1 + 4 * s * s)) / 2, s
        betas.append((last - 1) / s)
    return betas


def _depth(bias, trained, seed):
    """Train on noisy signals with clean targets, test on others."""
    sim = data.problem(seed, SNR_DB)
    test = simulate.convolutional(
        data.SIGNALS, data.SAMPLES, sim.D, density=data.RATE / data.FS, sigma=sim.sigma, positive=True,
        rng=np.random.default_rng([seed, 4]),
    )  # fmt: skip
    start = data.perturbed(sim.D, seed)
    universal = rates.start_lmbd(data.ATOMS, sim.z.shape[0] * sim.z.shape[2], sim.sigma)
    if bias == "EM":
        fit = em_fit(sim.y, data.ATOMS, data.LENGTH, D0=start, sigma=sim.sigma, positive=True, m_step="unrolled",
                     n_layers=trained, target=sim.clean, max_iter=60, tol=1e-6, rng=seed)  # fmt: skip
        D, lmbd = fit.model.D, fit.model.lmbd
    else:
        D, lmbd = _both_by_backprop(sim, start, universal, trained)
    step = 1 / ops.lipschitz(D)
    quality = {}
    for T in TESTED:
        z = unroll(test.y, D, lmbd * test.sigma**2 * step, step, T, positive=True).z
        quality[str(T)] = snr_db(ops.synthesize(z, D), test.clean)
    return {"error": data.worst(D, sim.D), "snr": quality, "level": float(np.mean(lmbd) * sim.sigma)}


def _both_by_backprop(sim, D, universal, T, n_epochs=60, batches=10):
    """Learn dictionary and biases by the gradient of the reconstruction error through all layers."""
    optimizer, rng = Optimizer(rate=0.1, decay=0.003), np.random.default_rng(0)
    step = 1 / ops.lipschitz(D)
    log_theta = np.log(np.full(len(D), universal * sim.sigma**2 * step))
    first = second = np.zeros(len(D))
    count = 0
    for _ in range(n_epochs):
        for batch in np.array_split(rng.permutation(len(sim.y)), batches):
            step, count = 1 / ops.lipschitz(D), count + 1
            theta = np.exp(log_theta)
            trace = unroll(sim.y[batch], D, theta, step, T, positive=True)
            error = ops.synthesize(trace.z, D) - sim.clean[batch]
            grads = backward(trace, ops.analyze(error, D))
            direct = ops.correlate_signals(trace.z, error, D.shape[2:], (1,))
            energy = float(np.square(trace.z, dtype=float).sum()) / len(D)
            D = optimizer.step(D, ((grads.D + direct) / max(energy, 1e-12)).astype(D.dtype))
            slope = grads.theta.astype(float) * theta
            first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
            log_theta -= 0.02 * (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.99**count)) + 1e-12)
    step = 1 / ops.lipschitz(D)
    return D, np.exp(log_theta) / (step * sim.sigma**2)


def tables(rows):
    readings = [r for c, r in rows if c["part"] == "readings"]
    made = {}
    if readings:
        lines = [[name, f"{max(r[name] for r in readings):.1e}"] for name in ("residual", "recurrent")]
        made["readings"] = drawing.table(["reading", "largest difference from `unroll`, 50 layers, relative"], lines)
    depth = groups([row for row in rows if row[0]["part"] == "depth"], "bias", "trained")
    lines = [
        [bias, T, drawing.spread([r["error"] for r in rs]), f"{np.median([r['level'] for r in rs]):.2f}",
         *(f"{np.median([r['snr'][str(t)] for r in rs]):.2f}" for t in TESTED)]
        for (bias, T), rs in depth.items()
    ]  # fmt: skip
    head = ["bias by", "trained layers", "error of the worst atom", "lambda sigma", *(f"dB at {t}" for t in TESTED)]
    return {**made, "depth": drawing.table(head, lines)}


def draw(rows, folder):
    depth = groups([row for row in rows if row[0]["part"] == "depth"], "bias", "trained")
    figure, axes = drawing.panels(2, width=7.2, sharey=True)
    for axis, bias in zip(axes, ("EM", "backprop"), strict=True):
        for number, T in enumerate(TRAINED):
            if (bias, T) in depth:
                values = [[r["snr"][str(t)] for t in TESTED] for r in depth[bias, T]]
                drawing.band(axis, TESTED, values, number, f"trained with {T}")
        axis.set(xscale="log", xlabel="layers when tested", title=f"bias by {bias}")
        axis.set_xticks(TESTED, TESTED)
        axis.minorticks_off()
        drawing.legend_below(axis)
    axes[0].set_ylabel("recovered signal (dB)")
    drawing.save(figure, folder, "network")
