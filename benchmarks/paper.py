"""The claims of the paper, each tested: ``python benchmarks/paper.py`` computes, draws and fills in ``docs/paper.md``.

python benchmarks/paper.py                    everything that is not there yet, within three hours on two cores
python benchmarks/paper.py --quick            a small part of each claim, in minutes, into another folder
python benchmarks/paper.py --only recovery    one claim
python benchmarks/paper.py --draw             nothing computed; tables and figures from what is stored

A cell (one problem, one method, one seed) is stored as soon as it is computed, so a run that was stopped goes on.
"""

import argparse
import functools
import importlib
import pathlib
import re
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
CLAIMS = ("posterior", "recovery", "regularisation", "network", "sides", "images", "spikes", "speed")


def main(arguments=None):
    sys.path.insert(0, str(HERE.parent))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small part, for a test of the programs")
    parser.add_argument("--only", nargs="+", choices=CLAIMS, default=CLAIMS, help="some of the claims")
    parser.add_argument("--draw", action="store_true", help="compute nothing")
    parser.add_argument("--out", type=pathlib.Path, help="folder of results and figures")
    given = parser.parse_args(arguments)
    folder = given.out or (HERE / "results" / "paper-quick" if given.quick else HERE.parent / "docs" / "paper")
    folder.mkdir(parents=True, exist_ok=True)
    tables = {}
    for name in given.only:
        tables |= _claim(name, folder, quick=given.quick, compute=not given.draw)
    if set(given.only) == set(CLAIMS):
        tables["times"] = _times(folder, quick=given.quick)
    page = HERE.parent / "docs" / "paper.md"
    if not given.quick and given.out is None:
        page.write_text(fill(page.read_text(encoding="utf-8"), tables), encoding="utf-8")
    else:
        for name, text in tables.items():
            print(f"\n{name}\n{text}")


def _claim(name, folder, *, quick, compute):
    import matplotlib

    from benchmarks.claims import drawing
    from benchmarks.claims.store import Store

    claim = importlib.import_module(f"benchmarks.claims.{name}")
    store, cells = Store(folder / f"{name}.json", claim.VERSION), claim.cells(quick)
    left = [cell for cell in cells if store.get(cell) is None] if compute else []
    left = [cell for cell in left if _possible(claim, name, cell)]
    began = time.monotonic()
    for number, cell in enumerate(left, 1):
        start = time.process_time()
        result = claim.run(**cell)
        took = time.process_time() - start
        store.put(cell, result, result.pop("processor", took))
        each = (time.monotonic() - began) / number
        said = ", ".join(f"{key} {value}" for key, value in cell.items())
        print(f"{name}: {number} of {len(left)}, {each * (len(left) - number):.0f} s left ({said})", flush=True)
    rows = store.select(cells)
    if not rows or (len(rows) < len(cells) and not getattr(claim, "PARTIAL", False)):
        print(f"{name}: {len(rows)} of {len(cells)} cells are there; tables and figures wait for the rest", flush=True)
        return {}
    with matplotlib.rc_context(drawing.STYLE):
        claim.draw(rows, folder)
    return claim.tables(rows)


def _times(folder, *, quick):
    """Return a table of what each claim takes from nothing, by the seconds that are stored with its cells."""
    from benchmarks.claims import drawing
    from benchmarks.claims.store import Store

    rows, total = [], 0.0
    for name in CLAIMS:
        claim = importlib.import_module(f"benchmarks.claims.{name}")
        cells = claim.cells(quick)
        store = Store(folder / f"{name}.json", claim.VERSION)
        minutes = store.seconds(cells) / 60
        rows.append([name, len(cells), len(store.select(cells)), f"{minutes:.1f}"])
        total += minutes
    rows.append(["all", *(sum(row[i] for row in rows) for i in (1, 2)), f"{total:.0f}"])
    return drawing.table(["claim", "cells", "stored here", "processor minutes for all of them"], rows)


def _possible(claim, name, cell):
    """Return whether a cell can be computed here; say why not, once for each reason."""
    reason = claim.missing(**cell) if hasattr(claim, "missing") else None
    if reason:
        _say_once(f"{name}: {reason}; the cells that need it are left out")
    return reason is None


@functools.cache
def _say_once(text):
    print(text, flush=True)


def fill(text, tables):
    """Return the page with each table between its marks, ``<!-- table: name -->`` and ``<!-- end -->``."""
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"docs/paper.md has no place for the table {name}")
        text = pattern.sub(lambda found, table=table: found[1] + table + "\n" + found[2], text)
    return text


if __name__ == "__main__":
    main()
