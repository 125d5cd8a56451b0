"""Compile the CUDA sources for the CPU and run their kernels: in this process, or in another under a sanitizer."""

import ctypes
import hashlib
import os
import pathlib
import re
import shutil
import struct
import subprocess

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
GXX = shutil.which("g++")
BUILDS = "EMDL_TEST_BUILDS"  # environment variable: the folder of compiled sources
SANITIZERS = {
    "memory": ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "races": ["-O0", "-fsanitize=thread"],
}
_C_TYPES = {"int": np.dtype(np.int32), "longlong": np.dtype(np.int64), "double": np.dtype(np.float64)}


def kernels_of(source, real):
    """Return {kernel: [(is_array, is_written, dtype), ...]}, its parameters, from the text of a source."""
    plain = re.sub(r"//.*", "", source).replace("\\\n", " ")
    signature = r"__global__\s+void\s+__launch_bounds__\(\w+\)\s*(\w+)\s*\(([^)]*)\)"
    found = {name: parameters for name, parameters in re.findall(signature, plain) if name != "NAME"}
    for macro, parameters in re.findall(
        r"#define (\w+)\(NAME\b[^)]*\).*?" + signature.replace(r"(\w+)\s*\(", r"NAME\s*\("), plain
    ):
        found |= dict.fromkeys(re.findall(rf"^{macro}\((\w+),", plain, re.MULTILINE), parameters)
    types = _C_TYPES | {"REAL": np.dtype(real)}
    kernels = {}
    for name, parameters in found.items():
        kernels[name] = []
        for parameter in parameters.split(","):
            kind = "".join(re.findall(r"\w+", parameter.replace("const ", ""))[:-1])
            kernels[name].append(("*" in parameter, "*" in parameter and "const " not in parameter, types[kind]))
    return kernels


def check_arguments(name, parameters, given):
    """Raise TypeError where (is_array, dtype) of an argument is not what the kernel takes."""
    assert len(given) == len(parameters), f"{name} takes {len(parameters)} arguments, got {len(given)}"
    for place, ((is_array, dtype), (wants_array, _, wanted)) in enumerate(zip(given, parameters, strict=True)):
        if is_array != wants_array or dtype != wanted:
            raise TypeError(
                f"argument {place} of {name} is {dtype} (array: {is_array}), wanted {wanted} ({wants_array})"
            )


def _compile(source, real, flags, tail):
    """Return the compiled source; one build serves all processes of a run of tests, in the folder `BUILDS`."""
    import fcntl  # not on Windows

    key = hashlib.sha256(repr((source, np.dtype(real).str, flags, tail)).encode()).hexdigest()[:20]
    folder = pathlib.Path(os.environ[BUILDS]) / key
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "unit.so").exists():
            _build(source, real, folder, flags, tail)
    return folder / "unit.so"


def _build(source, real, folder, flags, tail):
    name = {np.float32: "float", np.float64: "double"}[np.dtype(real).type]
    text = f'#include "shim.h"\n#define REAL {name}\n{source}\n{tail}'
    (folder / "unit.cpp").write_text(text)
    command = [GXX, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", f"-I{HERE}", *flags]
    done = subprocess.run(
        [*command, "unit.cpp", "-o", "part.so"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (folder / "part.so").replace(folder / "unit.so")


class Library:
    """Kernels of one source as coroutines in this process."""

    def __init__(self, source, real):
        self.kernels = kernels_of(source, real)
        tail = "\n".join(
            f'extern "C" void run_{name}(const unsigned *dims, std::size_t bytes, void **values) '
            f"{{ shim::launch({name}, dims, bytes, values); }}"
            for name in self.kernels
        )
        self._library = ctypes.CDLL(
            str(_compile(source, real, ["-DFIBERS", "-shared", "-fPIC", "-Wl,-Bsymbolic"], tail))
        )

    def run(self, name, grid, threads, arguments, shared):
        """Launch a kernel; arrays are ndarrays, written in place, numbers are NumPy scalars."""
        given = [(isinstance(a, np.ndarray), a.dtype) for a in arguments]
        check_arguments(name, self.kernels[name], given)
        held = [
            ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.create_string_buffer(a.tobytes())
            for a in arguments
        ]
        values = (ctypes.c_void_p * len(held))(*(ctypes.addressof(h) for h in held))
        getattr(self._library, f"run_{name}")((ctypes.c_uint * 4)(*grid, threads), ctypes.c_size_t(shared), values)


class Program:
    """Kernels of one source with real threads, run in a process of its own under sanitizers.

    The process reads launches from a file (kernel, grid, arguments) and writes all arrays back.
    """

    def __init__(self, source, real, folder, sanitizer):
        self.kernels, self.folder = kernels_of(source, real), folder
        names = "\n".join(
            f'    if (name == "{name}") return shim::launch({name}, dims, bytes, values);' for name in self.kernels
        )
        tail = (HERE / "main.cpp").read_text().replace("    // KERNELS", names)
        flags = ["-g", "-pthread", *SANITIZERS[sanitizer]]
        self._program = _compile(source, real, flags, tail)

    def run(self, name, grid, threads, arguments, shared):
        """Launch a kernel as `Library.run` does; a finding of the sanitizer is an AssertionError with its report."""
        given = [(isinstance(a, np.ndarray), a.dtype) for a in arguments]
        check_arguments(name, self.kernels[name], given)
        file = self.folder / "launch"
        with file.open("wb") as out:
            out.write(struct.pack("<64s4IQI", name.encode(), *grid, threads, shared, len(arguments)))
            for a in arguments:
                is_array, data = isinstance(a, np.ndarray), a.tobytes()
                out.write(struct.pack("<IQ", is_array, len(data)) + data)
        quiet = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1 report_signal_unsafe=0"}
        done = subprocess.run(
            [str(self._program), str(file)], capture_output=True, text=True, check=False, env=os.environ | quiet
        )
        assert done.returncode == 0, done.stderr[:4000]
        data, at = file.read_bytes(), 0
        for a, (_, written, _) in zip(arguments, self.kernels[name], strict=True):
            if isinstance(a, np.ndarray):
                if written:
                    a[...] = np.frombuffer(data, a.dtype, a.size, at).reshape(a.shape)
                at += a.nbytes
