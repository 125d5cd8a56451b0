"""Mutation testing: change one thing in the code, and see whether a test fails.

    python tests/mutate.py ops prox encoder gradients em --sample 60 --seed 0 --out mutants.jsonl

Works on a copy of the last commit in a temporary folder. A mutant is killed if a test of its module fails, crashes or
runs for more than `LIMIT` seconds of processor time; the tests of `WIDER` run only on what the first ones leave. What
survives is printed as a difference of two lines; the judgement of those that were left stands in docs/reliability.md.
Numba kernels are out of scope: they are compiled once for all mutants.
"""

import argparse
import ast
import contextlib
import copy
import importlib
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIMIT = 60  # seconds of processor time
TESTS = {
    "ops": ["test_ops.py", "test_reliability_algebra.py", "test_reliability.py"],
    "prox": ["test_prox.py", "test_unrolled.py"],
    "encoder": ["test_encoder_tiles.py", "test_encoder_properties.py", "test_encoder.py"],
    "gradients": ["test_gradients.py", "test_reliability.py"],
    "em": ["test_em_stages.py", "test_em.py"],
    "plan": ["test_plan.py", "test_em.py"],
    "course": ["test_course.py", "test_checkpoint.py"],
}
WIDER = {
    "ops": ["test_em.py"],
    "prox": ["test_gradients.py"],
    "encoder": ["test_reliability_algebra.py", "test_reliability.py", "test_parameters.py", "test_em.py"],
    "gradients": ["test_unrolled.py"],
    "em": ["test_checkpoint.py", "test_reliability.py", "test_parts.py", "test_starts.py", "test_rates.py"],
    "plan": ["test_checkpoint.py", "test_reliability.py", "test_parts.py"],
    "course": ["test_em.py", "test_parts.py"],
}
SKIPPED = "not slow and not gpu"
_COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
            ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}  # fmt: skip
_BINARY = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
           ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Mult}  # fmt: skip
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}


def changes(node):
    """Return functions that each change a node in one way, in place, or give the node that replaces it."""

    def other(name, value):
        def change(at):
            setattr(at, name, value)
            return at

        return change

    found = []
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARE:
        found.append(other("ops", [_COMPARE[type(node.ops[0])](), *node.ops[1:]]))
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _BINARY:
        found.append(other("op", _BINARY[type(node.op)]()))
    elif isinstance(node, ast.BoolOp):
        found.append(other("op", ast.Or() if isinstance(node.op, ast.And) else ast.And()))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        found.append(lambda at: at.operand)
    elif isinstance(node, ast.IfExp):
        found += [lambda at: at.body, lambda at: at.orelse]
    elif isinstance(node, ast.If):
        found += [other("test", ast.Constant(value=True)), other("test", ast.Constant(value=False))]
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        found.append(other("value", not node.value))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        found.append(other("value", node.value + 1 if isinstance(node.value, int) else 2 * node.value + 1))
    elif isinstance(node, ast.Name | ast.Attribute):
        name = node.id if isinstance(node, ast.Name) else node.attr
        if name in _NAMES:
            found.append(other("id" if isinstance(node, ast.Name) else "attr", _NAMES[name]))
    elif isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        found.append(lambda at: ast.copy_location(ast.Pass(), at))
    return found


def sites(tree):
    """Return the path of every node that can be changed, outside docstrings, messages, annotations and decorators."""
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped.update(map(id, ast.walk(node)))
        for part in ("annotation", "returns", "decorator_list"):
            inner = getattr(node, part, None)
            for each in inner if isinstance(inner, list) else [inner] if inner is not None else []:
                skipped.update(map(id, ast.walk(each)))
    return [
        (number, kind)
        for number, node in enumerate(ast.walk(tree))
        if id(node) not in skipped
        for kind in range(len(changes(node)))
    ]


class _Put(ast.NodeTransformer):
    def __init__(self, target, change):
        self.target, self.change = target, change

    def visit(self, node):
        if node is self.target:
            return self.change(node)
        return self.generic_visit(node)


def mutant(tree, site):
    """Return the source with one change, and the line of it."""
    number, kind = site
    changed = copy.deepcopy(tree)
    target = next(node for i, node in enumerate(ast.walk(changed)) if i == number)
    line = target.lineno
    changed = _Put(target, changes(target)[kind]).visit(changed)
    return ast.unparse(ast.fix_missing_locations(changed)), line


def difference(tree, source):
    """Return the lines that differ."""
    before, after = ast.unparse(tree).splitlines(), source.splitlines()
    return [line for line in before if line not in after], [line for line in after if line not in before]


