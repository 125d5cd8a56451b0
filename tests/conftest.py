"""Fixtures shared by all tests."""

import functools
import os
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "cuda"))
import harness
import standin

from emdl import backend, device

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Return how many processes ``-n auto`` means: one for each processor that this one may use, as far as it pays."""
    return min(backend.n_threads(), 8)


def pytest_configure(config):
    """Keep the tests of a file together; make a folder for what is compiled, shared by all processes of this run."""
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "loadfile"
    if harness.BUILDS not in os.environ:
        os.environ[harness.BUILDS] = tempfile.mkdtemp(prefix="emdl-tests-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(harness.BUILDS)))


@pytest.fixture(autouse=True)
def no_silent_arithmetic():
    """Make overflow, underflow, division by zero and invalid operations of NumPy errors where they are not allowed."""
    with np.errstate(all="raise"):
        yield


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


@pytest.fixture(scope="session")
def cuda_kernels(tmp_path_factory):
    """Give, for a way to run kernels on the CPU (see cuda/harness.py), what compiles a CUDA source for it, once."""
    if harness.GXX is None:
        pytest.skip("needs g++ to run CUDA kernels on the CPU")

    @functools.cache
    def build(way, text, real):
        if way == "coroutines":
            return harness.Library(text, real)
        return harness.Program(text, real, tmp_path_factory.mktemp(way), way)

    return lambda way: functools.partial(build, way)


@pytest.fixture
def stand_in(cuda_kernels):
    """The stand-in for CuPy, in the place of ``cupy`` while a test runs."""
    with standin.installed(cuda_kernels("coroutines")) as module:
        yield module


@pytest.fixture(params=["stand-in", pytest.param("device", marks=pytest.mark.gpu)])
def cupy(request):
    """The stand-in; and, in tests marked gpu, the real CuPy where it finds a device."""
    return request.getfixturevalue("stand_in" if request.param == "stand-in" else "real_cupy")


@pytest.fixture
def real_cupy():
    """CuPy with a device, or the reason why there is none."""
    try:
        return device.find_cupy()
    except device.DeviceError as error:
        pytest.skip(str(error))
