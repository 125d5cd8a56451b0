"""``emdl denoise`` and ``emdl train --task denoise``: what they write and say, and what they refuse."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from emdl.cli import main
from PIL import Image

from emdl.images import files, learn, training

NOISE = 20.0


def photograph(rng, shape, noise=NOISE):
    """Return smooth blobs with edges and white noise, 8 bits, not clipped."""
    H, W = shape[:2]
    y, x = np.mgrid[:H, :W] / 40
    clean = 128 + 40 * np.sign(np.sin(x + 0.6 * y) * np.cos(y - 0.3 * x))
    clean = clean.reshape((H, W) + (1,) * (len(shape) - 2))
    return np.clip(np.rint(clean + noise * rng.standard_normal(shape)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The file of a small network, as training starts from."""
    path = tmp_path_factory.mktemp("model") / "small.h5"
    training.start_network(64, 2, rng=0).save(path)
    return path


@pytest.fixture
def folder(tmp_path, rng, monkeypatch):
    """A folder to work in, with a grey picture, a.png."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photograph(rng, (60, 75))).save("a.png")
    return tmp_path


@pytest.fixture
def run(capfd, model):
    """Run the command line in this process; returns the exit code, standard output and standard error."""

    def call(*args):
        args = [str(a) for a in args]
        if args[0] == "denoise" and not {"--model", "--learn"} & set(args):
            args += ["--model", str(model)]
        capfd.readouterr()
        code = main(args)
        return code, *capfd.readouterr()

    return call


def refused(result, *words):
    """Hold that a command ended as bad input does: code 2, one last line that says why, nothing on standard output."""
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert err.splitlines()[-1].startswith("emdl: error: "), err
    assert "Traceback" not in err
    for word in words:
        assert word in err.splitlines()[-1]


def size(path):
    with Image.open(path) as image:
        return image.size


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# What it writes and says


def test_one_picture_needs_one_word(folder, run):
    code, out, err = run("denoise", "a.png")
    assert code == 0, err
    assert names(folder) == ["a.png", "a_denoised.png"]
    assert re.search(r"noise [12]\d(\.\d)? of 255 \(estimated\) taken out of a.png \(75 x 60, grey, 8 bit\) in", out)
    assert "2 layers of 64 atoms" in out
    assert "Written   a_denoised.png" in out
    before, after = (np.asarray(Image.open(n)).astype(float) for n in ("a.png", "a_denoised.png"))
    assert np.abs(np.diff(after, axis=1)).mean() < 0.5 * np.abs(np.diff(before, axis=1)).mean()


def test_the_levels_are_on_the_8_bit_scale_for_16_bits_too(folder, run):
    deep = np.asarray(Image.open("a.png")).astype(np.uint16) * 257
    Image.fromarray(deep).save("deep.png")
    told = [json.loads(run("denoise", n, "-o", f"out-{n}", "--json")[1])["images"][0] for n in ("a.png", "deep.png")]
    assert told[0]["sigma"] == pytest.approx(told[1]["sigma"], rel=1e-3)
    assert told[0]["unit"] == "of 255"
    run("denoise", "a.png", "deep.png", "--sigma", 15, "-f")
    shallow, deep = (next(files.read(pathlib.Path(n))).pixels for n in ("a_denoised.png", "deep_denoised.png"))
    assert np.abs(deep / 257 - shallow).max() <= 0.51  # half a step of 8 bits
    assert (deep % 257).any()


def test_json_is_one_object_with_every_fact(folder, run, model):
    code, out, _ = run("denoise", "a.png", "--sigma", "12.5", "--json")
    assert code == 0
    facts = json.loads(out)
    assert "seconds" in facts
    (image,) = facts["images"]
    assert image["sigma"] == 12.5
    assert image["estimated"] is False
    assert image["output"] == "a_denoised.png"
    assert image["pages"] == 1
    assert (image["model"], image["n_layers"], image["n_atoms"]) == (str(model), 2, 64)


def test_all_pages_of_a_stack_are_denoised(folder, run, rng):
    stack = np.stack([photograph(rng, (50, 64)) for _ in range(3)]).astype(np.uint16) * 16
    tifffile.imwrite("stack.tif", stack, photometric="minisblack")
    code, out, err = run("denoise", "stack.tif")
    assert code == 0, err
    assert "3 pages" in out
    clean = tifffile.imread("stack_denoised.tif")
    assert clean.shape == stack.shape
    assert clean.dtype == stack.dtype
    for page in range(3):
        assert clean[page].astype(float).std() < stack[page].astype(float).std()


def test_a_folder_is_denoised_into_another(folder, run, rng):
    (folder / "scans").mkdir()
    (folder / "clean").mkdir()
    for name in ("1.png", "2.jpg", "3.tif"):
        Image.fromarray(photograph(rng, (50, 64, 3))).save(folder / "scans" / name, quality=95)
    (folder / "scans" / "notes.txt").write_text("not a picture")
    code, out, err = run("denoise", "scans", "-o", "clean")
    assert code == 0, err
    assert names(folder / "clean") == ["1.png", "2.jpg", "3.tif"]
    assert "3 pictures in" in out
    assert "2 of 3: 2.jpg" in err
    assert names(folder / "scans") == ["1.png", "2.jpg", "3.tif", "notes.txt"]


def test_a_second_run_on_a_folder_leaves_its_own_results_out(folder, run):
    run("denoise", ".")
    code, _, err = run("denoise", ".", "--force")
    assert code == 0, err
    assert names(folder) == ["a.png", "a_denoised.png"]


def test_one_bad_picture_does_not_stop_the_others(folder, run):
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:700])
    Image.open("a.png").save("c.png")
    code, out, err = run("denoise", "a.png", "b.png", "c.png")
    assert code == 2
    assert names(folder) == ["a.png", "a_denoised.png", "b.png", "c.png", "c_denoised.png"]
    assert "2 pictures" in out
    assert "b.png, it is damaged or cut short" in err.splitlines()[-1]
    assert "1 of 3 pictures could not be denoised" in err.splitlines()[-1]


def test_transparency_is_not_touched(folder, run, rng):
    array = photograph(rng, (48, 64, 4))
    Image.fromarray(array).save("alpha.png")
    assert run("denoise", "alpha.png")[0] == 0
    clean = np.asarray(Image.open("alpha_denoised.png"))
    np.testing.assert_array_equal(clean[..., 3], array[..., 3])
    assert (clean[..., :3] != array[..., :3]).mean() > 0.5


def test_a_float_tiff_keeps_its_unit(folder, run, rng):
    clean = photograph(rng, (60, 60), 0).astype(np.float32) * 10 - 900
    tifffile.imwrite("f.tif", clean + np.float32(200) * rng.standard_normal((60, 60), np.float32))
    code, out, err = run("denoise", "f.tif", "--sigma", "200")
    assert code == 0, err
    assert "noise 200 in the unit of the file (given)" in out
    found = tifffile.imread("f_denoised.tif")
    assert found.dtype == np.float32
    assert np.sqrt(np.mean((found - clean) ** 2)) < 120


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (7, 3), (20, 20, 3)])
def test_small_pictures_come_back_in_their_size(folder, run, rng, shape):
    Image.fromarray(photograph(rng, shape)).save("small.png")
    code, _, err = run("denoise", "small.png")
    assert code == 0, err
    assert np.asarray(Image.open("small_denoised.png")).shape == shape


def test_a_constant_picture_is_written_as_it_is(folder, run):
    Image.new("RGB", (80, 70), (10, 200, 30)).save("flat.png")
    code, out, _ = run("denoise", "flat.png")
    assert code == 0
    assert "no noise in flat.png" in out
    np.testing.assert_array_equal(np.asarray(Image.open("flat_denoised.png")), np.asarray(Image.open("flat.png")))


def test_sigma_zero_changes_nothing(folder, run):
    assert run("denoise", "a.png", "--sigma", "0")[0] == 0
    np.testing.assert_array_equal(np.asarray(Image.open("a_denoised.png")), np.asarray(Image.open("a.png")))


def test_a_clipped_picture_gets_a_warning(folder, run, rng):
    noisy = np.clip(photograph(rng, (90, 90), 0) * 1.4 + 50 * rng.standard_normal((90, 90)), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save("clipped.png")
    assert re.search(r"warning: clipped.png: \d+% of the image is clipped", run("denoise", "clipped.png")[2])
    assert "clipped" not in run("denoise", "clipped.png", "--sigma", "50", "-f")[2].replace("clipped.png", "")


def test_quiet_says_nothing(folder, run):
    assert run("denoise", "a.png", "--quiet") == (0, "", "")
    assert names(folder) == ["a.png", "a_denoised.png"]


@pytest.mark.parametrize("shape", [(60, 75), (40, 130, 3), (2, 3)])
def test_the_report_is_a_picture_of_any_picture(folder, run, rng, shape):
    name = "odd [b]$x_{1$ name.png"
    Image.fromarray(photograph(rng, shape)).save(name)
    code, out, err = run("denoise", name, "--report", "page.png")
    assert code == 0, err
    assert min(size("page.png")) > 800
    assert "odd [b]$x_{1$ name_denoised.png, page.png" in out


def test_several_reports_go_into_a_folder(folder, run):
    Image.open("a.png").save("b.png")
    (folder / "pages").mkdir()
    assert run("denoise", "a.png", "b.png", "--report", "pages")[0] == 0
    assert names(folder / "pages") == ["a_report.png", "b_report.png"]


def test_the_program_itself_runs_and_a_terminal_gets_a_bar(folder, model):
    """Through a pseudo-terminal, as a person has it."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "emdl.cli", "denoise", "a.png", "--model", str(model)]
    with subprocess.Popen(command, stderr=follower, stdout=subprocess.PIPE, text=True) as process:
        os.close(follower)
        seen = b""
        while True:
            try:
                chunk = os.read(leader, 4096)
            except OSError:
                break
            if not chunk:
                break
            seen += chunk
        out = process.stdout.read()
    os.close(leader)
    assert process.returncode == 0, seen
    assert b"a.png (1 of 1)" in seen
    assert "\x1b" not in out


