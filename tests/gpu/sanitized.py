"""One family of kernels, forward and backward, run twice: what `test_sanitizer` runs under compute-sanitizer.

    python -m tests.gpu.sanitized FAMILY

Prints the names of the kernels that were started.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import spdsl
from spdsl.codegen.blocks import Kernel
from spdsl.runtime.calls import Call
from spdsl.runtime.launch import Loaded

N = 700
SIZE = (1, 4, 2)
"""Sequences, heads, groups."""

TRAINED = """pattern trained() {
  input slope: float[h]
  keep causal
  bias slope[h] * (k - q)
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A pattern whose kernels walk in one way."""

    pattern: str
    parameters: dict[str, object] = field(default_factory=dict)
    inputs: Callable[[], dict[str, Tensor]] = dict
    dim: int = 128
    dtype: torch.dtype = torch.bfloat16
    deterministic: bool = False


def _documents() -> dict[str, Tensor]:
    return {"doc": torch.arange(N, device="cuda") // 97}


def _globals() -> dict[str, Tensor]:
    return {"is_global": torch.arange(N, device="cuda") % 150 == 0}


def _slopes() -> dict[str, Tensor]:
    return {"slope": torch.linspace(0.01, 0.5, SIZE[1], device="cuda").requires_grad_()}


FAMILIES: dict[str, Family] = {
    "slots": Family(pattern="causal"),
    "slots-64": Family(pattern="sliding_window", parameters={"window": 100}, dim=64),
    "slots-fp32": Family(pattern="causal", dtype=torch.float32, dim=64),
    "slots-deterministic": Family(pattern="sliding_window", parameters={"window": 100}, deterministic=True),
    "parts": Family(pattern="streaming", parameters={"sinks": 64, "window": 100}),
    "intervals": Family(pattern="documents", inputs=_documents),
    "lists": Family(pattern="bigbird"),
    "lists-deterministic": Family(pattern="bigbird", deterministic=True, dim=64),
    "distances": Family(pattern="power", parameters={"block": 64}),
    "residues": Family(pattern="dilated", parameters={"span": 200}),
    "union": Family(pattern="strided", parameters={"local": 20, "stride": 16}),
    "marks": Family(pattern="longformer", parameters={"window": 60}, inputs=_globals),
    "boxes": Family(pattern="neighborhood_2d", parameters={"extents": (20, 35), "window": (9, 13)}),
    "table-gradients": Family(pattern=TRAINED, inputs=_slopes, dim=64),
}


def main(name: str) -> None:
    """Run a family and print the kernels it started."""
    family = FAMILIES[name]
    started: list[str] = []
    start = Loaded._start

    def noted(self: Loaded, call: Call, kernel: Kernel, *rest: object) -> None:
        started.append(f"{kernel.name}{' (gluon)' if kernel.fetch is not None else ''}")
        start(self, call, kernel, *rest)  # type: ignore[arg-type]

    Loaded._start = noted  # type: ignore[method-assign, assignment]
    pattern = spdsl.loads(family.pattern) if family.pattern.startswith("pattern") else family.pattern
    attn = spdsl.compile(pattern, deterministic=family.deterministic, **family.parameters)
    batch, heads, groups = SIZE
    torch.manual_seed(0)
    shapes = ((batch, heads, N, family.dim), *2 * ((batch, groups, N, family.dim),))
    leaves = [torch.randn(shape, device="cuda", dtype=family.dtype, requires_grad=True) for shape in shapes]
    inputs = family.inputs()
    trained = [value for value in inputs.values() if value.requires_grad]
    for _ in range(2):
        out, lse = attn(*leaves, return_lse=True, **inputs)
        torch.autograd.grad((out, lse), [*leaves, *trained], (torch.ones_like(out), torch.ones_like(lse)))
    torch.cuda.synchronize()
    print("started:", ", ".join(dict.fromkeys(started)))


if __name__ == "__main__":
    main(sys.argv[1])
