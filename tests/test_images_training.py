"""Training of the denoising network: gradients, progress, checkpoints, photographs."""

import errno
import logging

import h5py
import layered
import numpy as np
import pytest
from PIL import Image

from emdl.errors import EmdlError, FileFormatError, InputError
from emdl.images import training
from emdl.images.network import Network
from emdl.images.photographs import Crops, read_photographs
from emdl.images.training import Parameters, loss_gradient, risk_gradient, start_network, train, validate


@pytest.fixture
def photographs(rng):
    """Pictures with edges and ramps."""
    out = []
    for _ in range(3):
        rows, columns = np.mgrid[:90, :110]
        angle, place = rng.uniform(0, np.pi, 6), rng.uniform(-20, 100, 6)
        sides = [np.cos(a) * rows + np.sin(a) * columns > p for a, p in zip(angle, place, strict=True)]
        out.append(np.clip(60 + sum(30 * side for side in sides) + rows / 4, 0, 255)[None].astype(np.uint8))
    return out


@pytest.mark.parametrize(("n_channels", "stride"), [(1, 2), (3, 2), (1, 3)])
def test_gradients_are_those_of_finite_differences(rng, n_channels, stride):
    net = layered.random_network(rng, n_channels=n_channels, stride=stride)
    shape = (n_channels, 8 + 12 * stride, 8 + 13 * stride)
    clean = 2 * rng.standard_normal(shape).astype(np.float32)
    noisy = clean + rng.standard_normal(shape).astype(np.float32)
    parameters = Parameters.of(net)
    gradient = Parameters(parameters.shape)
    loss, _ = loss_gradient(parameters, stride, noisy, clean, 0.3, gradient, margin=5)

    def plain(vector):
        p = Parameters(parameters.shape, vector)
        out = layered.run(noisy, p.analysis, p.synthesis, p.tau, stride)[0]
        return 0.3 * np.sqrt(((out - clean)[:, 5:-5, 5:-5] ** 2).mean() + 0.01)

    at = parameters.vector.astype(np.float64)
    assert loss == pytest.approx(plain(at), rel=1e-5)
    size = (at.size - parameters.tau.size) // 2
    for part in (slice(0, size), slice(size, 2 * size), slice(2 * size, None)):
        way = np.zeros_like(at)
        way[part] = gradient.vector[part]  # along the gradient itself, so that the answer is its squared length
        way /= np.linalg.norm(way)
        step = 1e-6
        want = (plain(at + step * way) - plain(at - step * way)) / (2 * step)
        assert gradient.vector @ way == pytest.approx(want, rel=2e-3)


def test_the_estimated_loss_is_right_on_average_and_so_is_its_gradient(rng):
    net = layered.random_network(rng)
    clean = np.cumsum(rng.standard_normal((1, 62, 62)), axis=2).astype(np.float32)
    parameters = Parameters.of(net)
    known, estimated = Parameters(parameters.shape), Parameters(parameters.shape)
    losses = []
    for _ in range(150):
        noisy = clean + rng.standard_normal(clean.shape).astype(np.float32)
        signs = rng.choice(np.array([-1, 1], np.float32), clean.shape)
        a, _ = loss_gradient(parameters, 2, noisy, clean, 1.0, known)
        b, _ = risk_gradient(parameters, 2, noisy, signs, 1.0, estimated)
        losses.append((a**2 - 0.01, b))
    a, b = np.array(losses).T
    assert abs((b - a).mean()) < 4 * (b - a).std() / np.sqrt(len(a))
    cosine = known.vector @ estimated.vector / np.linalg.norm(known.vector) / np.linalg.norm(estimated.vector)
    assert cosine > 0.95


def test_training_on_noisy_images_alone_removes_noise(photographs, rng):
    noisy = [image + 25 * rng.standard_normal(image.shape).astype(np.float32) for image in photographs]
    given = {"n_atoms": 32, "n_layers": 3, "batch": 4, "crop": 54, "rate": 2e-3}
    begin = start_network(32, 3, rng=0)
    end = train(noisy, steps=60, sigma=25, noisy=True, network=begin, **given)
    before, after = (validate(net, photographs, levels=(25,))[25] for net in (begin, end))
    assert after > before + 0.7


def test_the_start_gives_images_back_where_nothing_is_shrunk(rng):
    net = start_network(128, 3, rng=0)
    y = rng.standard_normal((1, 1, 50, 60))
    same = Network(net.analysis, net.synthesis, 0 * net.tau).denoise(y, 1.0)
    assert np.abs(same - y).max() < 0.2


def test_training_removes_more_noise_than_the_start(photographs):
    begin = start_network(32, 3, rng=0)
    end = train(photographs, n_atoms=32, n_layers=3, steps=40, batch=4, crop=54, rate=2e-3, network=begin)
    before, after = (validate(net, photographs, levels=(25,))[25] for net in (begin, end))
    assert after > before + 1