# What it refuses


@pytest.mark.parametrize("sigma", ["-1", "nan", "inf", "much", ""])
def test_a_noise_level_that_makes_no_sense_is_refused(folder, run, sigma):
    refused(run("denoise", "a.png", f"--sigma={sigma}"), "--sigma", "wanted auto or a finite number")
    assert names(folder) == ["a.png"]


def bad_values(value):
    image = np.ones((30, 30), np.float32)
    image[4, 7] = value
    return image


CONTENT = {
    "text.png": lambda path: path.write_text("no picture"),
    "empty.png": lambda path: path.write_bytes(b""),
    "cut.jpg": lambda path: (Image.effect_noise((99, 99), 9).save(path), path.write_bytes(path.read_bytes()[:900])),
    "cmyk.jpg": lambda path: Image.new("CMYK", (30, 30)).save(path),
    "nan.tif": lambda path: tifffile.imwrite(path, bad_values(np.nan)),
    "inf.tif": lambda path: tifffile.imwrite(path, bad_values(np.inf)),
    "complex.tif": lambda path: tifffile.imwrite(path, np.ones((30, 30), complex)),
    "volume.tif": lambda path: tifffile.imwrite(path, np.ones((32, 32, 32), np.uint8), volumetric=True, tile=(16,) * 3),
}


