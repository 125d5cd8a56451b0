"""Learn the strokes that a photograph is made of, and draw them; takes half a minute."""

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.data import camera

import emdl

photograph = camera()[100:356, 100:356].astype(np.float32) / 255
detail = photograph - gaussian_filter(photograph, 5)  # the slow part of a picture is not sparse

result = emdl.em_fit(detail, n_atoms=16, atom_shape=(9, 9), max_iter=30, rng=0)
print(result.message)
print(f"noise {result.model.sigma:.4f}, {result.history['n_nonzero'][-1]} codes for {detail.size} pixels")

figure, axes = plt.subplots(2, 8, figsize=(8, 2.2), layout="constrained")
for axis, atom in zip(axes.flat, result.model.D[:, 0], strict=True):
    axis.imshow(atom, cmap="gray", vmin=-abs(atom).max(), vmax=abs(atom).max())
    axis.axis("off")
figure.savefig("photograph_atoms.png", dpi=150)
print("saved photograph_atoms.png")
