"""The documentation is true: docstrings are complete, examples run, links lead somewhere."""

import ast
import dataclasses
import doctest
import importlib
import importlib.util
import inspect
import pathlib
import re
import textwrap
import tomllib

import pytest

import emdl

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = pathlib.Path(emdl.__file__).parent
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def module_names():
    """Return the dotted names of all public modules of the installed package, emdl.cli with them."""
    folders = {"emdl": PACKAGE, "emdl.cli": pathlib.Path(importlib.util.find_spec("emdl.cli").origin).parent}
    names = {
        ".".join([name, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__")
        for name, folder in folders.items()
        for path in folder.rglob("*.py")
    }
    return sorted(name for name in names if not re.search(r"\._", name))


def public_objects(name):
    """Yield (dotted name, object): a public name of emdl and, of a module or class, the public names in it."""
    thing = getattr(emdl, name)
    yield f"emdl.{name}", thing
    inner = {}
    if inspect.ismodule(thing):
        defined = [key for key, value in vars(thing).items() if getattr(value, "__module__", None) == thing.__name__]
        names = getattr(thing, "__all__", [key for key in defined if not key.startswith("_")])
        inner = {key: getattr(thing, key) for key in names}
    yield from ((f"emdl.{name}.{key}", value) for key, value in inner.items())
    for owner, cls in [(f"emdl.{name}", thing), *((f"emdl.{name}.{key}", value) for key, value in inner.items())]:
        if inspect.isclass(cls):
            methods = inspect.getmembers(cls, lambda member: inspect.isfunction(member) or inspect.ismethod(member))
            yield from ((f"{owner}.{key}", method) for key, method in methods if not key.startswith("_"))


def sections(docstring):
    """Return {title: text} of a numpydoc docstring; the summary stands under ""."""
    pieces = re.split(r"^([A-Z][A-Za-z ]+)\n-{3,}\n", docstring, flags=re.MULTILINE)
    return {"": pieces[0], **dict(zip(pieces[1::2], pieces[2::2], strict=True))}


def described(text):
    """Return the names that a section describes: ``y, D : array`` describes two, ``**options`` describes options."""
    heads = re.findall(r"^(\*{0,2}\w[^:\n]*?) *(?::.*)?$", text, flags=re.MULTILINE)
    return [name.strip().lstrip("*") for head in heads for name in head.split(",")]


def complaints_about_function(function, parts):
    signature = inspect.signature(function)
    wanted = [name for name in signature.parameters if name not in ("self", "cls")]
    written = described(parts.get("Parameters", "")) + described(parts.get("Other Parameters", ""))
    for name in wanted:
        if name not in written:
            yield f"does not describe its parameter `{name}`"
    for name in written:
        if name not in wanted:
            yield f"describes `{name}`, which it does not take"
    if answers(function) and not {"Returns", "Yields"} & set(parts):
        yield "has no section Returns"


def answers(function):
    """Tell whether the function returns or yields a value; functions inside it speak for themselves."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    todo = list(tree.body[0].body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Yield, ast.YieldFrom)) or (isinstance(node, ast.Return) and node.value is not None):
            return True
        if not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            todo.extend(ast.iter_child_nodes(node))
    return False


def complaints(thing):
    """Yield what the docstring of a public object lacks."""
    docstring = inspect.getdoc(thing)
    if not docstring:
        yield "has no docstring"
        return
    parts = sections(docstring)
    if not parts[""].split("\n\n")[0].rstrip().endswith("."):
        yield "does not begin with a sentence"
    if inspect.isfunction(thing) or inspect.ismethod(thing):
        yield from complaints_about_function(thing, parts)
    if inspect.isclass(thing) and dataclasses.is_dataclass(thing):
        written = described(parts.get("Attributes", "")) + described(parts.get("Parameters", ""))
        for field in dataclasses.fields(thing):
            if field.name not in written and not field.name.startswith("_"):
                yield f"does not describe its field `{field.name}`"


@pytest.mark.parametrize("name", emdl.__all__)
def test_a_public_name_is_documented(name):
    """Parameters as in the signature, no more, no less; Returns where something is returned; fields of data classes."""
    found = [f"{where} {complaint}" for where, thing in public_objects(name) for complaint in complaints(thing)]
    assert not found, "\n".join(found)


def test_a_docstring_that_lacks_something_is_caught():
    def incomplete(y, D, *, tol=1e-4):
        """Return nothing of note.

        Parameters
        ----------
        y, z : array
            Signals.
        """
        return y

    assert list(complaints(incomplete)) == [
        "does not describe its parameter `D`",
        "does not describe its parameter `tol`",
        "describes `z`, which it does not take",
        "has no section Returns",
    ]


@pytest.mark.parametrize("name", module_names())
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    """An example imports what it uses, but for the public names of its own module."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", None) == name}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report = []
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, name, globs=own):
        runner.run(example, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    """The blocks run in the order of the page and share their names, as in one session."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    session = {"__name__": "__main__"}
    for block in FENCE.finditer(page):
        if block[1] == "python":
            lines_before = page[: block.start(2)].count("\n")
            exec(compile("\n" * lines_before + block[2], "README.md", "exec"), session)


def pages():
    """Return the Markdown pages of the project, relative to its root."""
    folders = [".github", "benchmarks", "cli", "docs", "emdl", "examples", "tests"]
    found = [*ROOT.glob("*.md"), *(page for folder in folders for page in (ROOT / folder).rglob("*.md"))]
    return sorted(page.relative_to(ROOT) for page in found)


def anchors(page):
    """Return the anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ +(.+?) *#*$", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page):
    """Yield the links of a page that lead to no file, or to no heading of it; the web is not asked."""
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    links = re.findall(r"\]\(<?([^)>\s]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    links += re.findall(r"^\[[^\]]+\]: +(\S+)", text, flags=re.MULTILINE)
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", pages(), ids=str)
def test_every_link_between_pages_leads_somewhere(page):
    assert list(broken_links(ROOT / page)) == []


def test_a_broken_link_is_caught(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A *first* page\n[a](#a-first-page) [b](gone.md) [c](#gone) ![d](page.md)\n[e]: gone.png\n"
        '[f](https://example.org/gone) `[g](code.md)` <img src="gone.svg">\n```\n# [h](code.md)\n```\n'
    )
    assert list(broken_links(page)) == ["gone.md", "#gone", "gone.svg", "gone.png"]


def test_the_version_is_the_same_on_every_page():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    newest = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {project["version"], citation[1], newest[1]} == {emdl.__version__}
