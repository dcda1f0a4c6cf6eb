"""What Triton needs before it compiles its first kernel, made ready beside the search for a plan.

A process without a plan waits for isl, and one without kernels for a C compiler and for the hash of Triton's own
library; here the latter happens while the former is awaited.  Whatever fails here is met again, and reported, where it
is needed.
"""

from __future__ import annotations

import threading
from contextlib import suppress

_thread: threading.Thread | None = None
_starting = threading.Lock()


def begin() -> None:
    """Make ready in a thread, once for each process."""
    global _thread
    with _starting:
        if _thread is None:
            _thread = threading.Thread(target=_make_ready, name="spdsl-readiness", daemon=True)
            _thread.start()


def wait() -> None:
    """Let it come to its end, if it was begun: two threads would do the same work twice."""
    thread = _thread
    if thread is not None and thread is not threading.current_thread():
        thread.join()


def _make_ready() -> None:
    with suppress(Exception):
        import triton.experimental.gluon.language.nvidia.hopper  # noqa: F401  # what all sources import
        from triton.runtime import driver
        from triton.runtime.cache import triton_key

        from spdsl.codegen.binaries import files_kept

        with files_kept():
            # The driver's own module is built, with a C compiler, when it is first asked for.
            driver.active.get_current_target()
        triton_key()
