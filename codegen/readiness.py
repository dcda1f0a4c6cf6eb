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

_threads: dict[Need, threading.Thread] = {}
_starting = threading.Lock()


def begin() -> None:
    """Make all ready in threads, once for each process."""
    with _starting:
        if not _threads:
            for need, make in (("templates", _templates), ("compiler", _compiler)):
                thread = threading.Thread(target=_quietly, args=(make,), name=f"spdsl-{need}", daemon=True)
                _threads[need] = thread  # type: ignore[index]  # one of both
                thread.start()


def wait(need: Need) -> None:
    """Let it come to its end, if it was begun: two threads would do the same work twice."""
    thread = _threads.get(need)
    if thread is not None and thread is not threading.current_thread():
        thread.join()


def _quietly(make: Callable[[], None]) -> None:
    with suppress(Exception):
        make()


def _templates() -> None:
    from spdsl.codegen.emit import environment

    for name in ("blocks.jinja", "module.jinja", "gluon/blocks.jinja", "gluon/forward.jinja"):
        environment().get_template(name)


def _compiler() -> None:
    import triton.experimental.gluon.language.nvidia.hopper  # noqa: F401  # what all sources import
    from triton.runtime import driver
    from triton.runtime.cache import triton_key

    from spdsl.codegen.binaries import files_kept

    with files_kept():
        # The driver's own module is built, with a C compiler, when it is first asked for.
        driver.active.get_current_target()
    triton_key()
