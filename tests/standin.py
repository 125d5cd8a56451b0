"""A strict stand-in for CuPy, so that code for a GPU is tested where there is none.

Its arrays hold NumPy data but behave as arrays on a device do where code goes wrong: they refuse to become NumPy arrays
by themselves, to mix with them, to be iterated over; reductions give arrays without axes, not numbers; and whatever
moves data or waits for the device is counted. It has no name that CuPy lacks (cupy_names.txt, from ``dir`` of the real
module). Kernels are the real CUDA sources, compiled for the CPU (see cuda/harness.py).
"""

import collections
import contextlib
import pathlib
import sys
import threading
import types

import numpy as np

_LISTED = pathlib.Path(__file__).with_name("cupy_names.txt").read_text(encoding="utf-8").splitlines()[1:]
NAMES = frozenset(_LISTED)
_DATA = ("shape", "dtype", "ndim", "size", "nbytes", "itemsize", "strides", "flags")
_WAITS = (
    "nonzero",
    "flatnonzero",
    "argwhere",
    "unique",
    "extract",
    "compress",
)  # their size is known on the device only


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""


class Counts(collections.Counter):
    """How often data went down to the host, up to the device, and how many kernels ran."""

    @contextlib.contextmanager
    def during(self):
        """Give a counter that holds, after the block, what was counted in it."""
        before, inside = self.copy(), collections.Counter()
        yield inside
        inside.update({key: self[key] - before[key] for key in self if self[key] != before[key]})


class Settings:
    """What the imagined device can do; tests change it."""

    def __init__(self):
        self.free_bytes = 2**30
        self.devices = 1
        self.current = 0


counts, settings = Counts(), Settings()
_ONE_AT_A_TIME = threading.Lock()


class ndarray:
    """An array on the imagined device."""

    __module__ = "cupy"
    __slots__ = ("_a",)
    __array_ufunc__ = None  # a NumPy scalar leaves the operation to this class; a NumPy array is refused below
    __hash__ = None

    def __init__(self, *_):
        raise TypeError("make arrays with cupy.asarray, zeros, ...")

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_function__(self, function, _, arguments, named):
        if function in (np.ndim, np.shape, np.size):  # CuPy has these, and they need no transfer
            return getattr(self, function.__name__)
        raise TypeError(f"numpy.{function.__name__} was called with a CuPy array; call that of cupy")

    def __iter__(self):
        raise TypeError("iteration over an array on a device is a transfer for every element")

    def __getattr__(self, name):
        if name.startswith("_") or f"cupy.ndarray.{name}" not in NAMES or not hasattr(np.ndarray, name):
            raise AttributeError(f"cupy.ndarray has no attribute {name!r}")
        if name in _DATA:
            return getattr(self._a, name)
        value = getattr(self._a, name)
        if not callable(value):
            return _wrap(value)
        if name in _WAITS:
            counts["down"] += 1
        return lambda *a, **k: _wrap(value(*_plain(a), **_plain(k)))

    def __setattr__(self, name, value):
        raise AttributeError(f"{name} of an array cannot be set here")

    def __len__(self):
        return len(self._a)

    def __repr__(self):
        return f"array on the device, {self._a!r}"

    def __getitem__(self, index):
        return _wrap(self._a[_index(index)])

    def __setitem__(self, index, value):
        self._a[_index(index)] = _plain(value)

    def get(self, **_):
        """Return a copy on the host."""
        return _down(self).copy()

    def item(self, *index):
        """Return one number on the host."""
        return _down(self).item(*index)

    def tolist(self):
        """Return lists on the host."""
        return _down(self).tolist()

    def __float__(self):
        return float(_down(self))

    def __int__(self):
        return int(_down(self))

    def __index__(self):
        return _down(self).__index__()

    def __bool__(self):
        return bool(_down(self))

    def __complex__(self):
        return complex(_down(self))


def _down(x):
    counts["down"] += 1
    return x._a


def _wrap(value):
    """Put the result of a NumPy function on the device; a scalar becomes an array without axes."""
    if isinstance(value, tuple | list):
        return type(value)(_wrap(v) for v in value)
    if not isinstance(value, np.ndarray | np.generic):
        return value
    made = object.__new__(ndarray)
    object.__setattr__(made, "_a", np.asarray(value))
    return made


def _plain(value):
    """Take arrays off the device for NumPy to compute with, and refuse those that were never on it."""
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, tuple | list):
        return type(value)(_plain(v) for v in value)
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return value


def _index(index):
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, ndarray) and part.dtype == bool:
            counts["down"] += 1  # the size of the result is known on the device only
        if isinstance(part, list):
            raise TypeError("a list as an index is copied to the device each time; make an array of it")
    return _plain(index)


def _operator(name):
    own = getattr(np.ndarray, name)

    def method(self, *others):
        result = own(self._a, *_plain(others))
        if result is NotImplemented:
            return NotImplemented
        return self if result is self._a else _wrap(result)

    method.__name__ = name
    return method


