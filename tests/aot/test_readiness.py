"""What a first kernel needs is made ready in threads, and what fails there is met again where it is needed."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from spdsl.codegen import readiness
assert "triton" not in sys.modules
if {fails}:
    sys.modules["triton.runtime.driver"] = None
else:
    import threading
    from triton.runtime import driver
    class Driver:
        def get_current_target(self):
            asked.append(threading.current_thread().name)
    asked = []
    driver.set_active(Driver())
readiness.wait("compiler")  # nothing was begun
readiness.begin()
threads = {{need: list(each) for need, each in readiness._threads.items()}}
readiness.begin()
assert readiness._threads == threads
for need in ("templates", "compiler"):
    readiness.wait(need)
    assert threads[need] and not any(each.is_alive() for each in threads[need])
if not {fails}:
    assert asked == ["spdsl_driver"], asked
from spdsl.codegen.emit import environment
assert "blocks.jinja" in {{name for _, name in environment().cache}}
from triton.runtime.cache import triton_key
print(triton_key.cache_info().currsize)
"""


def run(*, fails: bool) -> str:
    words = [sys.executable, "-c", PROGRAM.format(fails=fails)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def test_all_is_there_after_waiting() -> None:
    assert run(fails=False) == "1"


def test_a_failure_is_none_yet() -> None:
    assert run(fails=True) == "0"
