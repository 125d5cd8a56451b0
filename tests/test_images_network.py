"""The denoising network: its kernels against plain NumPy, and what a user may rely on."""

import h5py
import layered
import numpy as np
import pytest

from emdl.errors import FileFormatError, InputError
from emdl.images.network import N_VIEWS, Network, bundled, frame, restore, turn, turn_back, workspace


@pytest.fixture
def net(rng):
    return layered.random_network(rng)


@pytest.fixture
def noisy(rng):
    """A smooth picture with an edge, and unit noise."""
    rows, columns = np.mgrid[:70, :90]
    clean = 6 * np.sin(rows / 9) + 8 * (columns > 40) + columns / 20
    return clean, (clean + rng.standard_normal(clean.shape))[None, None].astype(np.float32)


@pytest.mark.parametrize(("n_channels", "stride", "n_atoms"), [(1, 2, 32), (3, 2, 64), (1, 3, 64), (2, 1, 32)])
def test_the_kernels_do_what_plain_numpy_does(rng, n_channels, stride, n_atoms):
    net = layered.random_network(rng, n_atoms=n_atoms, n_channels=n_channels, stride=stride)
    y = 2 * rng.standard_normal((n_channels, 8 + 12 * stride, 8 + 13 * stride)).astype(np.float32)
    want, codes = layered.run(y, net.analysis, net.synthesis, net.tau, stride)
    got, filled, places = net._pass(y)
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    assert abs(filled - np.count_nonzero(codes)) <= 2  # codes at the very threshold
    assert places == codes.size


def test_denoising_commutes_with_a_change_of_unit(net, noisy):
    y = noisy[1]
    assert np.allclose(net.denoise(1000 * y, 1000.0), 1000 * net.denoise(y, 1.0), atol=1e-2, rtol=1e-4)


def test_denoising_commutes_with_a_change_of_brightness(net, noisy):
    y = noisy[1]
    assert np.abs(net.denoise(y + 64, 1.0) - net.denoise(y, 1.0) - 64).max() < 1e-3


def test_all_views_together_treat_every_direction_alike(noisy):
    y = noisy[1][..., :70]

    def change(n_views):
        straight = bundled().denoise(y, 1.0, n_views=n_views)
        turned = (turn_back(bundled().denoise(turn(y, view), 1.0, n_views=n_views), view) for view in range(1, N_VIEWS))
        return max(np.sqrt(np.mean((x - straight) ** 2)) for x in turned)

    assert change(N_VIEWS) < 0.7 * change(1)


@pytest.mark.parametrize("view", range(N_VIEWS))
def test_a_view_is_undone(view, rng):
    x = rng.standard_normal((2, 5, 7))
    assert np.array_equal(turn_back(turn(x, view), view), x)


def test_views_differ(rng):
    x = rng.standard_normal((1, 6, 6))
    assert len({turn(x, view).tobytes() for view in range(N_VIEWS)}) == N_VIEWS


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (29, 31), (57, 8)])
def test_images_of_any_size_come_back_in_their_size(net, rng, size):
    y = rng.standard_normal((2, 1, *size)) + 5
    out = net.denoise(y, 0.5, n_views=3)
    assert out.shape == y.shape
    assert out.dtype == np.float32
    assert np.isfinite(out).all()


def test_tiles_leave_no_seam(noisy, monkeypatch):
    net = bundled()
    y = np.tile(noisy[1], (1, 1, 2, 2))
    whole = net.denoise(y, 1.0, n_views=2)
    monkeypatch.setattr("emdl.images.network._TILE", 64)
    parts = net.denoise(y, 1.0, n_views=2)
    assert np.abs(parts - whole).max() < 0.02  # of the noise level


@pytest.mark.parametrize("sigma", [0.01, 1.0, 3.0])
def test_what_no_photograph_holds_is_kept_where_the_noise_is_weak(rng, sigma):
    board = np.indices((64, 64)).sum(0) % 2 * 255.0
    board[20:40, 20:40] = 128
    y = board + sigma * rng.standard_normal(board.shape)
    out = bundled().denoise(y[None, None], sigma)[0, 0]
    assert np.sqrt(np.mean((out - board) ** 2)) < 1.3 * sigma


def test_residuals_of_noise_are_not_given_back(rng):
    clean = rng.standard_normal((2, 90, 80)).astype(np.float32)
    noisy = clean + rng.standard_normal(clean.shape).astype(np.float32)
    assert np.mean((restore(noisy, clean) - clean) ** 2) < 1e-3  # of the energy of the noise


