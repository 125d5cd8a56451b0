"""Names of files and what stands in them are text: to terminals, browsers, XML parsers, spreadsheets."""

import ast
import contextlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import unicodedata
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
import tifffile
from emdl.cli import main
from PIL import Image, PngImagePlugin

from emdl import simulate, spikes
from emdl.images import training
from emdl.text import printable

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows allows none of these characters in names")

FS = 20e3
# colours and a title for the terminal (7 and 8 bits), markup, the end of a comment, mathematics, Rich's markup, fields
# of str.format, a formula, right to left, two lines, a byte that is no UTF-8, letters that no font here has
EVIL = "=1+\x1b[31m\x1b]0;t\x07\x9b31m<script>alert(1)<'\"&--><b>$x_{1$[b]{0}%s\u202e\n\r信号" + os.fsdecode(b"\xff")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder where every file has that name, and a different ending."""
    folder = tmp_path_factory.mktemp("evil")
    made = simulate.tetrode(3.0, 2, n_channels=2, fs=FS, rate_hz=(20.0, 30.0), peak_uv=(150.0, 300.0), rng=3)
    try:
        np.savez(folder / f"{EVIL}.npz", data=made.data, fs=FS)
    except (OSError, UnicodeError):
        pytest.skip("this file system does not take such names")
    spikes.fit(made.data, FS, max_iter=1, rng=0).save(folder / f"{EVIL}.h5")
    rng = np.random.default_rng(0)
    pixels = np.clip(128 + 20 * rng.standard_normal((60, 70)), 0, 255).astype(np.uint8)
    told = PngImagePlugin.PngInfo()
    told.add_text("Title", EVIL.encode("utf-8", "replace").decode())
    Image.fromarray(pixels).save(folder / f"{EVIL}.png", pnginfo=told)
    tifffile.imwrite(
        folder / f"{EVIL}.tif", pixels, description="<script>alert(1)</script>\x1b[31m", software="\x1b]0;t\x07"
    )
    with h5py.File(folder / "unit.nwb", "w") as file:
        series = file.create_group("acquisition/<script>\x1b[31m")
        series.attrs["neurodata_type"] = "ElectricalSeries"
        data = series.create_dataset("data", data=made.data.T)
        data.attrs.update(conversion=1.0, unit="$x_{1$<script>alert(1)</script>\x1b[31m")
        series["starting_time"] = 0.0
        series["starting_time"].attrs["rate"] = FS
    network = training.start_network(32, 1, rng=0)
    network.attributes["[b]\x1b[31m<script>"] = "\x1b]0;t\x07[link=x]"
    network.save(folder / "net.h5")
    return folder


def run(folder, *args):
    """Run the command line, hold that nothing commands the terminal, and return code, output and messages."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(map(str, args)))
    for said in (out.getvalue(), err.getvalue()):
        commands = [c for c in said if c != "\n" and (unicodedata.category(c) in ("Cc", "Cs") or c == "\u202e")]
        assert not commands, said
        assert "Glyph" not in said
    lines = err.getvalue().splitlines()
    assert all(line.startswith("emdl: ") for line in lines), "a name has begun a new line"
    return code, out.getvalue(), lines


def assert_safe(path):
    """Hold that a document of HTML or SVG runs nothing, reaches nowhere, and is whole."""
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>$x" not in text
    assert not [c for c in text if c not in "\n\r\t" and unicodedata.category(c) in ("Cc", "Cs")]
    if path.suffix == ".svg":
        ElementTree.fromstring(text)
    else:
        assert not re.search(r"(src|href)=.(?!data:|#)", text)
        assert "default-src 'none'" in text
        assert "&lt;script&gt;" in text


def assert_numbers(path):
    """Hold that a table holds numbers under plain words: nothing that a spreadsheet would take for a formula."""
    head, *rows = path.read_text(encoding="ascii").splitlines()
    assert all(re.fullmatch(r"[a-z_]+", cell) for cell in head.split(",")), head
    for cell in ",".join(rows).split(","):
        assert cell == "" or float(cell) == float(cell), cell


def test_sorting_shows_names_as_text_and_writes_them_as_text(folder):
    code, out, err = run(folder, "sort", f"{EVIL}.npz", "-m", f"{EVIL}.h5", "-o", "s.csv", "-o", "phy")
    assert code == 0, err
    assert r"=1+\x1b[31m\x1b]0;t\x07\x9b31m<script>alert(1)<" in out
    assert r"\u202e\n\r信号\udcff.npz" in out
    assert any(r"\x1b[31m" in line for line in err)
    assert_safe(folder / "s.html")
    assert_numbers(folder / "s.csv")
    assert_numbers(folder / "s-units.csv")
    params = ast.parse((folder / "phy" / "params.py").read_text())  # phy runs this file
    assert all(isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant) for line in params.body)
    code, out, err = run(folder, "compare", "s.csv", "phy")
    assert code == 0, err
    (folder / "s.csv").rename(folder / f"{EVIL}.csv")
    assert run(folder, "compare", f"{EVIL}.csv", "phy")[0] == 0
    assert run(folder, "compare", f"{EVIL}.npz", "phy")[0] == 2


