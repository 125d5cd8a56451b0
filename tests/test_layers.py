"""Who may import whom: the order of docs/design.md, read from that page and held against every import in the code."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUTSIDE = ("cli", "benchmarks", "examples")  # these use the package from outside, by its absolute name
HEAVY = ("numba", "llvmlite", "scipy", "h5py", "matplotlib", "skimage", "cupy")
FRAMEWORKS = ("torch", "jax", "flax", "tensorflow", "keras")


def layers_of(page):
    """Return {part: rank} from the chain ``errors <- backend <- ...`` of the page; parts of one rank share a comma."""
    chain = re.search(r"^## Modules.*?\n\n((?:    .*\n)+)", page, re.MULTILINE).group(1)
    groups = [[name.strip() for name in group.split(",")] for group in " ".join(chain.split()).split("<-")]
    return {name: rank for rank, group in enumerate(groups) for name in group}


def part_of(path):
    """Return the name that docs/design.md gives to the part of the project that holds this file."""
    if path.parts[0] in OUTSIDE:
        return path.parts[0]
    inner = path.with_suffix("").parts[1]
    return "emdl/__init__" if inner == "__init__" else inner


def written_name(node, package):
    """Return the name given to ``import_module`` as far as it stands in the source; {} marks what run time fills in."""
    own = {"__name__": ".".join(package), "__package__": ".".join(package)}
    pieces = node.values if isinstance(node, ast.JoinedStr) else [node]
    text = ""
    for piece in pieces:
        inner = piece.value if isinstance(piece, ast.FormattedValue) else piece
        text += inner.value if isinstance(inner, ast.Constant) else own.get(ast.unparse(inner), "{}")
    level = len(text) - len(text.lstrip("."))
    if level:
        return ".".join([*package[: len(package) - level + 1], text.lstrip(".")])
    return "emdl.{}" if text.startswith("{}") else text


def imported_modules(source, path):
    """Return (line, dotted name) of whatever the file imports, at any depth; ``from a import b`` counts as ``a.b``."""
    package = path.parent.parts if path.parts[0] not in OUTSIDE else ("emdl", *path.parent.parts)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield node.lineno, written_name(node.args[0], package)


def target_part(name, layers):
    """Return the part that a dotted name belongs to, None if it is not of this project."""
    head, _, rest = name.partition(".")
    if head in OUTSIDE:
        return head
    if head != "emdl":
        return None
    inner = rest.partition(".")[0]
    return inner if inner in layers or inner == "{}" else "emdl/__init__"


def violations(source, path, layers):
    """Return a sentence for every import of the file that does not come from the left of it."""
    part, found = part_of(path), []
    for line, name in imported_modules(source, path):
        target = target_part(name, layers)
        if target is None or (target == part and target != "emdl/__init__"):
            continue
        # A module chosen at run time may be any: only what stands right of all of them may do that.
        rank = layers["emdl/__init__"] - 1 if target == "{}" else layers[target]
        if rank >= layers[part]:
            found.append(f"{path}:{line}: {part} imports {name} ({target}), which does not stand on its left")
    return found


def source_files(*folders):
    return sorted(p.relative_to(ROOT) for folder in folders for p in (ROOT / folder).rglob("*.py"))


LAYERS = layers_of((ROOT / "docs" / "design.md").read_text(encoding="utf-8"))
ORDERED_FILES = source_files("emdl", *OUTSIDE)


def test_the_order_on_the_design_page_is_read_whole():
    for left, right in [("errors", "backend"), ("ops", "encoder"), ("em", "spikes"), ("emdl/__init__", "cli")]:
        assert LAYERS[left] < LAYERS[right], f"docs/design.md no longer puts {left} left of {right}"
    assert LAYERS["spikes"] == LAYERS["images"], "two workloads must not build on one another"


@pytest.mark.parametrize("path", ORDERED_FILES, ids=str)
def test_a_module_imports_only_from_its_left(path):
    assert part_of(path) in LAYERS, f"{path} has no place in the order of docs/design.md; give it one"
    found = violations((ROOT / path).read_text(encoding="utf-8"), path, LAYERS)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("emdl/ops.py", "def f():\n    from .encoder import encode"),
        ("emdl/ops.py", "import emdl.prox"),
        ("emdl/ops.py", "from emdl import em"),
        ("emdl/ops.py", "from emdl import encode"),
        ("emdl/em.py", "from . import spikes"),
        ("emdl/em.py", "import importlib\nimportlib.import_module('emdl.spikes')"),
        ("emdl/em.py", "import importlib\nimportlib.import_module(f'emdl.{x}')"),
        ("emdl/spikes/__init__.py", "importlib.import_module(f'emdl.{x}')"),
        ("emdl/spikes/__init__.py", "importlib.import_module('..images', __name__)"),
        ("emdl/spikes/fit.py", "from .. import images"),
        ("emdl/spikes/fit.py", "from emdl.cli import main"),
        ("emdl/images/fit.py", "if TYPE_CHECKING:\n    from ..spikes import detect"),
        ("emdl/metrics.py", "import cli"),
        ("examples/first.py", "import emdl.cli"),
    ],
)
def test_an_import_from_the_right_is_caught(path, source):
    assert len(violations(source, pathlib.Path(path), LAYERS)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("emdl/ops.py", "from . import backend, _kernels\nfrom .errors import InputError"),
        ("emdl/spikes/fit.py", "from ..em import em_fit\nfrom .. import metrics\nfrom . import detect"),
        ("emdl/__init__.py", "import importlib\nimportlib.import_module(f'emdl.{x}')"),
        ("emdl/spikes/__init__.py", "importlib.import_module(f'emdl.spikes.{x}')"),
        ("emdl/spikes/__init__.py", "importlib.import_module(f'{__name__}.{x}')"),
        ("emdl/spikes/__init__.py", "importlib.import_module(f'.{x}', __name__)"),
        ("cli/train.py", "importlib.import_module(x)"),
        ("cli/train.py", "import emdl\nfrom emdl.spikes import fit\nfrom . import screen\nfrom .screen import show"),
        ("benchmarks/run.py", "from emdl import encode\nimport benchmarks.problems"),
    ],
)
def test_an_import_from_the_left_passes(path, source):
    assert violations(source, pathlib.Path(path), LAYERS) == []


@pytest.mark.parametrize("path", source_files("cli"), ids=str)
def test_the_command_line_imports_its_siblings_relatively(path):
    """By name they would be ``cli.x`` in the checkout and ``emdl.cli.x`` once installed."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    assert not [name for name in names if re.match(r"(emdl\.)?cli\b", name)]


