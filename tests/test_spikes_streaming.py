"""The search of long recordings: the same spikes however it is read, interrupted and resumed; little memory."""

import tracemalloc

import numpy as np
import pytest

from emdl import spikes
from emdl.errors import FileFormatError, InputError
from emdl.simulate import tetrode
from emdl.spikes import decision, streaming
from emdl.spikes.lazy import Lazy


@pytest.fixture(scope="module")
def recording():
    return tetrode(8.0, 3, rng=0, peak_uv=(80.0, 250.0), rate_hz=(20.0, 40.0))


@pytest.fixture(scope="module")
def model(recording):
    return spikes.fit(recording.data[:, :120000], recording.fs)


@pytest.fixture(scope="module")
def whole(recording, model):
    return spikes.detect(recording.data, model)


def assert_same(found, wanted):
    np.testing.assert_array_equal(found.sample, wanted.sample)
    np.testing.assert_array_equal(found.unit, wanted.unit)
    np.testing.assert_array_equal(found.amplitude, wanted.amplitude)


@pytest.mark.parametrize("block_s", [0.01, 1.1, 2.5, 100.0])
def test_spikes_have_the_same_bits_whatever_is_read_at_once(recording, model, whole, block_s):
    assert_same(spikes.detect(recording.data, model, block_s=block_s), whole)


def test_pieces_give_the_spikes_of_one_piece(recording, model, whole, monkeypatch):
    """Only a spike in the midst of a long burst at a border could differ; here none does."""
    monkeypatch.setattr(decision, "_PIECE", recording.data.shape[1] + 1)
    found = spikes.detect(recording.data, model)
    np.testing.assert_array_equal(found.sample, whole.sample)
    np.testing.assert_array_equal(found.unit, whole.unit)


def test_spikes_do_not_depend_on_the_number_of_threads(recording, model, whole, monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    assert_same(spikes.detect(recording.data, model), whole)


def test_integers_and_what_is_read_slice_by_slice_give_the_same_spikes(recording, model):
    data = np.round(recording.data * 8).astype(np.int16)
    wanted = spikes.detect(data.astype(np.float32) / 8, model)
    lazy = Lazy(lambda a, b: data[:, a:b].astype(np.float32) / 8, data.shape, np.float32)
    assert_same(spikes.detect(lazy, model, block_s=2.0), wanted)


def test_a_search_that_was_interrupted_goes_on_to_the_same_spikes(recording, model, whole, tmp_path):
    path = tmp_path / "search.h5"

    def interrupt(state):
        if state.done_s > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spikes.detect(recording.data, model, block_s=1.0, checkpoint=path, progress=interrupt)
    found, seconds = spikes.partial(path, model)
    assert 3 < seconds < 6
    n = np.count_nonzero(whole.sample < (seconds - 0.01) * whole.fs)
    assert n > 50
    np.testing.assert_array_equal(found.sample[:n], whole.sample[:n])
    seen = []
    again = spikes.detect(
        recording.data, model, block_s=1.0, checkpoint=path, resume=True, progress=lambda s: seen.append(s.done_s)
    )
    assert_same(again, whole)
    assert min(seen) > seconds
    assert_same(spikes.partial(path, model)[0], whole)


def test_a_search_says_how_far_it_is_and_can_be_ended(recording, model, whole):
    seen = []
    found = spikes.detect(recording.data, model, block_s=1.0, progress=lambda s: seen.append(s) or len(seen) == 2)
    assert [s.total_s for s in seen] == [8.0, 8.0]
    assert 0 < seen[0].done_s < seen[1].done_s < 8
    assert seen[0].left > 0
    assert 0 < len(found) == seen[1].n_spikes < len(whole)


def test_a_checkpoint_of_another_recording_or_model_is_refused(recording, model, tmp_path):
    path = tmp_path / "search.h5"
    spikes.detect(recording.data, model, checkpoint=path)
    with pytest.raises(InputError, match="data"):
        spikes.detect(recording.data[:, :150000], model, checkpoint=path, resume=True)
    with pytest.raises(InputError, match="exists"):
        spikes.detect(recording.data, model, checkpoint=path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(FileFormatError):
        spikes.partial(path, model)


def test_a_value_that_is_not_finite_is_named_when_it_is_met(recording, model, monkeypatch):
    monkeypatch.setattr(streaming, "_SMALL", 1000)
    data = recording.data.copy()
    data[2, 200_000] = np.nan
    with pytest.raises(InputError, match="nan at channel 2, sample 200000"):
        spikes.detect(data, model)
    data[2] = 7
    with pytest.raises(InputError, match="channel 2 is constant"):
        spikes.detect(data, model)


def test_memory_does_not_grow_with_the_recording(recording, model, tmp_path):
    """One minute and five of int16, most of which is a hole in the file."""
    peak = []
    for minutes in (1, 5):
        path = tmp_path / f"{minutes}.dat"
        with path.open("wb") as file:
            file.write(np.round(recording.data.T).astype(np.int16).tobytes())
            file.truncate(minutes * 60 * 30000 * 8)
        data = np.memmap(path, np.int16, "r").reshape(-1, 4).T
        tracemalloc.start()
        assert len(spikes.detect(data, model, block_s=4.0)) > 200
        peak.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    assert peak[1] < peak[0] + 5, peak  # MiB; the file grew by 55
    assert peak[1] < 200
