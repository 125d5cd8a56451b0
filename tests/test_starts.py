"""The blind start: events, shapes, competition; and `em_fit` from it."""

import numpy as np
import pytest

from emdl import em_fit
from emdl.errors import InputError
from emdl.events import Layout, crop, padded, peaks, strongest_part, windows
from emdl.metrics import atom_error
from emdl.optim import normalize_atoms
from emdl.shapes import cluster, first_shapes, substitutes
from emdl.simulate import convolutional, waveforms
from emdl.starts import blind

CASES = {
    "one-sided": {"K": 3, "C": 1, "s": (31,), "S": 1500, "stride": 1, "density": 1 / 250, "positive": True},
    "two-sided": {"K": 3, "C": 2, "s": (31,), "S": 1500, "stride": 1, "density": 1 / 250, "positive": False},
    "stride": {"K": 2, "C": 3, "s": (24,), "S": 1500, "stride": 3, "density": 1 / 100, "positive": False},
    "images": {"K": 3, "C": 1, "s": (7, 6), "S": (90, 80), "stride": 1, "density": 1 / 300, "positive": False},
}


def simulate(case, seed):
    """Return signals at 10 dB, with atoms that fall off towards the borders of their window."""
    rng = np.random.default_rng(seed)
    shape = case["s"]
    if len(shape) == 1 and case["stride"] == 1:
        D = waveforms(case["K"], case["C"], shape[0], rng=rng)
    else:
        D = rng.standard_normal((case["K"], case["C"], *shape))
        for axis, s in enumerate(shape, 2):
            D = D * np.hanning(s + 2)[1:-1].reshape(-1, *[1] * (D.ndim - 1 - axis))
    kept = {name: case[name] for name in ("stride", "density", "positive")}
    return convolutional(8, case["S"], normalize_atoms(D), snr_db=10, rng=rng, **kept)


def layout_of(case):
    return Layout(case["s"], (case["stride"],) * len(case["s"]), case["positive"])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_blind_start_lies_near_every_atom(name, seed):
    case = CASES[name]
    simulated, layout = simulate(case, seed), layout_of(case)
    D = blind(
        simulated.y,
        case["K"],
        case["s"],
        positive=layout.positive,
        stride=layout.stride,
        sigma=simulated.sigma,
        rng=seed,
    )
    np.testing.assert_allclose((D.reshape(len(D), -1) ** 2).sum(axis=1), 1, rtol=1e-12)
    assert atom_error(D, simulated.D).errors.max() < 0.25  # random windows: 0.5 to 0.9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_em_finds_all_atoms_with_no_knowledge(seed):
    simulated = simulate(CASES["one-sided"], 3)
    result = em_fit(simulated.y, 3, 31, positive=True, rng=seed)
    assert atom_error(result.model.D, simulated.D).errors.max() < 0.1  # the target on W3


def test_fewer_atoms_than_there_are_are_not_mixtures():
    simulated = simulate(CASES["one-sided"], 4)
    D = blind(simulated.y, 2, (31,), positive=True, sigma=simulated.sigma, rng=0)
    found = np.sort(atom_error(D, simulated.D).errors)
    assert found[1] < 0.3
    assert found[2] == 1


def test_windows_are_centred_on_events_that_lie_alone():
    """One event in each signal, noise below it: one window each, the atom within a few samples of its middle."""
    D = np.hanning(23)[None, None, 1:-1] * np.sin(np.arange(21))
    y = 1e-3 * np.random.default_rng(0).standard_normal((3, 1, 200))
    for i, at in enumerate((40, 90, 179)):  # the last ends where the signal does
        y[i, :, at : at + 21] += D[0]
    layout = Layout((21,), (1,), True)
    place = peaks(y, layout, 1e-3)
    np.testing.assert_array_equal(place[:, 0], [0, 1, 2])
    assert abs(place[:, 1] - [40, 90, 179]).max() <= 2
    seen = windows(y, place, layout)
    assert seen.shape == (3, 1, 21 + 4 * 11)
    np.testing.assert_allclose((seen**2).sum(axis=(1, 2)), (D**2).sum(), rtol=0.05)


def test_noise_alone_holds_hardly_any_event():
    y = 2.0 * np.random.default_rng(0).standard_normal((4, 2, 3000))
    assert len(peaks(y, Layout((20,), (1,), True), 2.0)) <= 4  # of 300 maxima; four standard deviations, skewed


