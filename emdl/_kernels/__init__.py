"""Numba kernels: one thread each, without the interpreter lock, on planes.

A signal is a stack of planes (C, H, W), an atom (C, h, w), codes (K, PH, PW); a signal with one axis has H = h = 1.
Threads come from `emdl.backend.parallel_map` over pieces whose borders do not depend on the number of threads.

Codes in sparse form (`index`, `value`) are numbered ``(i * PW + j) * K + k`` and increase.
"""
