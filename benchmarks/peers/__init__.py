"""Other people's solvers: ``methods() -> {name: trace}``, ``trace(problem, stop) -> [(seconds, objective)]``.

``stop(seconds, objective)`` says when to end; the seconds leave out the time that judging an iterate takes.
"""