def survives(tests, folder, *, limit=LIMIT, heard=False):
    """Run the tests in a forked process; return whether all passed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _run(tests, folder, limit, heard)
        except BaseException:  # noqa: BLE001 - it must not leave by the way of its parent, which removes the folder
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(waited(child, 6 * (limit or 600))) == 0


def _run(tests, folder, limit, heard):
    if limit:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(folder)
    if not heard:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
    import pytest

    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", SKIPPED]
    return int(pytest.main([*options, *(f"tests/{name}" for name in tests)]))


def copy_checkout(folder):
    """Put the package of the last commit, or of the checkout where there is no git, apart from its tests."""
    whole = folder / "checkout"
    try:
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
        whole.mkdir()
        subprocess.run(["tar", "--extract", "--directory", str(whole)], input=archive, check=True)
    except (OSError, subprocess.CalledProcessError):
        whole = ROOT
    shutil.copytree(whole / "emdl", folder / "lib" / "emdl", dirs_exist_ok=True)
    shutil.copytree(whole / "cli", folder / "lib" / "emdl" / "cli", dirs_exist_ok=True)
    for path in (folder / "lib").rglob("*.py"):  # by which numba knows kernels that it has compiled before
        os.utime(path, (0, zlib.crc32(path.read_bytes())))
    shutil.copytree(whole / "tests", folder / "work" / "tests")
    shutil.copy(whole / "pyproject.toml", folder / "work")


def waited(child, longest):
    """Return the status of a process, which is killed if it takes too long by the clock, as when threads wait."""
    began = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if time.monotonic() - began > longest:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.05)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="+", choices=TESTS)
    parser.add_argument("--sample", type=int, help="mutants of each module, drawn at random; default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="a line of JSON for each mutant")
    parser.add_argument("--again", type=pathlib.Path, help="try only what survived according to such a file")
    parser.add_argument("--folder", type=pathlib.Path, help="for the copy; kept, so that kernels are compiled once")
    parser.add_argument("--narrow", action="store_true", help="leave out the wider tests; try --again with them")
    parser.add_argument("--minutes", type=float, default=1e9, help="of processor time, after which no more are tried")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="emdl-mutants-") as name:
        folder = pathlib.Path(name) if given.folder is None else given.folder.resolve()
        for part in ("checkout", "work"):
            shutil.rmtree(folder / part, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        copy_checkout(folder)
        sys.path.insert(0, str(folder / "lib"))
        sys.dont_write_bytecode = True
        os.environ |= {"NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder / "lib")}
        for library in ("h5py", "numba", "pytest", "scipy.optimize", "scipy.signal"):
            importlib.import_module(library)  # once for all children
        for module in given.modules:
            try_module(module, folder, given)


def try_module(module, folder, given):
    """Try the mutants of one module and print what came out."""
    path = folder / "lib" / "emdl" / f"{module}.py"
    source = path.read_text()
    tree = ast.parse(source)
    place = folder / "work"
    rounds = [TESTS[module]] if given.narrow else [TESTS[module], WIDER[module]]
    for tests in rounds:  # the first run compiles the kernels, which takes long
        if not survives(tests, place, limit=None) and not survives(tests, place, limit=None, heard=True):
            sys.exit(f"the tests of {module} fail without any change: {tests}")
    chosen = sites(tree)
    total = len(chosen)
    if given.sample and given.sample < total:
        chosen = sorted(random.Random(given.seed).sample(chosen, given.sample))
    if given.again:
        records = map(json.loads, given.again.read_text().splitlines())
        left = [(r["before"], r["after"]) for r in records if r["module"] == module and not r["killed"]]
        chosen = [site for site in sites(tree) if difference(tree, mutant(tree, site)[0]) in left]
    killed = tried = 0
    for site in chosen:
        if sum(os.times()[2:4]) > 60 * given.minutes:
            break
        changed, line = mutant(tree, site)
        path.write_text(changed)
        alive = all(survives(tests, place) for tests in rounds)
        tried, killed = tried + 1, killed + (not alive)
        before, after = difference(tree, changed)
        if alive:
            print(f"{module}:{line}", *(f"  - {text.strip()}" for text in before), sep="\n")
            print(*(f"  + {text.strip()}" for text in after), sep="\n", flush=True)
        if given.out:
            with given.out.open("a") as file, contextlib.suppress(OSError):
                record = {
                    "module": module,
                    "line": line,
                    "site": site,
                    "killed": not alive,
                    "before": before,
                    "after": after,
                }
                file.write(json.dumps(record) + "\n")
    path.write_text(source)
    print(
        f"== {module}: {killed} of {tried} killed ({100 * killed / max(tried, 1):.0f} %), of {total} possible",
        flush=True,
    )


if __name__ == "__main__":
    main()