@pytest.mark.parametrize("name", CONTENT)
def test_a_bad_picture_is_refused_and_nothing_is_written(folder, run, name):
    CONTENT[name](folder / name)
    refused(run("denoise", name), name)
    assert names(folder) == sorted(["a.png", name])


def test_a_value_that_is_not_finite_is_named_with_its_place(folder, run):
    CONTENT["nan.tif"](folder / "nan.tif")
    refused(run("denoise", "nan.tif"), "1 value that is not finite", "row 4, column 7")


def test_a_bad_page_in_a_stack_leaves_no_half_stack(folder, run):
    tifffile.imwrite("s.tif", np.stack([bad_values(1), bad_values(np.nan)]), photometric="minisblack")
    refused(run("denoise", "s.tif"), "not finite")
    assert names(folder) == ["a.png", "s.tif"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["none.png"], "none.png does not exist"),
        (["empty"], "there is no picture in empty"),
        (["a.png", "-o", "none/b.png"], "does not exist"),
        (["a.png", "-o", "a.png"], "both read and written"),
        (["a.png", "-o", "b.gif"], "cannot tell the format"),
        (["a.png", "b.png", "-o", "c.png"], "wanted a folder for 2 pictures"),
        (["a.png", "b.png", "--report", "c.png"], "wanted a folder for 2 pictures"),
        (["a.png", "--report", "page.txt"], "should end in"),
        (["a.png", "--report", "a_denoised.png"], "two outputs would be"),
        (["a.png", "--model", "a.png"], "a.png"),
        (["a.png", "--model", "none.h5"], "none.h5"),
        (["a.png", "--learn", "--model", "none.h5"], "leave out --model"),
        (["a.png", "--learn", "--device", "cuda"], "runs on the CPU"),
    ],
)
def test_bad_use_is_refused_and_nothing_is_written(folder, run, args, words):
    (folder / "empty").mkdir()
    Image.open("a.png").save("b.png")
    refused(run("denoise", *args), words)
    assert names(folder) == ["a.png", "b.png", "empty"]


