"""Cells that were computed, kept in a JSON file so that a run goes on where another stopped."""

import json
import math
import os
import pathlib
import tempfile


class Store:
    """Results of one claim by the parameters of their cell.

    A cell is a dict of numbers and texts. What was computed by another version of the claim is computed anew.
    """

    def __init__(self, path, version):
        self.path, self.version = pathlib.Path(path), version
        self.rows = []
        if self.path.exists():
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["version"] == version:
                self.rows = kept["rows"]

    def get(self, cell):
        """Return the result of a cell, or None."""
        return next((row["result"] for row in self.rows if row["cell"] == cell), None)

    def put(self, cell, result, seconds):
        """Keep a result; the file is whole at every moment.

        Parameters
        ----------
        cell, result : dict
            What was computed.
        seconds : float or None
            Of the processor that it took; None if that is not known.
        """
        seconds = None if seconds is None else round(seconds, 3)
        self.rows.append({"cell": cell, "result": result, "seconds": seconds})
        text = ",\n".join(json.dumps(row) for row in self.rows)
        handle, part = tempfile.mkstemp(dir=self.path.parent, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f'{{"version": {self.version}, "rows": [\n{text}\n]}}\n')
        os.replace(part, self.path)

    def seconds(self, cells):
        """Return the seconds of the processor that these cells take; those that were not timed count as the mean."""
        asked = [row["seconds"] for cell in cells for row in self.rows if row["cell"] == cell]
        known = [seconds for seconds in asked if seconds is not None]
        return len(cells) * sum(known) / len(known) if known else math.nan

    def select(self, cells):
        """Return [(cell, result), ...] of those that are there."""
        found = [(cell, self.get(cell)) for cell in cells]
        return [(cell, result) for cell, result in found if result is not None]


def groups(rows, *names):
    """Return {values of `names`: [result, ...]} in the order of the rows."""
    found = {}
    for cell, result in rows:
        found.setdefault(tuple(cell[name] for name in names), []).append(result)
    return found
