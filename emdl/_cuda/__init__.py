"""CUDA kernels and their launches, for CuPy arrays in full form; nothing here is touched without CuPy.

`planes` holds the model and its adjoints: direct sums out of shared memory for small atoms (`planes.cu`), `fourier` for
large ones. `layers` holds what happens to the codes between two convolutions (`layers.cu`).
"""