def test_a_model_for_other_channels_is_refused(folder, run, tmp_path):
    training.start_network(64, 1, 3, rng=0).save("colour.h5")
    refused(run("denoise", "a.png", "--model", "colour.h5"), "3 channels")


def test_what_exists_is_kept_unless_forced(folder, run):
    (folder / "a_denoised.png").write_text("precious")
    refused(run("denoise", "a.png"), "a_denoised.png exists", "--force")
    assert (folder / "a_denoised.png").read_text() == "precious"
    assert run("denoise", "a.png", "--force")[0] == 0
    Image.open("a_denoised.png").load()


def test_a_file_that_cannot_hold_the_picture_is_refused_before_the_work(folder, run, rng):
    tifffile.imwrite("s.tif", np.stack([photograph(rng, (30, 30))] * 2), photometric="minisblack")
    refused(run("denoise", "s.tif", "-o", "s.png"), "2 pages")
    Image.fromarray(photograph(rng, (30, 30)).astype(np.uint16)).save("deep.png")
    refused(run("denoise", "deep.png", "-o", "deep.jpg"), "uint16")
    assert names(folder) == ["a.png", "deep.png", "s.tif"]


# Training


@pytest.fixture
def photographs(folder, rng):
    (folder / "photos" / "more").mkdir(parents=True)
    for i in range(5):
        Image.fromarray(photograph(rng, (100, 120, 3), 0)).save(folder / "photos" / "more" / f"{i}.png")
    return "photos"


SMALL = ("--atoms", "32", "--layers", "1")


