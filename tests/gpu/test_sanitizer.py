"""Every family of kernels under NVIDIA's compute-sanitizer: no access out of bounds, no race in shared memory.

Its racecheck does not follow barriers in memory between groups of warps: of kernels with specialised warps it reports
even how Triton starts them.  Those are checked by `tests.codegen.test_races`, and here only for accesses out of bounds.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.sanitized import FAMILIES

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
SANITIZER = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"


def sanitized(tool: str, family: str) -> tuple[str, set[str]]:
    """What the tool says, and the kernels that were started, those with specialised warps marked by ``(gluon)``."""
    if not Path(SANITIZER).exists():
        pytest.skip("compute-sanitizer is not installed")
    # The kernels of torch are not ours to check, and take most of the time.
    command = [SANITIZER, "--tool", tool, "--print-limit", "10000", "--kernel-regex-exclude", "kns=at6native"]
    done = subprocess.run(
        [*command, sys.executable, "-m", "tests.gpu.sanitized", family], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    (names,) = re.findall(r"^started: (.*)$", done.stdout, re.MULTILINE)
    return done.stdout, set(names.split(", "))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_access_out_of_bounds(family: str) -> None:
    said, _ = sanitized("memcheck", family)
    assert "ERROR SUMMARY: 0 errors" in said, said[-6000:]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_race(family: str) -> None:
    said, names = sanitized("racecheck", family)
    (hazards,) = re.findall(r"RACECHECK SUMMARY: (\d+) hazard", said)
    racing = set(re.findall(r"access at (\w+)\+0x", said))
    assert bool(racing) == (int(hazards) > 0), said[:6000]
    assert racing <= {name.removesuffix(" (gluon)") for name in names if name.endswith(" (gluon)")}, said[:6000]