@pytest.mark.parametrize("path", source_files("emdl", "tests", *OUTSIDE), ids=str)
def test_no_file_imports_a_deep_learning_framework(path):
    source = (ROOT / path).read_text(encoding="utf-8")
    heads = {name.partition(".")[0] for _, name in imported_modules(source, path)}
    assert heads.isdisjoint(FRAMEWORKS)


def loaded_after(code, folder):
    """Return the modules that a fresh interpreter, started away from the checkout, has loaded after `code`."""
    script = f"{code}\nimport sys\nprint(*sys.modules, sep='\\n')"
    run = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return {name.partition(".")[0] for name in run.stdout.split()}


@pytest.mark.parametrize("code", ["import emdl", "import emdl.cli", "import emdl\ndir(emdl), emdl.__version__"])
def test_heavy_libraries_wait_until_they_are_needed(code, tmp_path):
    assert loaded_after(code, tmp_path).isdisjoint(HEAVY)


def test_the_command_line_is_installed_inside_the_package_only(tmp_path):
    script = "import importlib.util as u; print(bool(u.find_spec('emdl.cli')), bool(u.find_spec('cli')))"
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "False"]


def test_every_package_folder_is_shipped():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    on_disk = {".".join(p.parent.parts) for p in source_files("emdl", "cli") if p.name == "__init__.py"}
    assert set(settings["packages"]) == {re.sub(r"^cli\b", "emdl.cli", name) for name in on_disk}


def test_every_file_beside_the_code_is_shipped():
    """setuptools drops data that pyproject.toml does not name, without a word."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    named = {
        path
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    beside = {p for p in (ROOT / "emdl").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc", ".nbi", ".nbc")}
    assert not beside - named


def test_the_tests_import_the_package_as_it_is_installed():
    """The checkout on the path would hide a file that the wheel lacks; the root conftest.py takes it off."""
    assert not {"", ".", str(ROOT)} & set(sys.path)