@pytest.mark.parametrize(("shape", "stride"), [((9,), (2,)), ((4, 5), (1, 3))])
def test_strongest_part_finds_an_atom_again(shape, stride, rng):
    layout = Layout(shape, stride, True)
    D = rng.standard_normal((3, 2, *shape))
    corner = np.array(
        [[rng.integers(2 * m // t + 1) * t for m, t in zip(layout.margin, stride, strict=True)] for _ in D]
    )
    long_atoms = np.zeros((3, 2, *layout.long_shape))
    for k, at in enumerate(corner):
        long_atoms[(k, slice(None), *(slice(i, i + s) for i, s in zip(at, shape, strict=True)))] = D[k]
    found, where = strongest_part(long_atoms, layout)
    np.testing.assert_array_equal(where, corner)
    np.testing.assert_array_equal(found, D)
    np.testing.assert_array_equal(crop(long_atoms, corner, shape), D)


def test_short_content_is_left_in_the_middle():
    long_atoms = padded(np.eye(1, 7, 3)[None], (9,))  # one tap in the middle of 25 samples
    _, corner = strongest_part(long_atoms, Layout((13,), (1,), True))
    np.testing.assert_array_equal(corner, [[6]])


def test_clusters_gather_shifted_scaled_and_flipped_copies(rng):
    layout = Layout((12,), (1,), False)
    D = normalize_atoms(rng.standard_normal((2, 1, 12)) * np.hanning(14)[1:-1])
    seen = 0.01 * rng.standard_normal((60, 1, 12 + 4 * 6))
    for i in range(60):
        at = 12 + rng.integers(-3, 4)
        seen[i, :, at : at + 12] += rng.choice([-1, 1]) * rng.uniform(0.5, 2) * D[i % 2]
    shapes, gain = cluster(seen, first_shapes(seen, 2, layout, rng), layout, 0.05)
    assert atom_error(shapes, D).errors.max() < 0.05
    assert (gain > 0).all()


def test_first_shapes_are_as_many_as_asked_and_no_more_than_there_are(rng):
    layout = Layout((6,), (1,), True)
    seen = rng.standard_normal((4, 1, 6 + 4 * 3))
    assert first_shapes(seen, 3, layout, rng).shape == (3, 1, 6)
    assert len(first_shapes(seen, 9, layout, rng)) <= 4


def test_substitutes_tell_duplicates_and_compounds_from_atoms_of_their_own(rng):
    base = normalize_atoms(rng.standard_normal((3, 1, 9)))
    moved = np.zeros((1, 1, 15))
    moved[0, :, 4:13] = base[0]
    compound = np.zeros((1, 1, 15))
    compound[0, :, :9] += 0.8 * base[1]
    compound[0, :, 6:] += 0.6 * base[2]
    D = normalize_atoms(np.concatenate([np.pad(base, [(0, 0), (0, 0), (0, 6)]), moved, compound]))
    weight, other = substitutes(D, Layout((15,), (1,), True))
    left = 1 - (weight**2).sum(axis=1)
    assert weight[3, 0] > 1 - 1e-9
    assert other[3, 0] == 0
    assert other[0, 0] == 3
    assert set(other[4, :2]) == {1, 2}
    assert left[4] < 0.05
    assert (left[1:3] > 0.1).all()


def test_negative_copies_are_no_substitutes_for_non_negative_codes(rng):
    D = normalize_atoms(rng.standard_normal((1, 2, 9)))
    D = np.concatenate([D, -D])
    assert substitutes(D, Layout((9,), (1,), False))[0][0, 0] > 1 - 1e-9
    assert substitutes(D, Layout((9,), (1,), True))[0][0, 0] < 0.9


def test_long_signals_and_short_ones_start_alike():
    """Only some blocks of a long signal take part, and each signal may be hardly longer than an atom."""
    case = CASES["one-sided"]
    simulated = simulate(case, 5)
    long_one = np.ascontiguousarray(simulated.y.transpose(1, 0, 2).reshape(1, 1, -1))
    short_ones = simulated.y.reshape(-1, 1, 75)
    for y in (long_one, short_ones):
        D = blind(y, 3, (31,), positive=True, sigma=simulated.sigma, rng=0)
        assert atom_error(D, simulated.D).errors.max() < 0.3


def test_signals_with_too_few_events_start_from_random_windows(rng):
    y = rng.standard_normal((1, 2, 40))
    D = blind(y, 5, (9,), sigma=1.0, rng=0)
    assert D.shape == (5, 2, 9)
    np.testing.assert_allclose((D**2).sum(axis=(1, 2)), 1, rtol=1e-12)
    y[..., :39] = 0
    assert np.isfinite(blind(y, 5, (9,), sigma=1.0, rng=0)).all()


def test_more_atoms_than_windows_are_refused(rng):
    with pytest.raises(InputError, match="hold 4 windows of"):
        blind(rng.standard_normal((2, 1, 10)), 5, (9,), rng=0)


def test_start_depends_on_the_seed_alone_and_keeps_float32():
    simulated = simulate(CASES["one-sided"], 6)
    y = simulated.y.astype(np.float32)
    first, again, other = (blind(y, 3, (31,), positive=True, sigma=simulated.sigma, rng=seed) for seed in (0, 0, 1))
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