def test_a_denoiser_is_trained_and_used(folder, run, photographs):
    args = ("train", "--task", "denoise", photographs, "-o", "mine.h5", "--minutes", "0.03", *SMALL)
    code, out, err = run(*args, "--checkpoint-every", "0.5")
    assert code == 0, err
    assert names(folder) == ["a.png", "mine.h5", "mine.png", "photos"]
    assert "4 images to learn from, 1 to judge by" in err
    assert re.search(r"100%, step \d+, .* loss .* codes not zero; PSNR [\d.]+ dB at sigma 15", err)
    assert "How good" in out
    assert "emdl denoise IMAGE --model mine.h5" in out
    assert min(size("mine.png")) > 500
    assert run("denoise", "a.png", "--model", "mine.h5")[0] == 0
    code, out, _ = run("info", "mine.h5", "--json")
    assert code == 0
    facts = json.loads(out)
    assert (facts["kind"], facts["n_atoms"], facts["n_layers"]) == ("denoising network", 32, 1)
    assert "a denoising network" in run("info", "mine.h5")[1]


@pytest.fixture
def noisy(folder, rng):
    """A folder of photographs of different noise levels, no clean one; the options that learn from it."""
    (folder / "noisy").mkdir()
    for i, sigma in enumerate((10, 15, 20, 30)):
        Image.fromarray(photograph(rng, (120, 120), sigma)).save(folder / "noisy" / f"{i}.png")
    return ("train", "--task", "denoise", "noisy", "--noisy", "-o", "mine.h5", "--atoms", "40", "--max-iter", "4")


def test_a_dictionary_is_learned_from_noisy_photographs_alone(folder, run, noisy):
    """The PSNR that it tells of the second photograph, without a clean one, is right within a decibel."""
    code, out, err = run(*noisy, "--checkpoint-every", "0")
    assert code == 0, err
    assert names(folder) == ["a.png", "mine.h5", "mine.png", "noisy"]
    assert "3 images to learn from, 1 to judge by, noise" in err
    assert len(re.findall(r"%, iteration [1-4], .* codes for a patch; PSNR", err)) == 4
    assert "without a clean one" in out
    told, level = map(float, re.search(r"PSNR ([\d.]+) dB at sigma ([\d.]+), on photographs", out).groups())
    assert level == pytest.approx(15 * 1.25**0.5, rel=0.1)
    truth = photograph(np.random.default_rng(0), (120, 120), 0).astype(np.float32)
    given = truth + np.float32(level) * np.random.default_rng(5).standard_normal(truth.shape, np.float32)
    found = learn.PatchModel.load("mine.h5").denoise(given[None, None], level)[0, 0]
    assert told == pytest.approx(20 * np.log10(255 / np.std(found - truth)), abs=1)
    assert told > 20 * np.log10(255 / level) + 7
    code, out, err = run("denoise", "noisy/1.png", "--model", "mine.h5", "-o", "clean.png")
    assert code == 0, err
    assert "mine.h5: 40 atoms" in out
    before, after = (np.asarray(Image.open(name), float) for name in ("noisy/1.png", "clean.png"))
    assert np.std(after - truth) < 0.5 * np.std(before - truth)
    refused(run(*noisy, "--force", "--layers", "3"), "--layers mean nothing with --task denoise --noisy")
    refused(run(*noisy), "exist")


def test_an_interrupted_learning_from_noisy_photographs_ends_with_the_same_bits(folder, run, noisy, monkeypatch):
    assert run(*noisy, "--quiet") == (0, "", "")
    whole, count, iterate = learn.PatchModel.load("mine.h5"), [], learn._iterate
    (folder / "mine.h5").unlink()

    def interrupt(*given, **options):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return iterate(*given, **options)

    monkeypatch.setattr(learn, "_iterate", interrupt)
    args = (*noisy, "--no-plot", "--checkpoint-every", "1000")
    assert run(*args, "--force")[0] == 130
    assert "mine.checkpoint.h5" in names(folder)
    refused(run(*args), "interrupted", "--resume")
    refused(run(*args, "--resume", "--atoms", "41"), "n_atoms")
    code, _, err = run(*args, "--resume")
    assert code == 0, err
    assert len(count) == 5  # two iterations, one that was interrupted, and the two that were left
    again = learn.PatchModel.load("mine.h5")
    assert np.array_equal(again.D, whole.D)
    assert np.array_equal(again.threshold, whole.threshold)
    assert "mine.checkpoint.h5" not in names(folder)


