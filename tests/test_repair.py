"""Repairs of a dictionary: cut-off, superfluous and missing atoms."""

import numpy as np
import pytest
from laws import smooth_atoms

from emdl import em_fit
from emdl.codes import SparseCodes
from emdl.encoder import solve
from emdl.events import Layout
from emdl.metrics import atom_error
from emdl.ops import objective, synthesize_full
from emdl.repair import contributions, missing_atom, recentre, repair_atoms, weak_atoms
from emdl.simulate import convolutional

ROUGH = np.tile([1.0, -1.0], 31).reshape(2, 31) / np.sqrt(62)  # an atom that fits nothing
LAYOUT = Layout((31,), (1,), True)


@pytest.fixture(scope="module")
def simulated():
    D = smooth_atoms(3, 2, 31, np.random.default_rng(0))
    return convolutional(8, 1200, D, density=1 / 300, snr_db=10, positive=True, rng=1)


def codes_of(simulated, D):
    penalty = np.full(len(D), 4 * simulated.sigma)
    return solve(simulated.y, D, penalty, (1,), tol=1e-6, positive=True).codes, penalty


def moved(atom, shift):
    """Return the atom moved to the right; what leaves the window is lost."""
    padded = np.pad(atom, [(0, 0), (abs(shift),) * 2])
    return padded[:, abs(shift) - shift :][:, : atom.shape[1]]


def test_atoms_cut_off_at_a_border_are_moved_and_others_are_not(simulated):
    D = simulated.D.copy()
    D[1] = moved(D[1], -12) / np.linalg.norm(moved(D[1], -12))
    before = atom_error(D, simulated.D).errors
    assert before[1] > 0.2
    codes, _ = codes_of(simulated, D)
    residual = simulated.y - synthesize_full(codes, D, (1,))
    mended, which = recentre(D, codes, residual, LAYOUT, simulated.sigma)
    assert 1 in which
    assert atom_error(mended, simulated.D).errors[1] < 0.5 * before[1]
    np.testing.assert_array_equal(mended[[0, 2]], D[[0, 2]])


def test_contributions_are_what_the_objective_loses_with_an_atom(simulated):
    """Against encoding anew without the atom; equal for events alone, and here one in five overlaps another."""
    codes, penalty = codes_of(simulated, simulated.D)
    estimate = contributions(simulated.D, codes, penalty, LAYOUT)
    full = objective(simulated.y, codes.dense(), simulated.D, penalty)
    for k in range(3):
        rest = np.delete(simulated.D, k, axis=0)
        left, fewer = codes_of(simulated, rest)
        np.testing.assert_allclose(estimate[k], objective(simulated.y, left.dense(), rest, fewer) - full, rtol=0.5)


def test_duplicates_and_unused_atoms_contribute_nothing(simulated):
    D = np.concatenate([simulated.D, simulated.D[:1], ROUGH[None]])
    codes, penalty = codes_of(simulated, D)
    loss = contributions(D, codes, penalty, LAYOUT)
    assert loss[[0, 3]].max() < 0.05 * loss[1:3].min()
    assert loss[4] < 0.05 * loss[1:3].min()
    assert set(weak_atoms(D, codes, penalty, LAYOUT)) == {0, 3, 4}
    dense = weak_atoms(D, codes.dense(), penalty, LAYOUT)
    assert set(dense) == {0, 3, 4}


def test_a_missing_atom_is_found_in_the_residual(simulated, rng):
    codes, penalty = codes_of(simulated, simulated.D[:2])
    residual = simulated.y - synthesize_full(codes, simulated.D[:2], (1,))
    atom, gain = missing_atom(residual, float(penalty[0]), LAYOUT, simulated.sigma, rng)
    assert gain > 0
    assert atom_error(atom[None], simulated.D[2:]).errors[0] < 0.6  # what the two others left of it


def test_noise_holds_no_missing_atom(simulated, rng):
    atom, gain = missing_atom(np.zeros((1, 2, 100)), 1.0, LAYOUT, 0.1, rng)
    assert atom is None
    assert gain == 0


def test_a_good_dictionary_is_left_alone(simulated, rng):
    codes, penalty = codes_of(simulated, simulated.D)
    D, note = repair_atoms(simulated.D, codes, simulated.y, penalty, LAYOUT, simulated.sigma, rng)
    assert "replaced" not in note
    assert atom_error(D, simulated.D).errors.max() < 0.05


def test_a_duplicate_is_replaced_by_what_is_missing(simulated):
    D0 = simulated.D[[0, 1, 1]]
    rng = np.random.default_rng(0)
    codes, penalty = codes_of(simulated, D0)
    D, note = repair_atoms(D0, codes, simulated.y, penalty, LAYOUT, simulated.sigma, rng)
    assert "replaced atom" in note
    assert atom_error(D, simulated.D).errors.max() < 0.6
    assert isinstance(codes, SparseCodes)
    np.testing.assert_array_equal(D0, simulated.D[[0, 1, 1]])


@pytest.mark.parametrize("kind", ["moved", "unused"])
def test_em_gets_over_a_bad_start_only_with_repairs(kind, simulated):
    D0 = simulated.D.copy()
    if kind == "moved":
        D0[0], D0[2] = moved(D0[0], 14), moved(D0[2], -12)
    else:
        D0[2] = ROUGH
    options = {"D0": D0, "lmbd0": 4 / simulated.sigma, "sigma": simulated.sigma, "learn_lmbd": False, "positive": True}
    errors = {}
    for repair in (False, True):
        result = em_fit(simulated.y, 3, 31, repair=repair, rng=0, **options)
        errors[repair] = atom_error(result.model.D, simulated.D).errors.max()
    assert errors[True] < 0.08 < errors[False]
    assert "atom" in result.message
