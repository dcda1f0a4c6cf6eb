"""What a first kernel needs before it can be written and compiled, made ready beside the search for a plan.

A process without a plan waits for isl, one without kernels for a C compiler, for the hash of Triton's own library and
for the templates to be compiled; here the latter happens while the former is awaited.  Whatever fails here is met
again, and reported, where it is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, TypeAlias

Need: TypeAlias = Literal["compiler", "templates"]

_threads: dict[Need, list[threading.Thread]] = {}
_starting = threading.Lock()


def begin() -> None:
    """Make all ready in threads, once for each process.

    Triton is imported before, by the caller: its modules import each other, and threads that import them at the same
    time meet some that are not complete.
    """
    with _starting:
        if _threads:
            return
        _start("templates", _templates)
        _quietly(_language)
        _start("compiler", _driver)
        _start("compiler", _library)


def get_ready() -> None:
    """Make ready what compiling needs, and no device, before this returns."""
    for make in (_language, _library, _templates):
        _quietly(make)


def _start(need: Need, make: Callable[[], None]) -> None:
    thread = threading.Thread(target=_quietly, args=(make,), name=f"spdsl{make.__name__}", daemon=True)
    _threads.setdefault(need, []).append(thread)
    thread.start()


def wait(need: Need) -> None:
    """Let it come to its end, if it was begun: two threads would do the same work twice."""
    for thread in _threads.get(need, ()):
        if thread is not threading.current_thread():
            thread.join()


def _quietly(make: Callable[[], None]) -> None:
    with suppress(Exception):
        make()


def _templates() -> None:
    from spdsl.codegen import kept_templates
    from spdsl.codegen.emit import environment

    if not kept_templates.all_kept(environment(), kept_templates.FIRST):
        kept_templates.compile_aside()
    for name in kept_templates.FIRST:
        environment().get_template(name)


def _language() -> None:
    import triton.experimental.gluon.language.nvidia.hopper  # noqa: F401  # what all sources import


def _driver() -> None:
    from triton.runtime import driver

    from spdsl.codegen.binaries import files_kept

    with files_kept():
        # The driver's own module is built, with a C compiler, when it is first asked for.
        driver.active.get_current_target()


def _library() -> None:
    from triton.runtime.cache import triton_key

    triton_key()  # the hash of half a gigabyte
