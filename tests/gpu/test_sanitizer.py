"""Every family of kernels under NVIDIA's compute-sanitizer: no access out of bounds, no race in shared memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.sanitized import FAMILIES

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
SANITIZER = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_is_clean(tool: str, family: str) -> None:
    if not Path(SANITIZER).exists():
        pytest.skip("compute-sanitizer is not installed")
    command = [SANITIZER, "--tool", tool, "--error-exitcode", "9", "--print-limit", "5"]
    # The kernels of torch are not ours to check, and take most of the time.
    command += ["--kernel-regex-exclude", "kns=at6native"]
    done = subprocess.run(
        [*command, sys.executable, "-m", "tests.gpu.sanitized", family], cwd=ROOT, capture_output=True, text=True
    )
    print(done.stdout[-6000:], done.stderr[-3000:])
    assert "started:" in done.stdout
    assert done.returncode == 0