def test_colours_are_learned_from_noisy_photographs(folder, run, rng, noisy):
    """Those without colours are left out."""
    for i in range(2):
        Image.fromarray(photograph(rng, (80, 90, 3), 20)).save(folder / "noisy" / f"colour{i}.png")
    code, out, err = run(*noisy, "--colour", "--json")
    assert code == 0, err
    assert "0.png is left out: it is 120 x 120, grey, 8 bit; wanted RGB" in err
    facts = json.loads(out)
    assert (facts["n_images"], facts["n_channels"], facts["history"]["iteration"][-1]) == (1, 3, 4)
    assert facts["sigma"] == pytest.approx([20, 20], rel=0.15)
    assert run("denoise", "noisy/colour1.png", "--model", "mine.h5", "-o", "clean.png")[0] == 0
    truth = photograph(rng, (80, 90, 3), 0).astype(float)
    assert np.std(np.asarray(Image.open("clean.png")) - truth) < 10
    refused(run("denoise", "a.png", "--model", "mine.h5"), "3 channels")


def test_photographs_without_noise_are_left_out(folder, run):
    (folder / "flat").mkdir()
    Image.fromarray(np.full((40, 40), 90, np.uint8)).save(folder / "flat" / "a.png")
    refused(run("train", "--task", "denoise", "flat", "--noisy"), "no photograph in flat", "it shows no noise")


def test_a_photograph_that_cannot_be_read_is_left_out(folder, run, photographs):
    (folder / photographs / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    args = ("train", "--task", "denoise", photographs, "-o", "mine.h5", "--minutes", "0.01", "--no-plot", *SMALL)
    code, _, err = run(*args)
    assert code == 0, err
    assert "broken.jpg is left out" in err
    assert "4 images to learn from, 1 to judge by" in err


def test_an_interrupted_training_goes_on(folder, run, photographs, monkeypatch):
    args = ("train", "--task", "denoise", photographs, "-o", "mine.h5", "--minutes", "0.06", "--no-plot", *SMALL)
    every = ("--checkpoint-every", "0.3")
    whole, count = training.validate, []

    def interrupt(*given, **options):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return whole(*given, **options)

    monkeypatch.setattr(training, "validate", interrupt)
    assert run(*args, *every)[0] == 130
    assert names(folder) == ["a.png", "mine.checkpoint.h5", "photos"]
    refused(run(*args, *every), "interrupted", "--resume")
    code, _, err = run(*args, *every, "--resume")
    assert code == 0, err
    first = int(re.search(r"step (\d+), ([\d]+) s", err).group(1))
    assert first > 1
    assert names(folder) == ["a.png", "mine.h5", "photos"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "wanted|wants a folder"),
        (["none"], "none does not exist"),
        (["a.png"], "a.png is a file"),
        (["empty"], "no photograph in empty"),
        (["photos", "-o", "m.png"], "HDF5"),
        (["photos", "--minutes", "0"], "--minutes"),
        (["photos", "--atoms", "33"], "atoms"),
        (["photos", "--units", "3"], "--units mean nothing with --task denoise"),
        (["photos", "--device", "cuda"], "runs on the CPU"),
    ],
)
def test_training_refuses_what_makes_no_sense(folder, run, photographs, args, words):
    (folder / "empty").mkdir()
    result = run("train", "--task", "denoise", *args)
    refused(result)
    assert re.search(words, result[2])
    assert names(folder) == ["a.png", "empty", "photos"]


def test_options_of_a_denoiser_mean_nothing_for_spikes(folder, run):
    refused(run("train", "--task", "spikes", "--minutes", "3"), "--minutes mean nothing with --task spikes")
