"""Few blocks of no constant length that queries have picked, and sums up to each query, in Triton's interpreter.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.runtime import graphs
from spdsl.runtime import uneven_picks as runtime
from spdsl.runtime.members_joined import joined_members
from spdsl.runtime.prefix_kernels import up_to_each
from tests.library.compare import relative_error

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

TABLE = """pattern pieces() {
  input piece: int[token] sorted
  axis pc = token by piece
  let chosen = score(Q, mean(K, per = k.pc)) |> sum(per = g) |> only(any(k <= 40, per = k.pc)) |> top(3)
  let out = attend { keep q - k < 30 and chosen and k >= 5 }
  return 2.0 * out
}
"""

EQUAL = """pattern equal() {
  axis bin = token into 7
  input estimate: float[h, q, k.bin]
  keep causal and (estimate |> only(k.bin.first <= q) |> top(2))
}
"""


@pytest.mark.parametrize(
    ("name", "batch", "heads", "groups", "n", "nq", "size"),
    [
        pytest.param("sea", 2, 2, 2, 70, 70, 16, marks=pytest.mark.slow),
        pytest.param("table", 1, 4, 2, 61, 45, 16, marks=pytest.mark.slow),
        ("sea", 1, 2, 1, 24, 20, 16),
        pytest.param("equal", 1, 4, 1, 50, 50, 24, marks=pytest.mark.slow),
        pytest.param("sea", 1, 2, 1, 45, 20, 24, marks=pytest.mark.slow),
    ],
)
def test_output_and_gradients(
    name: str, batch: int, heads: int, groups: int, n: int, nq: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(n)
    q = torch.randn(batch, heads, nq, size, generator=generator)
    k, v = torch.randn(2, batch, groups, n, size, generator=generator)
    pattern, parameters = (name, {"bins": 9, "picks": n}) if name == "sea" else (None, {})
    inputs: dict[str, Tensor] = {
        "sea": {"estimate": torch.rand(heads, nq, 9, generator=generator), "gain": torch.rand(heads, nq)},
        "equal": {"estimate": torch.rand(heads, nq, 7, generator=generator).masked_fill(torch.rand(nq, 1) < 0.1, -1)},
        "table": {"piece": (torch.arange(n) % 13 == 5).cumsum(0).int() * 2},
    }[name]
    text = {"equal": EQUAL, "table": TABLE}.get(name)
    program: Any = pattern if text is None else spdsl.loads(text)
    attn = spdsl.compile(program, backend="triton", **parameters)  # type: ignore[arg-type]
    made: list[object] = []
    kernels = runtime.attended_picks

    def noted(*arguments: Any) -> object:
        made.append(kernels(*arguments))
        return made[-1]

    monkeypatch.setattr(graphs, "attended_picks", noted)
    leaves = [each.requires_grad_() for each in (q, k, v)]
    d_out = torch.randn(batch, heads, nq, size, generator=generator)
    out, expected = attn(*leaves, **inputs), attn.reference(*leaves, **inputs)
    assert isinstance(out, Tensor)
    assert isinstance(expected, Tensor)
    assert len(made) == 1
    assert made[0] is not None
    found = torch.autograd.grad(out, leaves, d_out)
    wanted = torch.autograd.grad(expected, leaves, d_out.double())
    assert relative_error(out, expected) <= 1e-5
    for one, other in zip(found, wanted, strict=True):
        assert relative_error(one, other) <= 2e-5
    with torch.no_grad():
        assert relative_error(attn(*leaves, **inputs), expected) <= 1e-5  # type: ignore[arg-type]


def test_members_together() -> None:
    """One softmax over the keys of all members, with gradients of output and LSE; what is empty is not looked at."""
    generator = torch.Generator().manual_seed(1)
    parts = torch.randn(1, 2, 3, 37, 5, generator=generator, dtype=torch.float64)
    logs = torch.randn(1, 2, 3, 37, generator=generator, dtype=torch.float64)
    logs = torch.where(torch.rand(logs.shape, generator=generator) < 0.3, -torch.inf, logs)
    logs[:, :, :, 4] = -torch.inf
    poisoned = torch.where((logs > -torch.inf)[..., None], parts, torch.nan).float().requires_grad_()
    given = logs.float().requires_grad_()
    out, lse = joined_members(poisoned, given)
    parts, logs = parts.requires_grad_(), logs.requires_grad_()
    largest = logs.detach().amax(2, keepdim=True).clamp(min=-1e30)
    weights = (logs - largest).exp()
    total = weights.sum(2)
    whole = (weights[..., None] * parts).sum(2) / torch.where(total == 0, 1.0, total)[..., None]
    log = torch.where(total == 0, -torch.inf, largest[:, :, 0] + torch.where(total == 0, 1.0, total).log())
    assert relative_error(out, whole) <= 1e-6
    assert torch.allclose(lse.double(), log, atol=1e-6)
    d_out = torch.randn(whole.shape, generator=generator)
    d_lse = torch.where(log > -torch.inf, torch.randn(log.shape, generator=generator).double(), 0.0)
    found = torch.autograd.grad((out, lse), (poisoned, given), (d_out, d_lse.float()))
    there = (logs > -torch.inf).detach()
    seen = torch.where(log > -torch.inf, log, 0.0)
    wanted = torch.autograd.grad((whole, seen), (parts, logs), (d_out.double(), d_lse))
    assert relative_error(found[0][there], wanted[0][there]) <= 1e-6
    assert relative_error(found[1][there], wanted[1][there]) <= 1e-6


@pytest.mark.parametrize(
    ("n", "width", "mean"),
    [pytest.param(200, 16, True, marks=pytest.mark.slow), (1, 5, False), (130, 70, False), (0, 16, True)],
)
def test_up_to_each(n: int, width: int, mean: bool) -> None:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(2, n, 3, width, generator=generator).transpose(1, 2)
    found = up_to_each(x, mean=mean)
    wanted = x.double().cumsum(2)
    if mean:
        wanted = wanted / torch.arange(1, n + 1)[:, None]
    assert torch.equal(found[:, :, 0], torch.zeros(2, 3, width))
    assert torch.allclose(found[:, :, 1:].double(), wanted, atol=1e-5)
