"""From generated source to a module: kept in the cache, then imported as an ordinary file.

Triton reads the source of kernels through `inspect`, so they must be files.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.abc import SourceLoader
from pathlib import Path
from types import ModuleType

from spdsl import __version__
from spdsl.cache.entries import digest
from spdsl.cache.store import store
from spdsl.codegen.emit import KernelSource


@lru_cache(maxsize=1024)
def load(source: KernelSource) -> ModuleType:
    """The module of ``source``, written if it is not there yet."""
    path = write(source)
    name = f"spdsl_kernels_{source.digest}"
    spec = importlib.util.spec_from_loader(name, _Loader(path=path, text=source.text))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def write(source: KernelSource) -> Path:
    """Keep ``source`` in the cache unless the same text is there; returns its file."""
    name = f"{source.name}_{source.digest}.py"
    key = digest("source", name, source.text)
    entry = store().made(
        key, lambda: {name: source.text.encode()}, kind="source", name=source.name, made_by={"spdsl": __version__}
    )
    return entry.path(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loader(SourceLoader):
    """Runs the text that was written, and leaves no bytecode beside it."""

    path: Path
    text: str

    def get_filename(self, fullname: str) -> str:  # noqa: ARG002  # there is one module
        return str(self.path)

    def get_data(self, path: str | bytes) -> bytes:
        if str(path) != str(self.path):
            raise OSError(path)
        return self.text.encode()
