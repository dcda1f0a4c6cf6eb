"""Kernels built without a look at the GPU are those that calls launch: nothing is compiled, and results are right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
SIZES = ("-n", "1024", "--heads", "4", "--groups", "2", "--head-dim", "64")

SERVED = """
import torch, triton
def refuse(*given, **named):
    raise AssertionError("compiled anew")
triton.compile = refuse
from triton.runtime import build
build._build = refuse
from loader import attention
torch.manual_seed(0)
def like(heads):
    return torch.randn(1, heads, 1024, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
q, k, v = like(4), like(2), like(2)
inputs = {name: torch.rand(3, 4, 1024, device="cuda", requires_grad=True) for name in attention.pattern.inputs}
leaves = [q, k, v, *inputs.values()]
with torch.no_grad():
    plain = attention(q, k, v, **inputs)
for _ in range(3):
    out = attention(q, k, v, **inputs)
    found = torch.autograd.grad(out, leaves, torch.ones_like(out))
assert torch.equal(plain, out)
exact = [each.detach().double().requires_grad_() for each in leaves]
expected = attention.reference(*exact[:3], **dict(zip(inputs, exact[3:])))
wanted = torch.autograd.grad(expected, exact, torch.ones_like(expected))
for ours, theirs in zip((out, *found), (expected, *wanted)):
    print(float((ours.double() - theirs).norm() / theirs.norm()))
"""


@pytest.mark.parametrize("name", ["quest", "nsa", "moba", "infllm_v2", "llsa", "flashprefill"])
def test_calls_compile_nothing(tmp_path: Path, name: str) -> None:
    parameters = {"infllm_v2": ("-p", "dense=256", "-p", "picks=4"), "moba": ("-p", "block=64")}.get(name, ())
    command = [sys.executable, "-m", "spdsl", "compile", name, "-o", str(tmp_path / "out"), *SIZES, *parameters]
    gpu = torch.cuda.get_device_name()
    environment = os.environ | {"SPDSL_CACHE_DIR": str(tmp_path / "builder"), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*command, "--gpu", gpu], env=environment, check=True, cwd=ROOT, capture_output=True, timeout=300)
    paths = [str(ROOT), str(tmp_path / "out"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "SPDSL_CACHE_DIR": str(tmp_path / "runner")}
    done = subprocess.run(
        [sys.executable, "-c", SERVED], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    errors = [float(line) for line in done.stdout.split()]
    assert errors[0] < 1e-2
    assert all(each < 2e-2 for each in errors[1:]), errors
