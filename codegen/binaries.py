"""Compiled kernels in the cache: what Triton compiles is kept there, and is not compiled again.

From: a kernel as Triton hands it to its compiler.  To: Triton's `CompiledKernel`, from the files of an entry.  The key
names all that decides the binary: the hash of the source and of what it calls, the types of the arguments, options,
target, and the versions of Triton and ptxas.  It names no path and no version of Python, so that what is compiled
on one machine runs on another.

Triton (3.6 to 3.9) keeps its compiler in the attribute ``compile`` of a jitted function, and asks a `CacheManager` for
every file it makes; both are replaced here while spdsl launches or compiles, and only for its thread.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import triton
from triton import knobs
from triton.compiler import CompiledKernel
from triton.compiler.compiler import get_cache_invalidating_env_vars, make_backend
from triton.runtime.cache import CacheManager, FileCacheManager

from spdsl import __version__
from spdsl.cache.entries import Entry, digest
from spdsl.cache.store import store
from spdsl.codegen import readiness

_KEPT = ("cubin", "hsaco", "amdgcn", "json")
"""Endings of the files that are kept: the binary, what Triton knows of it, and the text that tells an AMD kernel's
registers."""


@contextmanager
def keeping(function: Any, device: int | None = None) -> Iterator[None]:
    """While this lasts, `function` is compiled through the cache, on the current device if ``device`` is given.

    A cache manager of the user's own (``TRITON_CACHE_MANAGER``) is left in place, as is the interpreter.
    """
    if not hasattr(function, "device_caches") or _is_users(knobs.cache.manager_class):
        yield
        return
    readiness.wait("compiler")
    with files_kept():
        if device is not None:
            function.device_caches[device]  # makes Triton load its driver, and set `compile`
            if not isinstance(function.compile, KeptCompiler):
                function.compile = KeptCompiler(compiler=function.compile, launches=True)
        yield


def compile_kept(source: Any, target: Any, options: Mapping[str, Any]) -> CompiledKernel:
    """Triton's `compile` behind the cache, for a target that need not be present."""
    with files_kept():
        return KeptCompiler(compiler=triton.compile)(source, target=target, options=options)


def options_of(warps: int = 4, stages: int = 3, registers: int | None = None) -> dict[str, Any]:
    """What Triton is told when it compiles a kernel, on the first launch or ahead of time.

    A product and a sum become one instruction, which from Triton 3.10 on is no longer the default.  ``registers`` is
    the most that a thread may have; Triton for AMD knows no such option.
    """
    found: dict[str, Any] = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return found if registers is None else {**found, "maxnreg": registers}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCompiler:
    """Triton's ``compiler`` behind the cache; called as it is.  ``launches`` says that kernels will run here."""

    compiler: Callable[..., CompiledKernel]
    launches: bool = False

    def __call__(
        self, src: Any, target: Any = None, options: Mapping[str, Any] | None = None, **rest: Any
    ) -> CompiledKernel:
        """The compiled kernel: from the cache, or made by one of all processes that want it."""
        backend = make_backend(target)
        ask = _ask.get()
        key = _key(src, backend, backend.parse_options({**(options or {}), **src.parse_options()}))
        if ask is not None and self.launches:
            return ask(key, src, target, options or {})
        here, made = store(), None

        def make() -> dict[str, bytes]:
            nonlocal made
            with _launcher_beside(src) if self.launches else nullcontext(), _parsed_alone(src):
                made = self.compiler(src, target=target, options=options, **rest)
            return _files_of(made)

        about = {
            "target": f"{target.backend}:{target.arch}",
            "made_by": {"spdsl": __version__, "triton": triton.__version__},
        }
        entry = here.made(key, make, kind="kernel", name=src.name, **about)
        return made if made is not None else CompiledKernel(src, _group(entry), key)


Ask: TypeAlias = Callable[[str, Any, Any, Mapping[str, Any]], Any]
"""Told the key of a kernel that a launch wants, its source, target and options; gives what is launched instead."""

_ask: ContextVar[Ask | None] = ContextVar("_ask", default=None)


@contextmanager
def asking(ask: Ask) -> Iterator[None]:
    """While this lasts, launches of this thread ask for kernels, and none is compiled."""
    token = _ask.set(ask)
    try:
        yield
    finally:
        _ask.reset(token)


