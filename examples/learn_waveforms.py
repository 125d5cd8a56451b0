"""Learn two waveforms, their rates and the noise level from a signal whose truth is known; takes a few seconds."""

import numpy as np

import emdl
from emdl.metrics import atom_error, snr_db
from emdl.simulate import convolutional, waveforms

rng = np.random.default_rng(0)
truth = waveforms(n_atoms=2, n_channels=1, length=40, rng=rng)
signal = convolutional(10, 3000, truth, density=0.003, snr_db=10, positive=True, rng=rng)

result = emdl.em_fit(signal.y, n_atoms=2, atom_shape=40, positive=True, learn_sigma=True, rng=0)
print(result.message)

model = result.model
print("atom errors:", atom_error(model.D, truth).errors.round(3), "(0: the same shape, 1: unrelated)")
print(f"noise: learned {model.sigma:.4f}, true {signal.sigma:.4f}")
print(f"lambda: {model.lmbd.round(2)}")
print(f"signal to noise: {snr_db(signal.y, signal.clean):.1f} dB before, ", end="")
print(f"{snr_db(model.reconstruct(signal.y), signal.clean):.1f} dB after")

model.save("waveforms.h5")
print("saved; `emdl info waveforms.h5` tells what is inside")
