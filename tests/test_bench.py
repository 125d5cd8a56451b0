"""`emdl bench` on a short signal, and the machinery of the coding suite: judge, watch, store, tables, pictures."""

import json
import pathlib
import sys

import numpy as np
import pytest
from emdl.cli import bench, main

import emdl


def test_bench_reports_both_gaps_of_all_solvers(capsys, monkeypatch):
    monkeypatch.setattr(bench, "LIMIT", 1)
    assert main(["bench", "--samples", "1000", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["samples"] == 1000
    solvers = [row["solver"] for row in report["times"]]
    assert solvers[:4] == ["emdl, float32", "emdl, float64", "SciPy, FISTA", "SciPy, L-BFGS-B"]
    assert solvers[4:] == solvers[:3]
    for row in report["times"]:
        assert set(row["seconds"]) == {"0.001", "1e-05"}
        assert all(seconds is None or seconds > 0 for seconds in row["seconds"].values())
    assert report["times"][2]["seconds"]["0.001"] > report["times"][0]["seconds"]["0.001"]


@pytest.fixture
def suite(monkeypatch):
    """Return the modules of the suite, which are no part of the package."""
    root = str(pathlib.Path(__file__).resolve().parents[1])
    monkeypatch.setattr(sys, "path", [root, *sys.path])
    from benchmarks import coding, coding_plots, coding_report, peers, problems

    return {"coding": coding, "plots": coding_plots, "report": coding_report, "peers": peers, "problems": problems}


@pytest.mark.parametrize("name", ["w2-1000", "tetrode", "many-3", "small"])
def test_the_judge_agrees_with_the_package_that_it_does_not_use(suite, name):
    problem = suite["problems"].make(name)
    rng = np.random.default_rng(0)
    z = np.abs(rng.standard_normal((len(problem.y), len(problem.D), *problem.positions)))
    want = emdl.objective(problem.y, z, problem.D, problem.lmbd)
    assert suite["problems"].objective(problem, z) == pytest.approx(want, rel=1e-10)


def test_no_objective_lies_below_the_lower_bound_which_meets_the_minimum(suite):
    problem = suite["problems"].make("small")
    z = emdl.encode(problem.y, problem.D, problem.lmbd, tol=1e-9)
    least = suite["problems"].objective(problem, z)
    assert suite["problems"].lower_bound(problem, z) == pytest.approx(least, rel=1e-7)
    assert (
        suite["problems"].lower_bound(problem, np.zeros_like(z)) < least < suite["problems"].objective(problem, 0 * z)
    )


def test_the_judge_refuses_codes_of_the_wrong_sign(suite):
    problem = suite["problems"].make("w2-1000")
    with pytest.raises(ValueError, match="wanted codes >= 0"):
        suite["problems"].objective(problem, np.full((1, 3, 956), -1.0))


def test_a_search_finds_the_least_count_for_each_target(suite):
    """The objective of count n is 1 + 1 / n^2: 1e-3 is met from 32 on, 1e-5 from 317 on."""
    peers, points = suite["peers"], []
    watch = peers.Watch(None, 1.0, 1e9, points.append)
    watch.note = lambda wall, cpu, codes, **said: points.append({"gap": 1 / codes**2, **said}) or 1 / codes**2
    watch.search(lambda count: count, 5)
    met = {target: min(p["count"] for p in points if p["gap"] <= target) for target in peers.TARGETS}
    assert 32 <= met[1e-3] <= 33
    assert 317 <= met[1e-5] <= 317 * 1.03


def test_emdl_counts_only_what_it_has_certified(suite):
    points = [{"cpu": 1.0, "gap": 1e-9, "certified": 1e-2}, {"cpu": 2.0, "gap": 1e-9, "certified": 1e-4}]
    assert suite["peers"].seconds_to(points, 1e-3) == 1.0
    assert suite["peers"].seconds_to(points, 1e-3, certified=True) == 2.0
    assert suite["peers"].seconds_to(points, 1e-5, certified=True) is None


def test_a_cell_is_stored_at_once_and_measured_again_only_on_request(suite, tmp_path, monkeypatch):
    coding, asked = suite["coding"], []

    def fake(case, solver, **_):
        asked.append(solver)
        cell = {"case": case, "solver": solver, "threads": 1, "points": [], "processor": coding.processor()}
        return {**cell, "load": [0, 0], "error": "none"}

    monkeypatch.setattr(coding, "measure", fake)
    wanted = [("small", "emdl float32"), ("small", "emdl float64")]
    coding.run(coding.Store(tmp_path / "coding.json"), wanted[:1], say=str)
    assert list(json.loads((tmp_path / "coding.json").read_text())["cells"]) == ["small | emdl float32"]
    coding.run(coding.Store(tmp_path / "coding.json"), wanted, say=str)
    assert asked == ["emdl float32", "emdl float64"]
    coding.run(coding.Store(tmp_path / "coding.json"), wanted, again="float64", say=str)
    assert asked == ["emdl float32", "emdl float64", "emdl float64"]
    monkeypatch.setattr(coding, "processor", lambda: "another")
    assert not coding.Store(tmp_path / "coding.json").has("small | emdl float32")


def test_a_run_names_a_peer_that_does_not_import_and_leaves_tables_and_pictures(suite, tmp_path, monkeypatch, capsys):
    coding = suite["coding"]
    quick = {
        "small": ("emdl float32", "NumPy FISTA float32", "Absent LGCD"),
        "scaling-10000": ("emdl float32",),
        "scaling-20000": ("emdl float32",),
    }
    monkeypatch.setattr(coding, "SUITE_QUICK", quick)
    monkeypatch.setitem(suite["peers"].MODULES, "Absent", "absent_coder")
    coding.main(["--quick"], tmp_path)
    page = (tmp_path / "coding.md").read_text()
    assert page in capsys.readouterr().out
    assert "| Absent LGCD | - |  | - |  | KeyError: 'Absent'" in page
    assert "picture 64x64, 8 atoms 5x5" in page
    cells = json.loads((tmp_path / "coding-quick.json").read_text())["cells"]
    own, plain = cells["small | emdl float32"]["points"], cells["small | NumPy FISTA float32"]["points"]
    assert min(p["gap"] for p in own) < 1e-5
    assert min(p["gap"] for p in plain) < 1e-5
    assert all(p["gap"] <= p["certified"] <= p["tol"] for p in own)
    assert cells["scaling-10000 | emdl float32"]["points"][0]["samples"] == 10_000
    assert (tmp_path / "coding-scaling.svg").stat().st_size > 1000
    assert (tmp_path / "coding-scaling.png").stat().st_size > 1000
