"""What calls of patterns with stages launch is told without a GPU: all of it, and as a run tells it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import spdsl
from spdsl.ahead import Wanted, carried_out
from spdsl.analysis.candidates import SHARED_BYTES
from spdsl.codegen.asked import Asked, AskedKernel
from spdsl.runtime.absent import AbsentGpu, standing_in
from spdsl.runtime.numbers import Assumed
from spdsl.runtime.split import INTERPRETER
from spdsl.samples import Sizes

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted")

ROOT = Path(__file__).parents[2]
SIZES = Sizes(batch=2, heads=2, groups=1, nq=80, n=80, head_dim=16)
SMALL: dict[str, dict[str, Any]] = {
    "quest": {"page": 16, "budget": 64},
    "moba": {"block": 32, "picks": 3},
    "nsa": {"compress": 8, "stride": 4, "block": 16, "picks": 3, "window": 32},
    "infllm_v2": {"compress": 8, "stride": 4, "block": 16, "picks": 4, "window": 32, "dense": 32},
}
"""Patterns whose kernels are the same in the interpreter, which does not split vectors of 32 bits into terms."""

RUN = """
import json, sys
import torch, spdsl
from spdsl.runtime import launch, plain
told = []
def tell(name, values):
    told.append([name, {n: v for n, v in values.items() if type(v) in (int, bool, str)},
                 {n: str(v.dtype) for n, v in values.items() if isinstance(v, torch.Tensor)}])
start, run = plain._start, launch.Loaded._run
def noted(given):
    tell(given.function.fn.__name__, given.values)
    return start(given)
def noted_run(self, kernel, grid, given, stages, device):
    tell(kernel.name, given)
    return run(self, kernel, grid, given, stages, device)
plain._start, launch.Loaded._run = noted, noted_run
name, parameters, sizes = json.loads(sys.argv[1])
batch, heads, groups, n, dim = sizes
generator = torch.Generator().manual_seed(0)
def like(count): return torch.randn(batch, count, n, dim, generator=generator).to(torch.float16).requires_grad_()
q, k, v = like(heads), like(groups), like(groups)
inputs = {"gate": torch.rand(3, heads, n, generator=generator, requires_grad=True)} if name == "nsa" else {}
attention = spdsl.compile(name, backend="triton", **parameters)
with torch.no_grad():
    attention(q, k, v, **inputs)
out = attention(q, k, v, **inputs)
torch.autograd.grad(out, [q, k, v, *inputs.values()], torch.ones_like(out))
print(json.dumps(told))
"""


def asked_for(name: str, parameters: Mapping[str, Any], multiprocessors: int = 132) -> list[AskedKernel]:
    """What calls of a pattern ask for on a GPU with kernels like those that are interpreted; nothing is compiled."""
    gpu = AbsentGpu(name="NVIDIA B200", target="sm_100", multiprocessors=multiprocessors)
    gate = {"gate": torch.empty(3, SIZES.heads, SIZES.nq, device="meta")} if name == "nsa" else {}
    wanted = Wanted(
        attention=spdsl.compile(name, **parameters),
        sizes=SIZES,
        value_dim=SIZES.head_dim,
        dtype=torch.float16,
        inputs=gate,
        backward=True,
    )
    asked = Asked(room=SHARED_BYTES["sm_100"], device=gpu.place)
    for number in (32, 33):
        carried_out(wanted, gpu, asked, Assumed(number=number))
    return list(asked.kernels.values())


def constants_of(kernel: AskedKernel) -> dict[str, Any]:
    names = kernel.source.fn.arg_names
    return {names[path[0]]: value for path, value in kernel.source.constants.items() if len(path) == 1}


def serves(kernel: AskedKernel, name: str, numbers: Mapping[str, Any], tensors: Mapping[str, str]) -> bool:
    """Whether a launch with these arguments would take this kernel."""
    if kernel.source.name != name:
        return False
    types = {"torch.bfloat16": "*bf16", "torch.float32": "*fp32", "torch.int32": "*i32", "torch.int64": "*i64"}
    types |= {"torch.float64": "*fp64", "torch.uint8": "*u8", "torch.bool": "*i1", "torch.float16": "*fp16"}
    signature, names = kernel.source.signature, kernel.source.fn.arg_names
    even = {names[path[0]] for path, told in kernel.source.attrs.items() if told}
    constants = constants_of(kernel)
    for argument, value in numbers.items():
        if argument in constants:
            if constants[argument] != value:
                return False
        elif argument in even and value % 16:
            return False
    return all(signature[argument] == types[dtype] for argument, dtype in tensors.items() if argument in signature)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_what_is_interpreted_was_asked_for(name: str) -> None:
    """A call whose kernels run, in Triton's interpreter, launches none that the call without a GPU did not ask for."""
    given = json.dumps([name, SMALL[name], [SIZES.batch, SIZES.heads, SIZES.groups, SIZES.n, SIZES.head_dim]])
    words = [sys.executable, "-c", RUN, given]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env=environment, timeout=300)
    launched = json.loads(done.stdout)
    asked = asked_for(name, SMALL[name], INTERPRETER)
    assert len(launched) > 5
    for kernel, numbers, tensors in launched:
        assert any(serves(each, kernel, numbers, tensors) for each in asked), (kernel, numbers, tensors)


@pytest.mark.parametrize("name", ["quest", pytest.param("nsa", marks=pytest.mark.slow)])
def test_calls_ask_for_the_tiles_of_their_softmaxes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tuned is what a call on a GPU asks for: the same kinds of calls."""
    from spdsl import prepare
    from spdsl.runtime.graphs import noting_parts
    from spdsl.stage_tuning import situation_of_part

    wanted: list[str] = []
    tiles_for = prepare.tiles_for
    monkeypatch.setattr(prepare, "tiles_for", lambda asked: wanted.append(asked.identity) or tiles_for(asked))  # type: ignore[func-returns-value]
    gpu = AbsentGpu(name="NVIDIA H100 80GB", target="sm_90", multiprocessors=132)
    attention = spdsl.compile(name, **SMALL[name])
    asked = Asked(room=SHARED_BYTES["sm_90"], device=gpu.place)
    with standing_in(gpu, "a call", asked, Assumed(number=32)) as device, noting_parts() as parts:

        def like(heads: int) -> torch.Tensor:
            return torch.empty(1, heads, SIZES.n, SIZES.head_dim, dtype=torch.float16, device=device)

        gate = {"gate": torch.empty(3, SIZES.heads, SIZES.n, device=device)} if name == "nsa" else {}
        attention(like(2), like(1), like(1), **gate)
        tuned = [situation_of_part(each).identity for each in parts.values()]
    assert len(tuned) == (3 if name == "nsa" else 1)
    assert set(wanted) == set(tuned)
