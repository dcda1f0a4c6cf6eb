"""What a first kernel needs is made ready in threads, and what fails there is met again where it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from spdsl.codegen import readiness
assert "triton" not in sys.modules
import threading
from triton.runtime import driver
class Driver:
    def get_current_target(self):
        asked.append(threading.current_thread().name)
        if {fails}:
            raise OSError("there is no C compiler")
asked = []
driver.set_active(Driver())
import jinja2
jinja2.Environment.compile = None  # templates are compiled by another process
readiness.wait("compiler")  # nothing was begun
readiness.begin()
threads = {{need: list(each) for need, each in readiness._threads.items()}}
readiness.begin()
assert readiness._threads == threads
for need in ("templates", "compiler"):
    readiness.wait(need)
    assert threads[need] and not any(each.is_alive() for each in threads[need])
assert asked == ["spdsl_driver"], asked
from spdsl.codegen.emit import environment
from spdsl.codegen.kept_templates import FIRST, all_kept
assert set(FIRST) <= {{name for _, name in environment().cache}}
assert all_kept(environment(), FIRST)
from triton.runtime.cache import triton_key
print(triton_key.cache_info().currsize)
"""


def run(cache: Path, *, fails: bool) -> str:
    words = [sys.executable, "-c", PROGRAM.format(fails=fails)]
    settings = os.environ | {"SPDSL_CACHE_DIR": str(cache)}
    return subprocess.run(words, capture_output=True, text=True, check=True, env=settings).stdout.strip()


def test_all_is_there_after_waiting(tmp_path: Path) -> None:
    assert run(tmp_path, fails=False) == "1"


def test_a_failure_is_none_yet(tmp_path: Path) -> None:
    assert run(tmp_path, fails=True) == "1"  # the others come to their end