@contextmanager
def _launcher_beside(src: Any) -> Iterator[None]:
    """While this lasts, the module that starts a kernel is built by a C compiler in a thread; where that fails, Triton
    does it afterwards, and says why."""

    def build() -> None:
        with suppress(Exception):
            triton.runtime.driver.active.launcher_cls(src, Foreseen.of(src))

    thread = threading.Thread(target=copy_context().run, args=(build,), name="spdsl-launcher", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """What is known of a kernel before it is compiled, as the module that starts it needs it: nothing but that the copy
    engine takes its descriptors, one for each argument of that type.  All else has no part in the module's text."""

    tensordesc_meta: tuple[dict[str, Any], ...]

    @staticmethod
    def of(src: Any) -> Foreseen:
        """For the source of a kernel, as Triton has it."""
        types = [each for each in src.signature.values() if isinstance(each, str)]
        return Foreseen(tensordesc_meta=tuple({} for each in types if each.startswith("tensordesc")))

    def __getattr__(self, name: str) -> int:
        """Sizes that are not known yet."""
        return 0


def _key(src: Any, backend: Any, options: Any) -> str:
    """The key of a kernel."""
    settings = {name: _portable(name, value) for name, value in sorted(vars(options).items())}
    shown = json.dumps([settings, sorted(get_cache_invalidating_env_vars().items())], default=str)
    with _parsing:
        content = src.hash()
    return digest("kernel", triton.__version__, backend.hash(), content, shown)


_parsing = threading.RLock()
"""Held while Triton parses functions: of threads that parse at once, one may fail in Python 3.11 ("recursion
depth mismatch").  None of them would be done sooner, as all of it is Python."""


@contextmanager
def _parsed_alone(src: Any) -> Iterator[None]:
    """While this lasts, no other thread parses while this source is turned into what the compiler takes."""
    make_ir = src.make_ir

    def alone(*given: Any) -> Any:
        with _parsing:
            return make_ir(*given)

    src.make_ir = alone
    try:
        yield
    finally:
        del src.make_ir


def _portable(name: str, value: Any) -> Any:
    """An option as all machines have it: libraries by their content."""
    if name == "extern_libs":
        return [(library, _hash_of(path)) for library, path in dict(value).items()]
    return value


@lru_cache(maxsize=16)
def _hash_of(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _files_of(made: CompiledKernel) -> dict[str, bytes]:
    """The files to keep, without paths of this machine."""
    found = {name: Path(path) for name, path in made.metadata_group.items() if name.rpartition(".")[2] in _KEPT}
    return {
        name: _plain_metadata(path.read_text(encoding="utf-8")) if name.endswith(".json") else path.read_bytes()
        for name, path in found.items()
    }


def _plain_metadata(text: str) -> bytes:
    """What Triton knows of a kernel; of the libraries that it was linked with only the names."""
    known = json.loads(text)
    if known.get("extern_libs"):
        known["extern_libs"] = [[library, Path(path).name] for library, path in known["extern_libs"]]
    return json.dumps(known, sort_keys=True).encode()


def _group(entry: Entry) -> dict[str, str]:
    return {name: str(entry.path(name)) for name in entry.files}


# ---------------------------------------------------------------- the files that Triton makes


class _Scratch:
    """A folder that is there from its first use on; most launches compile nothing.  Threads of one compilation share
    it."""

    def __init__(self) -> None:
        self._made: tempfile.TemporaryDirectory[str] | None = None
        self._making = threading.Lock()

    @property
    def folder(self) -> Path:
        """The folder."""
        with self._making:
            if self._made is None:
                self._made = tempfile.TemporaryDirectory(prefix="spdsl-")
            return Path(self._made.name)

    def remove(self) -> None:
        """Delete it."""
        if self._made is not None:
            self._made.cleanup()


_scratch: ContextVar[_Scratch | None] = ContextVar("_scratch", default=None)
"""Where this thread's compiler puts its files, while it works for spdsl."""

_lock = threading.Lock()
_inside: list[object] = []


def _is_users(manager: Any) -> bool:
    return manager is not None and manager is not Files


@contextmanager
def files_kept() -> Iterator[None]:
    """Triton's files of this thread go through `Files`; those of other threads where they always go."""
    scratch = _Scratch()
    token = _scratch.set(scratch)
    with _lock:
        _inside.append(token)
        knobs.cache.manager_class = Files
    try:
        yield
    finally:
        _scratch.reset(token)
        with _lock:
            _inside.remove(token)
            if not _inside:
                knobs.cache.manager_class = None
        scratch.remove()


class Files(CacheManager):  # type: ignore[misc]  # triton has no types
    """Where Triton puts the file of one key: stages of a compilation into a folder that is deleted, modules that start
    kernels into the cache."""

    def __new__(cls, key: str, override: bool = False, dump: bool = False) -> Any:
        """Triton's own manager for threads that do not work for spdsl, and for its debugging aids."""
        if _scratch.get() is None or override or dump:
            return FileCacheManager(key, override, dump)
        return super().__new__(cls)

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        del override, dump
        scratch = _scratch.get()
        assert scratch is not None
        self.key, self.folder = key, scratch.folder / key

    def get_file(self, filename: str) -> str | None:
        """A module that was built before, or a stage of this compilation."""
        if _is_module(filename):
            found = store().get(self._key(filename))
            return None if found is None else str(found.path(_plain(filename)))
        path = self.folder / filename
        return str(path) if path.exists() else None

    def put(self, data: bytes | str, filename: str, binary: bool = True) -> str:
        """Keep a file; returns its path."""
        del binary
        content = data if isinstance(data, bytes) else str(data).encode()
        if _is_module(filename):
            made_by = {"triton": triton.__version__, "python": sysconfig.get_config_var("EXT_SUFFIX")}
            kept = store().made(
                self._key(filename),
                lambda: {_plain(filename): content},
                kind="launcher",
                name=_plain(filename).partition(".")[0],
                made_by=made_by,
            )
            return str(kept.path(_plain(filename)))
        self.folder.mkdir(exist_ok=True)
        path = self.folder / filename
        path.write_bytes(content)
        return str(path)

    def get_group(self, filename: str) -> dict[str, str] | None:
        """Nothing: whole kernels are found before Triton is asked."""
        del filename
        return None

    def put_group(self, filename: str, group: dict[str, str]) -> str:
        """Nothing: whole kernels are kept by `KeptCompiler`."""
        del group
        return filename

    def _key(self, filename: str) -> str:
        return digest("launcher", triton.__version__, self.key, filename)


def _is_module(filename: str) -> bool:
    return filename.endswith((".so", ".pyd", ".dylib"))


def _plain(filename: str) -> str:
    """A name that files of the cache may have."""
    return filename.lstrip("_")