def test_training_draws_and_tells_names_as_text(folder):
    code, out, err = run(folder, "train", f"{EVIL}.npz", "-o", f"{EVIL}2.h5", "--max-iter", 1)
    assert code == 0, err
    assert r"\x1b" in out
    assert_safe(folder / f"{EVIL}2.svg")
    assert_numbers(folder / f"{EVIL}2.csv")


def test_detection_and_codes_tell_names_as_text(folder):
    for command, output in (("detect", f"{EVIL}3.csv"), ("encode", f"{EVIL}3.npz")):
        code, out, err = run(folder, command, f"{EVIL}.npz", "-m", f"{EVIL}.h5", "-o", output)
        assert code == 0, err
        assert r"\x1b" in out
    code, out, _ = run(folder, "detect", f"{EVIL}.npz", "-m", f"{EVIL}.h5", "-o", f"{EVIL}4.csv", "--json")
    assert json.loads(out)["recording"]["name"] == f"{EVIL}.npz"
    shown = run(folder, "info", f"{EVIL}.h5")
    assert shown[0] == 0
    assert "<script>" in shown[1]


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_denoising_draws_and_tells_names_and_texts_of_pictures_as_text(folder, ending):
    model = ["--model", "net.h5"]
    code, out, err = run(
        folder, "denoise", f"{EVIL}.{ending}", "-o", f"o.{ending}", "--report", f"{ending}.svg", *model
    )
    assert code == 0, err
    assert r"\x1b[31m" in out
    assert_safe(folder / f"{ending}.svg")
    both = run(folder, "denoise", f"{EVIL}.png", f"{EVIL}.tif", *model)
    assert both[0] == 0, both[2]
    assert run(folder, "denoise", f"{EVIL}.{ending}", *model)[2][-1].endswith("or choose another -o")
    for name in ("png", "tif"):
        (folder / f"{EVIL}_denoised.{name}").unlink()


def test_what_stands_in_a_file_is_text(folder):
    code, out, err = run(folder, "sort", "unit.nwb", "-m", f"{EVIL}.h5", "-o", "n.csv")
    assert code == 0, err
    page = (folder / "n.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "$x_{1$&lt;script&gt;" in page
    code, out, _ = run(folder, "sort", "unit.nwb", "--series", "none\x1b[31m", "-o", "m.csv")
    assert code == 2
    code, out, err = run(folder, "info", "net.h5")
    assert code == 0, err
    assert r"[b]\x1b[31m<script>" in out
    assert r"\x1b]0;t\x07[link=x]" in out


@pytest.mark.parametrize(
    "args",
    [["info", f"{EVIL}0.h5"], ["train", f"--{EVIL[2:]}"], [EVIL], ["train", "--config", EVIL], ["denoise", EVIL]],
)
def test_errors_tell_names_in_one_line_of_text(folder, args):
    code, out, err = run(folder, *args)
    assert (code, out) == (2, "")
    assert len(err) == 1
    assert r"\x1b" in err[0]


def test_a_name_as_long_as_names_may_be_is_refused_only_where_it_must_become_longer(folder):
    name = "L" * 251 + ".png"
    Image.new("L", (20, 20), 7).save(folder / name)
    code, _, err = run(folder, "denoise", name, "--model", "net.h5")
    assert code == 2
    assert "File name too long" in err[-1]
    assert run(folder, "denoise", name, "--model", "net.h5", "-o", "short.png")[0] == 0


def test_a_terminal_of_another_encoding_is_written_to(folder):
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "emdl.cli", "info", f"{EVIL}.h5"], cwd=folder, env=env, capture_output=True, check=True
    )
    assert rb"\u4fe1\u53f7" in done.stdout
    assert done.stderr == b""


def test_only_one_module_of_the_command_line_prints_and_marks_up():
    """So that no name gets past `screen.say` and `screen.escape`."""
    cli = pathlib.Path(__file__).resolve().parents[1] / "cli"
    for path in cli.glob("*.py"):
        if path.name != "screen.py":
            assert not re.search(r"rich\.markup|(?<!\.)\bprint\(|sys\.std(out|err)\.write", path.read_text()), path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ørsted's ß 信号 e\u0301 👩\u200d🔬.npz", "Ørsted's ß 信号 e\u0301 👩\u200d🔬.npz"),
        ("a\tb\x00\x7f", r"a\tb\x00\x7f"),
        ("\u2028\u2029\u2066", r"\u2028\u2029\u2066"),
        (3.5, "3.5"),
    ],
)
def test_letters_stay_and_commands_are_written_out(text, shown):
    assert printable(text) == shown
