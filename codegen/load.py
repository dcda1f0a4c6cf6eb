"""From generated source to a module: written to the cache directory, then imported as an ordinary file.

Triton reads the source of kernels through `inspect`, so they must be files.  Writing is atomic: processes that start
together may write the same file, and each sees a whole one.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import platformdirs

from spdsl.codegen.emit import KernelSource


def cache_directory() -> Path:
    """Where generated files are kept: ``SPDSL_CACHE_DIR``, else the user's cache directory."""
    return Path(os.environ.get("SPDSL_CACHE_DIR") or platformdirs.user_cache_dir("spdsl")) / "kernels"


@lru_cache(maxsize=1024)
def load(source: KernelSource) -> ModuleType:
    """The module of ``source``, written if it is not there yet."""
    path = write(source, cache_directory())
    name = f"spdsl_kernels_{source.digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def write(source: KernelSource, directory: Path) -> Path:
    """Write ``source`` into ``directory`` unless the same text is there; returns the path."""
    path = directory / f"{source.name}_{source.digest}.py"
    if path.exists() and path.read_text(encoding="utf-8") == source.text:
        return path
    directory.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=directory, suffix=".py.part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(source.text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
