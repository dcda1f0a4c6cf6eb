"""The modules with which Triton starts kernels, built on a machine without a driver.

From: compiled kernels.  To: entries of the cache, which Triton finds under the text of a module.  They are for this
version of Python.  Triton links them with NVIDIA's driver; where there is none, an empty library of its name takes
its place while they are linked, and the real one is found when they are loaded.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime.build import platform_key
from triton.runtime.cache import get_cache_manager

from spdsl.codegen.binaries import files_kept

_DRIVER = "libcuda.so.1"


def build_launchers(kernels: Iterable[CompiledKernel]) -> bool:
    """Build them for these kernels, each once; says whether it was possible, with a C compiler and for NVIDIA's."""
    made = list(kernels)
    if not made or made[0].metadata.target.backend != "cuda" or not any(map(shutil.which, ("gcc", "clang"))):
        return False
    from triton.backends.nvidia import driver
    from triton.backends.nvidia.driver import CudaLauncher

    with _driver(), files_kept():
        launchers = {_text(each): partial(CudaLauncher, each.src, each.metadata) for each in made}
        modules = [_Module(name="__triton_launcher", text=text, build=build) for text, build in launchers.items()]
        text = (Path(driver.dirname) / "driver.c").read_text(encoding="utf-8")
        modules.append(_Module(name="cuda_utils", text=text, build=driver.CudaUtils))
        with ThreadPoolExecutor() as pool:
            tasks = [pool.submit(copy_context().run, each.make) for each in modules if not each.is_kept]
            return all(task.result() for task in tasks)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Module:
    """A module of Triton's, which it calls ``name``, its ``text`` in C, and what builds it."""

    name: str
    text: str
    build: Callable[[], object]

    @property
    def is_kept(self) -> bool:
        """Whether the cache has it."""
        key = hashlib.sha256((self.text + platform_key()).encode()).hexdigest()
        return get_cache_manager(key).get_file(f"{self.name}{sysconfig.get_config_var('EXT_SUFFIX')}") is not None

    def make(self) -> bool:
        """Build it; says whether that was possible."""
        # Where there is no driver the module cannot be loaded, which is tried after it has been kept.
        with suppress(ImportError):
            try:
                self.build()
            except subprocess.CalledProcessError:
                return False
        return True


def _text(kernel: CompiledKernel) -> str:
    """The text of a kernel's module."""
    from triton.backends.nvidia.driver import make_launcher

    signature = dict(kernel.src.signature)
    return str(make_launcher({}, signature, getattr(kernel.metadata, "tensordesc_meta", None)))


@contextmanager
def _driver() -> Iterator[None]:
    """While this lasts, there is a library of the driver's name to link with."""
    from triton.backends.nvidia import driver

    try:
        driver.libcuda_dirs()
    except (AssertionError, OSError, subprocess.CalledProcessError):
        with tempfile.TemporaryDirectory(prefix="spdsl-") as folder:
            _stub(Path(folder), Path(driver.dirname) / "driver.c")
            before = knobs.nvidia.libcuda_path
            knobs.nvidia.libcuda_path = folder
            try:
                yield
            finally:
                knobs.nvidia.libcuda_path = before
                driver.libcuda_dirs.cache_clear()
                driver.library_dirs.cache_clear()
    else:
        yield


def _stub(folder: Path, asks: Path) -> None:
    """A library with functions of the names that modules ask for: linkers leave out one of which nothing is used."""
    names = sorted({*re.findall(r"\bcu[A-Z]\w+", asks.read_text(encoding="utf-8")), *_ASKED})
    source = folder / "stub.c"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in names), encoding="utf-8")
    compiler: Any = shutil.which("gcc") or shutil.which("clang")
    words = [compiler, "-shared", "-fPIC", "-o", str(folder / _DRIVER), f"-Wl,-soname,{_DRIVER}", str(source)]
    subprocess.run(words, check=True, capture_output=True)  # noqa: S603  # the compiler that Triton takes


_ASKED = (
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuDevicePrimaryCtxRetain",
    "cuGetErrorString",
    "cuPointerGetAttribute",
)
"""What the modules of kernels call, besides what the driver's own does."""