def test_what_is_tied_stays_tied(photographs):
    given = {"n_atoms": 32, "n_layers": 3, "steps": 3, "batch": 2, "crop": 42}
    free, layers, whole = (train(photographs, **given, tied=tied) for tied in ("no", "layers", "all"))
    assert not np.array_equal(free.analysis[0], free.analysis[1])
    for net in (layers, whole):
        assert np.array_equal(net.analysis, np.broadcast_to(net.analysis[0], net.analysis.shape))
        assert np.array_equal(net.synthesis, np.broadcast_to(net.synthesis[0], net.synthesis.shape))
        assert not np.array_equal(net.tau[0], net.tau[1])
    assert not np.array_equal(layers.analysis, layers.synthesis)
    assert np.array_equal(whole.analysis, whole.synthesis)


def test_an_interrupted_training_ends_with_the_same_bits(photographs, tmp_path):
    given = {"n_atoms": 32, "n_layers": 2, "steps": 6, "batch": 3, "crop": 42, "rng": 4}
    whole = train(photographs, **given)

    class StopError(Exception):
        pass

    def stop(progress):
        if progress.step == 3:
            raise StopError

    path = tmp_path / "state.h5"
    with pytest.raises(StopError):
        train(photographs, **given, checkpoint=path, callback=stop, every=0.0)
    steps = []
    again = train(photographs, **given, checkpoint=path, callback=lambda now: steps.append(now.step), every=0.0)
    assert steps[0] == 4
    for name in ("analysis", "synthesis", "tau"):
        assert np.array_equal(getattr(again, name), getattr(whole, name))
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")) == ["state.h5"]


def test_bits_do_not_depend_on_the_number_of_threads(photographs, monkeypatch):
    given = {"n_atoms": 32, "n_layers": 2, "steps": 2, "batch": 5, "crop": 42}
    many = train(photographs, **given)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    assert np.array_equal(train(photographs, **given).analysis, many.analysis)


def test_training_learns_to_ignore_time_that_others_took(photographs):
    seen = []
    train(photographs, n_atoms=32, n_layers=1, seconds=0.2, batch=1, crop=42, callback=seen.append, every=0.05)
    assert seen[-1].done == 1
    assert [now.step for now in seen] == sorted({now.step for now in seen})


def test_progress_tells_the_validation(photographs):
    seen = []
    train(
        photographs, n_atoms=32, n_layers=1, steps=2, batch=1, crop=42, validation=photographs[:1], callback=seen.append
    )
    assert set(seen[-1].psnr) == {15, 25, 50}
    assert 0 < seen[-1].share < 1
    assert np.isfinite(seen[-1].loss)


def test_a_checkpoint_of_another_size_is_refused(photographs, tmp_path):
    given = {"steps": 1, "batch": 1, "crop": 42, "checkpoint": tmp_path / "state.h5"}
    train(photographs, n_atoms=32, n_layers=2, **given)
    with pytest.raises(FileFormatError, match="wanted"):
        train(photographs, n_atoms=32, n_layers=1, **given)
    with h5py.File(tmp_path / "state.h5", "r+") as file:
        del file["training"]
    with pytest.raises(FileFormatError):
        train(photographs, n_atoms=32, n_layers=2, **given)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": None},
        {"seconds": 1.0},
        {"crop": 43},
        {"crop": 20},
        {"crop": 200},
        {"sigma": (9, 3)},
        {"sigma": (0, 3)},
        {"n_atoms": 16},
        {"noisy": True},
        {"tied": "some"},
    ],
)
def test_a_training_that_cannot_be_is_refused(photographs, change):
    given = {"n_atoms": 32, "n_layers": 1, "steps": 1, "batch": 1, "crop": 42} | change
    with pytest.raises(InputError):
        train(photographs, **given)


