"""`emdl bench` on a short signal."""

import json

from emdl.cli import main


def test_bench_reports_both_gaps_of_all_solvers(capsys):
    assert main(["bench", "--samples", "1000", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["samples"] == 1000
    assert [row["solver"] for row in report["times"]] == [
        "emdl.encode, float32",
        "emdl.encode, float64",
        "SciPy L-BFGS-B",
    ]
    for row in report["times"]:
        assert set(row["seconds"]) == {"0.001", "1e-05"}
        assert all(seconds is None or seconds > 0 for seconds in row["seconds"].values())
    assert report["times"][2]["seconds"]["0.001"] > report["times"][0]["seconds"]["0.001"]
