"""The paper's autoencoder for images: shifts of a strided grid, averaged."""

import dataclasses

import numpy as np
import pytest

from emdl import load
from emdl.errors import FileFormatError, InputError
from emdl.images.shifts import ShiftedEncoder, all_shifts, gather, gather_back, spread
from emdl.optim import normalize_atoms
from emdl.unrolled import momenta

SHAPE, ATOM, STRIDE = (2, 3, 9, 11), (4, 5), (3, 2)


def encoder(rng, dtype=np.float64, untied=False, **changes):
    K, C = 6, SHAPE[1]
    D, A, B = (normalize_atoms(rng.standard_normal((K, C, *ATOM))).astype(dtype) for _ in range(3))
    if untied:
        changes |= {"analysis": normalize_atoms(D + 0.3 * A), "decoder": normalize_atoms(D + 0.3 * B)}
    return ShiftedEncoder(D, np.linspace(0, 1.5, K), STRIDE, **{"n_layers": 4} | changes)


def test_what_is_spread_is_gathered_unchanged(rng):
    planes = rng.standard_normal(SHAPE)
    shifts = all_shifts(STRIDE)
    np.testing.assert_allclose(gather(spread(planes, ATOM, STRIDE, shifts), SHAPE, ATOM, STRIDE, shifts), planes)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 2, 17), (1, 2, 9, 10)])
def test_every_shift_covers_every_pixel_as_often_as_far_from_the_border(shape):
    shifts = all_shifts(STRIDE)
    signals = spread(np.zeros(shape), ATOM, STRIDE, shifts)
    assert all((n - s) % t == 0 for n, s, t in zip(signals.shape[2:], ATOM, STRIDE, strict=True))
    cover = np.zeros_like(signals)
    for i in range(0, signals.shape[2] - ATOM[0] + 1, STRIDE[0]):
        for j in range(0, signals.shape[3] - ATOM[1] + 1, STRIDE[1]):
            cover[:, :, i : i + ATOM[0], j : j + ATOM[1]] += 1
    # over all shifts together each pixel is covered by every tap of an atom once
    total = gather(cover, shape, ATOM, STRIDE, shifts) * len(shifts)
    assert (total == np.prod(ATOM)).all()


def test_gathering_and_its_way_back_are_adjoint(rng):
    shifts = all_shifts(STRIDE)[[0, 3, 5]]
    signals = rng.standard_normal(spread(np.zeros(SHAPE), ATOM, STRIDE, shifts).shape)
    images = rng.standard_normal(SHAPE)
    ahead = (gather(signals, SHAPE, ATOM, STRIDE, shifts) * images).sum()
    np.testing.assert_allclose(ahead, (signals * gather_back(images, ATOM, STRIDE, shifts)).sum(), rtol=1e-12)


