"""The picture of units, trace and learning."""

import io

import matplotlib.colors
import numpy as np
import pytest
import skimage.color

from emdl import spikes
from emdl.errors import InputError
from emdl.model import Model
from emdl.spikes import plot, scales, whitening


def made(rng, K, C, *, fs=15000.0, n_iter=3):
    """Return a model of K units, noise with some of their spikes in it, and these spikes."""
    scale = scales.choose(fs)
    N = 200 * scale.unit
    data = rng.standard_normal((C, N)).cumsum(axis=1) * 0.01 + rng.standard_normal((C, N))
    bump = np.exp(-0.5 * ((np.arange(scale.length) - scale.before) / (0.15 * scale.unit)) ** 2)
    waveforms = -10 * rng.uniform(0.2, 1, (K, C, 1)) * bump
    sample = np.sort(rng.choice(np.arange(scale.length, N - scale.length), 3 * K, replace=False))
    found = spikes.Spikes(sample, np.arange(3 * K) % max(K, 1), np.full(3 * K, 10.0), fs)
    history = {name: np.arange(n_iter) + 1.0 for name in ("objective", "n_nonzero", "n_units", "lmbd", "sigma")}
    D = np.zeros((max(K, 1), C, scale.length), np.float32)
    model = spikes.SpikeModel(
        Model(D, np.ones(len(D)), 1.0, positive=True), fs, scale.band, scale.unit, whitening.learn(data, scale),
        waveforms, 0.1 * np.abs(waveforms) + 0.5, np.full(K, scale.before), np.full(K, 9.0), np.full(K, 1.0),
        np.full(K, 1e-4), history, True, "made",
    )  # fmt: skip
    return model, data, found


def texts(figure):
    return [t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")) if t.get_text()]


@pytest.mark.parametrize(
    ("K", "C", "fs", "n_iter"),
    [(1, 1, 15000.0, 3), (3, 4, 15000.0, 1), (12, 2, 15000.0, 5), (2, 2, 360.0, 2), (15, 10, 15000.0, 2)],
)
def test_every_unit_has_its_panel_and_numbers(rng, K, C, fs, n_iter):
    model, data, found = made(rng, K, C, fs=fs, n_iter=n_iter)
    figure = plot.figure(model, data, found)
    for unit in range(min(K, 12)):
        assert any(text.startswith(f"unit {unit}: 3 spikes, SNR ") for text in texts(figure))
    assert (f"(the 12 largest of {K})" in " ".join(texts(figure))) == (K > 12)
    words = " ".join(texts(figure))
    for word in ("time, s", "iteration", "objective", "data unit", "Hz"):
        assert word in words


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_it_can_be_written(rng, kind):
    model, data, found = made(rng, 2, 2)
    file = io.BytesIO()
    plot.figure(model, data, found).savefig(file, format=kind, dpi=50)
    assert file.getbuffer().nbytes > 10_000


def test_no_units_are_said_plainly(rng):
    model, data, found = made(rng, 0, 2, n_iter=0)
    words = texts(plot.figure(model, data, found))
    assert "no units found" in words
    assert "no iteration" in words


def test_spikes_are_marked_where_they_are(rng):
    model, data, found = made(rng, 2, 3)
    figure = plot.figure(model, data, found, seconds=(0.0, data.shape[1] / model.fs))
    trace = next(ax for ax in figure.findobj(match=lambda a: hasattr(a, "get_xlabel")) if ax.get_xlabel() == "time, s")
    for unit in (0, 1):
        line = next(line for line in trace.get_lines() if line.get_label() == f"unit {unit}")
        np.testing.assert_allclose(line.get_xdata(), found.time_s[found.unit == unit])


def test_the_reconstruction_is_the_sum_of_the_waveforms(rng):
    model, data, found = made(rng, 2, 3)
    whole = np.zeros((3, data.shape[1]))
    for sample, unit, amplitude in zip(found.sample, found.unit, found.amplitude, strict=True):
        first = sample - model.peak[unit]
        whole[:, first : first + model.waveforms.shape[2]] += (
            amplitude / np.abs(model.waveforms[unit]).max() * model.waveforms[unit]
        )
    part = plot.reconstruction(model, found, 100, 2000)
    np.testing.assert_allclose(np.nan_to_num(part), whole[:, 100:2000], atol=1e-9)


DICHROMATS = {  # Vienot, Brettel and Mollon 1999, on linear RGB
    "normal": np.eye(3),
    "deuteranope": np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
    "protanope": np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
}


@pytest.mark.parametrize("eye", DICHROMATS)
def test_colours_can_be_told_apart(eye):
    """A CIELAB distance of 2 is just seen side by side; thin lines need several times that."""
    rgb = np.array([matplotlib.colors.to_rgb(c) for c in plot.COLOURS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ DICHROMATS[eye].T
    seen = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clip(0, 1) ** (1 / 2.4) - 0.055)
    lab = skimage.color.rgb2lab(seen.clip(0, 1)[None])[0]
    apart = np.linalg.norm(lab[:, None] - lab, axis=2) + 1e3 * np.eye(len(lab))
    assert apart.min() > 15
    assert lab[:, 0].max() < 80, "too light for a white page"


def test_no_two_of_twelve_units_look_the_same():
    assert len({(plot._colour(unit), plot.marker(unit)) for unit in range(12)}) == 12


@pytest.mark.parametrize("seconds", [(-1.0, 0.1), (0.1, 0.05), (0.0, 1e9)])
def test_a_stretch_outside_the_recording_is_refused(rng, seconds):
    model, data, found = made(rng, 1, 2)
    with pytest.raises(InputError):
        plot.figure(model, data, found, seconds=seconds)
