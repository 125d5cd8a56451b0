"""Fixtures shared by all tests."""

import pathlib

import numpy as np
import pytest

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def rng():
    """A generator with a fixed seed, fresh for every test."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real recordings and images, which stands beside the checkout of a developer."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real recordings here: {SHARED_DATA} is absent (they may not be redistributed)")
    return SHARED_DATA