@pytest.mark.parametrize("untied", [False, True])
def test_the_reconstruction_is_that_of_the_equations(rng, untied):
    """Naively: for each shift T layers of (2) on patches, decoded, cut, averaged."""
    one = encoder(rng, untied=untied)
    planes, sigma = rng.standard_normal(SHAPE), 0.3
    A = one.D if one.analysis is None else one.analysis
    B = one.D if one.decoder is None else one.decoder
    (h, w), (sh, sw) = ATOM, STRIDE
    centre = planes.mean(axis=(2, 3), keepdims=True)
    wide = np.pad(planes - centre, [(0, 0), (0, 0), (h - 1, 2 * h), (w - 1, 2 * w)], mode="reflect")
    want = np.zeros(SHAPE)
    for a, b in all_shifts(STRIDE):
        length = spread(np.zeros(SHAPE), ATOM, STRIDE, np.array([[a, b]])).shape[2:]
        y = wide[:, :, a : a + length[0], b : b + length[1]]
        rows, columns = range(0, length[0] - h + 1, sh), range(0, length[1] - w + 1, sw)

        def synthesis(z, atoms, like=y, rows=rows, columns=columns):
            out = np.zeros_like(like)
            for p, i in enumerate(rows):
                for q, j in enumerate(columns):
                    out[:, :, i : i + h, j : j + w] += np.einsum("nk,kcij->ncij", z[:, :, p, q], atoms)
            return out

        def analysis(r, rows=rows, columns=columns):
            return np.stack(
                [
                    np.stack([np.einsum("ncij,kcij->nk", r[:, :, i : i + h, j : j + w], A) for j in columns], -1)
                    for i in rows
                ],
                -2,
            )

        before = z = np.zeros((len(y), len(one.D), len(rows), len(columns)))
        for beta in momenta(one.n_layers):
            at = z + beta * (z - before)
            u = at + one.step * analysis(y - synthesis(at, one.D))
            theta = (one.scale * sigma * one.step)[:, None, None]
            before, z = z, np.sign(u) * np.maximum(abs(u) - theta, 0)
        want += synthesis(z, B)[:, :, h - 1 - a : h - 1 - a + SHAPE[2], w - 1 - b : w - 1 - b + SHAPE[3]]
    want = want / len(all_shifts(STRIDE)) + centre
    np.testing.assert_allclose(one.denoise(planes, sigma), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("supervised", [False, True])
def test_gradients_of_the_loss_on_the_average_are_exact(rng, untied, supervised):
    one = encoder(rng, untied=untied, n_layers=5)
    noisy, sigma, step = rng.standard_normal(SHAPE), 0.3, one.step
    target = rng.standard_normal(SHAPE) if supervised else noisy
    shifts = all_shifts(STRIDE)[[0, 2, 5]]
    _, gradients, _ = one.loss(noisy, target, sigma, shifts=shifts, step=step)
    assert set(gradients) == {"D", "scale"} | ({"analysis", "decoder"} if untied else set())
    for name, gradient in gradients.items():
        direction = rng.standard_normal(gradient.shape)
        if name == "scale":
            direction = abs(direction)  # the first is zero and may not become negative
        h = 1e-6

        def moved(by, name=name, direction=direction):
            there = dataclasses.replace(one, **{name: getattr(one, name) + by * direction})
            return there.loss(noisy, target, sigma, shifts=shifts, step=step)[0]

        if name == "scale":
            slope = (moved(2 * h) - moved(0)) / (2 * h)
            np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-4)
        else:
            slope = (moved(h) - moved(-h)) / (2 * h)
            np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-6)


def test_scaling_image_and_noise_scales_the_result(rng):
    one = encoder(rng, np.float32)
    planes = rng.standard_normal(SHAPE).astype(np.float32)
    np.testing.assert_allclose(one.denoise(8 * planes + 3, 8 * 0.2), 8 * one.denoise(planes, 0.2) + 3, atol=1e-4)


def test_no_noise_returns_the_image(rng):
    planes = rng.standard_normal(SHAPE).astype(np.float32)
    assert np.array_equal(encoder(rng).denoise(planes, 0.0), planes)


def test_pieces_of_shifts_do_not_change_the_result(rng, monkeypatch):
    one, planes = encoder(rng, np.float32), rng.standard_normal(SHAPE).astype(np.float32)
    whole = one.denoise(planes, 0.3)
    monkeypatch.setattr("emdl.images.shifts._MOST_CODES", 1)
    np.testing.assert_allclose(one.denoise(planes, 0.3), whole, atol=1e-5)


@pytest.mark.parametrize("untied", [False, True])
def test_a_saved_encoder_comes_back(rng, tmp_path, untied):
    one = encoder(rng, np.float32, untied=untied, centred=False)
    one.save(tmp_path / "model.h5")
    back = ShiftedEncoder.load(tmp_path / "model.h5")
    planes = rng.standard_normal(SHAPE)
    assert np.array_equal(back.denoise(planes, 0.3), one.denoise(planes, 0.3))
    assert load(tmp_path / "model.h5").stride == STRIDE


def test_a_model_for_another_task_is_refused(rng, tmp_path):
    from emdl import Model

    Model(encoder(rng).D, 1.0, 1.0).save(tmp_path / "model.h5")
    with pytest.raises(FileFormatError, match="another task"):
        ShiftedEncoder.load(tmp_path / "model.h5")


def test_what_does_not_fit_is_refused(rng):
    one = encoder(rng)
    with pytest.raises(InputError, match="2 channels"):
        one.denoise(np.zeros((1, 2, 9, 9)), 0.1)
    with pytest.raises(InputError, match="longer than an atom"):
        dataclasses.replace(one, stride=(5, 2))
    with pytest.raises(InputError, match="analysis has shape"):
        dataclasses.replace(one, analysis=one.D[:3])
    with pytest.raises(InputError, match="atoms of images"):
        dataclasses.replace(one, D=one.D[:, :, 0])