def test_sigma_zero_gives_the_image_back(net, noisy):
    y = np.concatenate([noisy[1], noisy[1]])
    out = net.denoise(y, [0.0, 1.0])
    assert np.array_equal(out[0], y[0])
    assert not np.array_equal(out[1], y[1])


def test_results_do_not_depend_on_the_number_of_threads(net, noisy, monkeypatch):
    many = net.denoise(noisy[1], 1.0)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    assert np.array_equal(net.denoise(noisy[1], 1.0), many)


def test_the_input_is_not_written(net, noisy):
    y = noisy[1]
    before = y.copy()
    net.denoise(y, 1.0)
    assert np.array_equal(y, before)


def test_the_bundled_network_removes_noise_at_every_level(noisy, rng):
    clean, _ = noisy
    for sigma in (0.3, 1.0, 3.0):
        y = (clean + sigma * rng.standard_normal(clean.shape))[None, None]
        error = np.sqrt(np.mean((bundled().denoise(y, sigma)[0, 0] - clean) ** 2))
        assert error < 0.6 * sigma


def test_the_bundled_file_is_small_and_its_codes_are_sparse(noisy):
    import importlib.resources

    path = importlib.resources.files("emdl.images") / "data" / "denoiser.h5"
    assert len(path.read_bytes()) < 2**20
    assert 0 < bundled().share(noisy[1], 1.0) < 0.2


def test_a_network_comes_back_from_its_file(net, noisy, tmp_path):
    held = Network(net.analysis, net.synthesis, net.tau, net.stride, {"source": "a test", "steps": 3, "rate": 0.5})
    held.save(tmp_path / "n.h5")
    read = Network.load(tmp_path / "n.h5")
    assert read.attributes == held.attributes
    assert np.array_equal(read.denoise(noisy[1], 1.0), net.denoise(noisy[1], 1.0))
    held.save(tmp_path / "small.h5", dtype=np.float16)
    small = Network.load(tmp_path / "small.h5")
    assert np.abs(small.denoise(noisy[1], 1.0) - net.denoise(noisy[1], 1.0)).max() < 0.05


def test_a_file_of_another_kind_is_refused(net, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["D"] = np.ones(3)
    with pytest.raises(FileFormatError, match="holds no denoising network"):
        Network.load(tmp_path / "other.h5")
    net.save(tmp_path / "n.h5")
    with h5py.File(tmp_path / "n.h5", "r+") as file:
        del file["tau"]
    with pytest.raises(FileFormatError, match="tau"):
        Network.load(tmp_path / "n.h5")
    net.save(tmp_path / "n.h5")
    with h5py.File(tmp_path / "n.h5", "r+") as file:
        file.attrs["emdl_format"] = 99
    with pytest.raises(FileFormatError, match="newer"):
        Network.load(tmp_path / "n.h5")
    with pytest.raises(FileFormatError, match="no file"):
        Network.load(tmp_path / "absent.h5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"planes": np.ones((3, 4, 5))}, "wanted"),
        ({"planes": np.ones((1, 2, 9, 9))}, "wanted"),
        ({"planes": np.full((1, 1, 9, 9), np.nan)}, "not finite"),
        ({"sigma": -1.0}, "sigma"),
        ({"sigma": np.inf}, "sigma"),
        ({"n_views": 9}, "n_views"),
        ({"n_views": 0}, "n_views"),
    ],
)
def test_wrong_arguments_are_named(net, change, message):
    given = {"planes": np.ones((1, 1, 9, 9)), "sigma": 1.0, "n_views": 1} | change
    with pytest.raises(InputError, match=message):
        net.denoise(given["planes"], given["sigma"], n_views=given["n_views"])


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("tau", lambda net: -net.tau),
        ("tau", lambda net: net.tau[:1]),
        ("analysis", lambda net: net.analysis[:, :20]),
        ("analysis", lambda net: net.analysis[..., :7]),
        ("synthesis", lambda net: net.synthesis[:1]),
        ("stride", lambda net: 9),
    ],
)
def test_a_network_that_cannot_be_is_refused(net, name, make):
    parts = {part: getattr(net, part) for part in ("analysis", "synthesis", "tau", "stride")} | {name: make(net)}
    with pytest.raises(InputError):
        Network(**parts)


def test_memory_is_used_again():
    shape = frame((1, 40, 40), 2, 32)
    assert workspace(shape, 2, 1) is workspace(shape, 2, 1)
