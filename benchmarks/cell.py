"""Measure one solver on one problem, in a process of its own: ``python -m benchmarks.cell JSON FILE``.

The JSON says what; lines of JSON go to the file as soon as something is known, so that what a process that was ended
had found is not lost. What the solver prints goes nowhere.
"""

import json
import os
import resource
import sys
import traceback


def main(arguments):
    given, path = json.loads(arguments[0]), arguments[1]
    with open(path, "a", encoding="utf-8") as file:

        def say(**line):
            file.write(json.dumps(line) + "\n")
            file.flush()

        try:
            _measure(given, say)
        except BaseException as error:  # noqa: BLE001 - whatever ends a peer is its result
            where = traceback.extract_tb(error.__traceback__)[-1]
            say(
                error=f"{type(error).__name__}: {error}"[:300],
                where=f"{os.path.basename(where.filename)}:{where.lineno}",
            )
            return 1
    return 0


def _measure(given, say):
    """Say what is found; cases that are not problems: ``machine``, ``compile`` and ``scaling-N``."""
    case = given["case"]
    if case == "machine":
        from benchmarks.machine import rates

        say(point=rates())
    elif case == "compile":
        from benchmarks.peers.own import compile_seconds

        say(point=compile_seconds())
    elif case.startswith("scaling-"):
        from benchmarks.peers.own import scale

        say(point=scale(int(case.removeprefix("scaling-"))))
    else:
        _race(given, say)


def _race(given, say):
    import numpy as np

    from benchmarks import problems
    from benchmarks.peers import Watch, solver

    solve, options = solver(given["solver"])  # a peer that does not import ends here
    problem = problems.make(given["case"])
    known = given.get("reference") or {}
    if known.get("fingerprint") != problem.fingerprint:
        import emdl

        z = emdl.encode(problem.y, problem.D, problem.lmbd, tol=1e-8, positive=problem.positive)
        primal, dual = problems.objective(problem, z), problems.lower_bound(problem, z)
        known = {"fingerprint": problem.fingerprint, "primal": primal, "dual": dual, "nonzeros": int((z != 0).sum())}
        known |= {"name": problem.name, "size": int(z.size), "rms": float(np.sqrt((problem.y**2).mean()))}
        say(reference=known)
        del z
    if given.get("memory"):
        resource.setrlimit(resource.RLIMIT_AS, (given["memory"], resource.getrlimit(resource.RLIMIT_AS)[1]))
    watch = Watch(problem, known["primal"], given["limit"], lambda point: say(point=point))
    solve(problem, watch, options)
    say(done=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
