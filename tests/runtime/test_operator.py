"""The torch operators: torch's own checks, compilation of whole graphs, export, gradients asked for one by one."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.runtime import operator


def _tensors(requires_grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, 40, 16, generator=generator)
    k, v = (torch.randn(1, 2, 40, 16, generator=generator) for _ in range(2))
    return tuple(each.requires_grad_(requires_grad) for each in (q, k, v))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "checks", ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static"]
)
@pytest.mark.parametrize("name", ["alibi", "streaming"])
def test_opcheck(name: str, checks: str) -> None:
    attn = spdsl.compile(name)
    q, k, v = _tensors()
    tables = [torch.rand(4, requires_grad=True)] if name == "alibi" else []
    arguments = (q, k, v, tables, None, attn._open_key, "square", 0, list(attn._values))
    torch.library.opcheck(operator.attend, arguments, test_utils=checks)


def test_whole_graph_is_compiled() -> None:
    attn = spdsl.compile("streaming", window=8, sinks=2)
    q, k, v = _tensors()

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.nn.functional.gelu(attn(q * 2, k, v)).sum()  # type: ignore[arg-type]

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(q, k, v), (q, k, v))
    found = torch.autograd.grad(compiled(q, k, v), (q, k, v))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_export_loads_elsewhere(tmp_path) -> None:  # type: ignore[no-untyped-def]
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = spdsl.compile("sliding_window", window=8)

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attn(q, k, v)  # type: ignore[return-value]

    tensors = _tensors(requires_grad=False)
    program = torch.export.export(Module(), tensors)
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    torch.testing.assert_close(loaded(*tensors), Module()(*tensors))


@pytest.mark.slow
def test_export_loads_in_another_process(tmp_path) -> None:  # type: ignore[no-untyped-def]
    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = spdsl.compile("streaming", window=8, sinks=2)

        def forward(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
            return self.attn(q, k, v, k_len=lengths)  # type: ignore[return-value]

    q, k, v = _tensors(requires_grad=False)
    given = (q[:, :, :1], k, v, torch.tensor([17], dtype=torch.int32))
    torch.export.save(torch.export.export(Step(), given), tmp_path / "step.pt2")
    torch.save((given, Step()(*given)), tmp_path / "step.pt")
    program = """
import spdsl.api, sys, torch
given, expected = torch.load(sys.argv[2])
found = torch.export.load(sys.argv[1]).module()(*given)
torch.testing.assert_close(found, expected)
given[3].fill_(30)
assert not torch.equal(torch.export.load(sys.argv[1]).module()(*given), expected)
"""
    words = [sys.executable, "-c", program, str(tmp_path / "step.pt2"), str(tmp_path / "step.pt")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_gradients_asked_for_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    attn = spdsl.compile("alibi")
    q, k, v = _tensors(requires_grad=False)
    slope = torch.rand(4, requires_grad=True)
    seen: list[list[int]] = []
    real = operator.backward

    def spy(*arguments: Any) -> list[Tensor]:
        seen.append(list(arguments[-2]))
        return real(*arguments)

    monkeypatch.setattr(operator, "backward", spy)
    attn(q, k, v, slope=slope).sum().backward()  # type: ignore[union-attr]
    assert seen == [[3]]
    assert slope.grad is not None
    assert slope.grad.shape == (4,)


def test_the_gradient_of_lse_alone() -> None:
    attn = spdsl.compile("causal")
    q, k, v = _tensors()
    _, lse = attn(q, k, v, return_lse=True)
    _, expected = attn.reference(q, k, v, return_lse=True)
    found = torch.autograd.grad(lse.sum(), (q, k))
    wanted = torch.autograd.grad(expected.sum(), (q, k))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-5)


def test_autocast_computes_in_its_type() -> None:
    attn = spdsl.compile("causal")
    q, k, v = _tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attn(q, k, v).dtype == torch.bfloat16  # type: ignore[union-attr]


def test_selections_under_autocast_are_those_of_its_type() -> None:
    """Scores are as exact as those of tensors in that type."""
    attn = spdsl.compile(
        spdsl.loads("""pattern picky() {
          axis blk = token by 8
          let scores = score(Q, mean(K, per = k.blk)) |> only(k.blk.last <= q)
          export shares = scores |> softmax
          keep causal and (scores |> top(3))
        }""")
    )
    q, k, v = torch.randn(3, 4, 4, 256, 16, generator=torch.Generator().manual_seed(0))
    own = [x.bfloat16() for x in (q, k, v)]
    out, shares = attn(*own), attn.exports(*own)["shares"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attn(q, k, v), out)  # type: ignore[arg-type]
        assert torch.equal(attn.exports(*own)["shares"], shares)