def test_photographs_are_read_reduced_in_grey_and_colour(tmp_path, rng):
    Image.fromarray(rng.integers(0, 256, (200, 300, 3), np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "below").mkdir()
    Image.fromarray(rng.integers(0, 256, (40, 20), np.uint8)).save(tmp_path / "below" / "a.png")
    (tmp_path / "notes.txt").write_text("no picture")
    grey = read_photographs(tmp_path, sizes=(150, 60))
    assert [image.shape for image in grey] == [(1, 100, 150), (1, 40, 60), (1, 40, 20)]
    assert [image.shape[0] for image in read_photographs(tmp_path, sizes=(150,), grey=False)] == [3, 3]
    with pytest.raises(InputError, match="no photograph"):
        read_photographs(tmp_path / "nothing")


def test_crops_are_pieces_of_the_photographs(rng):
    image = np.arange(40 * 50).reshape(1, 40, 50)
    crops = Crops([image, image[:, :5]], 10)
    for _ in range(20):
        crop = crops.draw(rng)
        assert crop.shape == (1, 10, 10)
        assert {abs(int(d)) for d in np.diff(crop[0], axis=0).ravel()} in ({1}, {50})
    with pytest.raises(InputError, match="no photograph has"):
        Crops([image], 41)
    with pytest.raises(InputError, match="channels"):
        Crops([image, np.repeat(image, 3, axis=0)], 10)


def test_crops_prefer_what_has_contrast(rng):
    flat = np.zeros((1, 100, 200))
    flat[:, :, 100:] = rng.integers(0, 255, (100, 100))
    picked = [np.mean([Crops([flat], 20, tries=tries).draw(rng).std() > 50 for _ in range(60)]) for tries in (1, 3)]
    assert picked[1] > picked[0]


# Checkpoints

SMALL = {"n_atoms": 32, "n_layers": 2, "batch": 2, "crop": 42, "rng": 3}


def same_network(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("analysis", "synthesis", "tau"))


def stop_at(step):
    """Return what interrupts a training after so many steps of this run."""
    left = [step]

    def pause():
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return pause


def test_an_interrupt_writes_the_checkpoint_wherever_it_comes(photographs, tmp_path):
    whole = train(photographs, **SMALL, steps=6)
    for stop in (1, 2, 1):
        with pytest.raises(KeyboardInterrupt):
            train(photographs, **SMALL, steps=6, checkpoint=tmp_path / "c.h5", pause=stop_at(stop))
    seen = []
    again = train(photographs, **SMALL, steps=6, checkpoint=tmp_path / "c.h5", pause=lambda: seen.append(1))
    assert len(seen) == 2
    assert same_network(again, whole)
    assert [p.name for p in tmp_path.iterdir()] == ["c.h5"]


def test_a_step_that_is_cut_short_is_not_kept(photographs, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        train(photographs, **SMALL, steps=6, checkpoint=tmp_path / "c.h5", pause=stop_at(2))
    before = (tmp_path / "c.h5").read_bytes()

    def half(self, vector, gradient, rate):
        self.step += 1
        vector += 1
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Adam, "update", half)
    with pytest.raises(KeyboardInterrupt):
        train(photographs, **SMALL, steps=6, checkpoint=tmp_path / "c.h5")
    assert (tmp_path / "c.h5").read_bytes() == before


def test_a_disk_that_is_full_does_not_end_the_training(photographs, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = train(photographs, **SMALL, steps=3)
    monkeypatch.setattr("emdl.storage.os.fsync", full)
    with caplog.at_level(logging.WARNING, "emdl"):
        assert same_network(train(photographs, **SMALL, steps=3, checkpoint=tmp_path / "c.h5", every=0.0), whole)
    assert "the checkpoint was not written, the training goes on without" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change", [{"rng": 4}, {"batch": 3}, {"sigma": (5, 50)}, {"tied": "all"}, {"crop": 44}, {"photographs": 2}]
)
def test_a_checkpoint_of_another_training_is_refused_by_what_differs(change, photographs, tmp_path):
    train(photographs, **SMALL, steps=1, checkpoint=tmp_path / "c.h5")
    given = SMALL | {name: value for name, value in change.items() if name != "photographs"}
    pictures = photographs[: change.get("photographs", 3)]
    with pytest.raises(InputError, match=f"belongs to another training: {next(iter(change))} was"):
        train(pictures, **given, steps=2, checkpoint=tmp_path / "c.h5")
    train(photographs, **SMALL, steps=2, rate=1e-4, checkpoint=tmp_path / "c.h5")  # these may change


def test_a_checkpoint_that_does_not_say_what_was_asked_is_gone_on_from(photographs, tmp_path):
    train(photographs, **SMALL, steps=1, checkpoint=tmp_path / "c.h5")
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        del file["training"].attrs["asked"]
    whole = train(photographs, **SMALL, steps=1)
    assert same_network(train(photographs, **SMALL, steps=1, checkpoint=tmp_path / "c.h5"), whole)


@pytest.mark.parametrize("name", ["mean", "square", "step", "usual", "seconds"])
def test_a_checkpoint_with_numbers_that_are_none_is_refused(name, photographs, tmp_path):
    train(photographs, **SMALL, steps=1, checkpoint=tmp_path / "c.h5")
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        held = file["training"]
        if name in held:
            held[name][3] = np.nan
        else:
            held.attrs[name] = -1
    with pytest.raises(FileFormatError, match="damaged"):
        train(photographs, **SMALL, steps=2, checkpoint=tmp_path / "c.h5")


def test_two_trainings_cannot_have_one_checkpoint(photographs, tmp_path):
    def second():
        with pytest.raises(InputError, match="another run"):
            train(photographs, **SMALL, steps=1, checkpoint=tmp_path / "c.h5")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(photographs, **SMALL, steps=2, checkpoint=tmp_path / "c.h5", pause=second)


def test_a_training_without_finite_gradients_ends_with_a_sentence(photographs, monkeypatch):
    monkeypatch.setattr(training, "_LOST", 3)
    lost = lambda _, parameters, step: (np.nan, 0.0, np.full_like(parameters.vector, np.inf))  # noqa: E731
    monkeypatch.setattr(training._Threads, "batch", lost)
    with pytest.raises(EmdlError, match=r"diverged: no gradient was finite in the last 3 of 3 steps"):
        train(photographs, **SMALL, steps=1000)
