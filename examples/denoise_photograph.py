"""Take noise of unknown strength out of a photograph, and look at what was taken out (needs scikit-image)."""

import numpy as np
from matplotlib.figure import Figure
from skimage import data

from emdl import images
from emdl.metrics import psnr

clean = data.camera()[20:276, 130:386] / 255  # the network that comes with emdl has not seen this one
noisy = clean + 25 / 255 * np.random.default_rng(0).standard_normal(clean.shape)

sigma = images.estimate_sigma(noisy)
denoised = images.denoise(noisy)  # blind: it estimates sigma itself
gains = [psnr(x, clean, peak=1) for x in (noisy, denoised)]
print(f"noise estimated at {255 * sigma:.1f} of 255; {gains[0]:.1f} dB before, {gains[1]:.1f} dB after")

figure = Figure(figsize=(9, 3.2), layout="constrained")
panels = [
    (f"noisy, {gains[0]:.1f} dB", noisy),
    (f"denoised, {gains[1]:.1f} dB", denoised),
    ("taken out", 0.5 + (noisy - denoised) * 2),
]
for axis, (title, picture) in zip(figure.subplots(1, 3), panels, strict=True):
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.set_title(title)
    axis.axis("off")
figure.savefig("denoise.png", dpi=130)