for _name in [
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
]:
    for _form in (f"__{_name}__", f"__r{_name}__", f"__i{_name}__"):
        setattr(ndarray, _form, _operator(_form))
for _name in ["neg", "pos", "abs", "invert", "lt", "le", "eq", "ne", "gt", "ge"]:
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))


class Namespace(types.ModuleType):
    """A module of CuPy: NumPy's functions of those names that CuPy has too."""

    def __init__(self, name, numpy_module, **own):
        super().__init__(name)
        self.__dict__.update(own, _numpy=numpy_module)

    def __getattr__(self, name):
        if name.startswith("_") or f"{self.__name__}.{name}" not in NAMES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(self._numpy, name)
        if isinstance(value, type) or not callable(value):
            return value

        def function(*arguments, **named):
            if name in _WAITS or (name == "where" and len(arguments) == 1):
                counts["down"] += 1
            return _wrap(value(*_plain(arguments), **_plain(named)))

        function.__name__ = name
        return function


def asarray(x, dtype=None, **_):
    """As cupy.asarray: what is not on the device goes there."""
    if isinstance(x, ndarray):
        return x if dtype is None or x.dtype == dtype else _wrap(x._a.astype(dtype))
    counts["up"] += 1
    return _wrap(np.array(x, dtype=dtype))


def array(x, dtype=None, copy=True, **_):
    """As cupy.array."""
    on_device = asarray(x, dtype)
    return on_device.copy() if copy and on_device is x else on_device


def ascontiguousarray(x, dtype=None):
    """As cupy.ascontiguousarray."""
    x = asarray(x, dtype)
    return x if x._a.flags.c_contiguous else _wrap(np.ascontiguousarray(x._a))


def asnumpy(x, **_):
    """As cupy.asnumpy."""
    return x.get() if isinstance(x, ndarray) else np.asarray(x)


class Device:
    """As cupy.cuda.Device."""

    compute_capability = "90"

    def __init__(self, number=None):
        self.id = settings.current if number is None else number
        if not 0 <= self.id < settings.devices:
            raise ValueError(f"there is no device {self.id}")

    @property
    def mem_info(self):
        """Free and total bytes."""
        return settings.free_bytes, 2 * settings.free_bytes

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def synchronize(self):
        """Wait for the device."""


class _Pool:
    def free_all_blocks(self):
        """Give back what is not in use."""

    def free_bytes(self):
        return 0


class RawModule:
    """Kernels of a source, run on the CPU as coroutines; `build` (source, dtype) is set by the fixture."""

    build = None

    def __init__(self, *, code, options=()):
        real = {"-DREAL=float": np.float32, "-DREAL=double": np.float64}
        self._library = RawModule.build(code, next(real[option] for option in options if option in real))

    def get_function(self, name):
        """Return a kernel: call it with grid, block, arguments, shared_mem."""

        def kernel(grid, block, arguments, *, shared_mem=0):
            assert len(grid) == 3
            assert min(grid) > 0, f"{name} was launched with the grid {grid}"
            assert max(grid[1:]) <= 65535, f"{name} was launched with the grid {grid}"
            assert shared_mem <= 48 * 1024, f"{name} wants {shared_mem} bytes of shared memory"
            for place, a in enumerate(arguments):
                if not isinstance(a, ndarray | np.generic):
                    raise TypeError(f"argument {place} of {name} is {type(a)}, wanted an array or a NumPy scalar")
                if isinstance(a, ndarray) and not a._a.flags.c_contiguous:
                    raise TypeError(f"argument {place} of {name} is not contiguous")
            with _ONE_AT_A_TIME:
                counts["kernels"] += 1
                self._library.run(name, grid, block[0], [_plain(a) for a in arguments], shared_mem)

        return kernel


def make():
    """Return the module that stands in for ``cupy``."""
    pool = _Pool()
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: settings.devices,
        getDeviceProperties=lambda number: {"name": b"a stand-in", "multiProcessorCount": 4, "totalGlobalMem": 2**31},
        runtimeGetVersion=lambda: 12090,
        driverGetVersion=lambda: 12090,
        CUDARuntimeError=RuntimeError,
    )
    memory = types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    cuda = Namespace("cupy.cuda", types, Device=Device, runtime=runtime, memory=memory)
    return Namespace(
        "cupy",
        np,
        ndarray=ndarray,
        asarray=asarray,
        array=array,
        ascontiguousarray=ascontiguousarray,
        asnumpy=asnumpy,
        RawModule=RawModule,
        cuda=cuda,
        linalg=Namespace("cupy.linalg", np.linalg),
        fft=Namespace("cupy.fft", np.fft),
        get_default_memory_pool=lambda: pool,
        __version__="a stand-in",
    )


@contextlib.contextmanager
def installed(build):
    """Put the stand-in in the place of ``cupy``; `build` (source, dtype) gives the kernels of a CUDA source."""
    held = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in ("cupy", "cupyx")}
    module, RawModule.build = make(), staticmethod(build)
    sys.modules["cupy"] = module
    settings.__init__()
    try:
        yield module
    finally:
        del sys.modules["cupy"]
        sys.modules.update(held)
