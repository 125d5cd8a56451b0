"""The claims of the paper, a module each: cells to compute, a table, a figure. Run by ``benchmarks/paper.py``."""
