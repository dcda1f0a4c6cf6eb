"""Calls that are played from a tape, in Triton's interpreter: as good as calls that are carried out in full."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.runtime import operator, recent
from spdsl.runtime.tape import Tape
from tests.library.compare import relative_error

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

N = 70
Inputs = Callable[[int], dict[str, Tensor]]


def _documents(seed: int) -> dict[str, Tensor]:
    cuts = torch.rand(N, generator=torch.Generator().manual_seed(seed)) < 0.05
    return {"doc": cuts.cumsum(0).int()}


def _marked(seed: int) -> dict[str, Tensor]:
    return {"is_global": torch.rand(N, generator=torch.Generator().manual_seed(seed)) < 0.03}


PATTERNS: dict[str, tuple[dict[str, object], Inputs]] = {
    "sliding_window": ({"window": 20}, lambda seed: {}),
    "streaming": ({"window": 20, "sinks": 3}, lambda seed: {}),
    "dilated": ({"span": 40, "dilation": 3}, lambda seed: {}),
    "power": ({"block": 16}, lambda seed: {}),
    "bigbird": ({"block": 16}, lambda seed: {}),
    "documents": ({}, _documents),
    "longformer": ({"window": 20}, _marked),
}


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """The tapes that are played; tensors of the CPU count their changes, as those of a GPU do."""
    found: list[Tape] = []
    play = Tape.play

    def told(self: Tape, *given: Any) -> list[Tensor]:
        found.append(self)
        return play(self, *given)

    monkeypatch.setattr(Tape, "play", told)
    monkeypatch.setattr(recent, "counts", lambda tensor: True)
    return found


def tensors(seed: int, n: int = N) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, 2, n, 16), (2, 1, n, 16), (2, 1, n, 16))
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def both_ways(attn: spdsl.Attention, leaves: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    out, lse = attn(*leaves, return_lse=True, **inputs)
    return [out, lse, *torch.autograd.grad(out.square().sum() + lse.sum(), leaves)]


@pytest.mark.parametrize("again", [True, False])
def test_values_of_which_none_can_be_wrong(again: bool, played: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of later calls are not looked at; the first call of a kind checks its own."""
    looked: list[object] = []
    monkeypatch.setattr(operator, "check_values", lambda *given: (looked.append(given), again)[1])
    attn = spdsl.compile("documents", backend="triton")
    with torch.no_grad():
        for seed in range(3):
            attn(*tensors(0), **_documents(seed))
    assert len(played) == 2
    assert len(looked) == (2 if again else 1)


@pytest.mark.parametrize("name", PATTERNS)
def test_other_numbers(name: str, played: list[Tape]) -> None:
    """Output, LSE and gradients of a played call are those of one that is carried out."""
    parameters, inputs = PATTERNS[name]
    attn = spdsl.compile(name, backend="triton", **parameters)
    both_ways(attn, tensors(0), inputs(0))
    assert not played
    for seed, marks in ((1, 0), (2, 3)):
        fresh = spdsl.compile(name, backend="triton", **parameters)
        expected, before = both_ways(fresh, tensors(seed), inputs(marks)), len(played)
        found = both_ways(attn, tensors(seed), inputs(marks))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        if name != "longformer":  # whose tables are other ones, so that their lists are
            assert len(played) == before + 2


def test_one_table_in_many_calls(played: list[Tape]) -> None:
    attn = spdsl.compile("longformer", backend="triton", window=20)
    given = _marked(0)
    for seed in range(3):
        leaves = tensors(seed)
        found = both_ways(attn, leaves, given)
        expected = attn.reference(*leaves, **given)
        torch.testing.assert_close(found[0].double(), expected, rtol=1e-4, atol=1e-5)
    assert len(played) == 4


GIVEN = """pattern given() {
  axis blk = token by 16
  input chosen: bool[g, q, k.blk]
  keep causal and chosen
}
"""


def test_picks_of_every_call(played: list[Tape]) -> None:
    """Lists are made again of other picks; backward as well (`tests/gpu/test_picks.py` has more)."""
    attn = spdsl.compile(spdsl.loads(GIVEN), backend="triton")
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        leaves = [torch.randn(1, 2, 40, 16, generator=generator).requires_grad_()]
        leaves += [torch.randn(1, 1, 40, 16, generator=generator).requires_grad_() for _ in "kv"]
        some = torch.rand(1, 1, 40, 3, generator=generator).argsort(-1).int()[..., :2].sort(-1).values
        found = both_ways(attn, leaves, {"chosen": some})
        keep = torch.zeros(40, 3, dtype=torch.bool).scatter_(-1, some[0, 0].long(), value=True)
        expected = attn.reference(*leaves, chosen=keep[None])
        torch.testing.assert_close(found[0].double(), expected, rtol=1e-4, atol=1e-5)
    assert len(played) == 4


def test_a_table_that_changes_in_place(played: list[Tape]) -> None:
    attn, given = spdsl.compile("longformer", backend="triton", window=20), _marked(0)
    leaves = [each.detach() for each in tensors(0)]
    for seed in (1, 2, 1):
        given["is_global"].copy_(_marked(seed)["is_global"])
        found, again = attn(*leaves, **given), attn(*leaves, **given)
        expected = attn.reference(*leaves, **given)
        assert torch.equal(found, again)  # type: ignore[arg-type]
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]
    assert len(played) == 3


def test_one_tensor_in_two_places(played: list[Tape]) -> None:
    """What is the same tensor in the first call need not be in the next."""
    attn = spdsl.compile("sliding_window", backend="triton", window=20)
    (a, _, _), (_, b, c) = tensors(0), tensors(1)
    q, k, v = a[:, :1].detach().contiguous(), b.detach(), c.detach()
    attn(q, q, q)
    expected = spdsl.compile("sliding_window", backend="triton", window=20)(q, k, v)
    assert torch.equal(attn(q, k, v), expected)  # type: ignore[arg-type]
    assert len(played) == 1


def test_places_for_each_sequence(played: list[Tape]) -> None:
    attn = spdsl.compile("sliding_window", backend="triton", window=20)
    for lengths in ([70, 31], [12, 70]):
        leaves, k_len = tensors(0), torch.tensor(lengths, dtype=torch.int32)
        out = attn(*leaves, k_len=k_len, q_start=0)
        expected = attn.reference(*leaves, k_len=k_len, q_start=0)
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]
        torch.autograd.grad(out.sum(), leaves)  # type: ignore[union-attr]
    assert len(played) == 2


@pytest.mark.parametrize("change", ["strides", "length", "type", "padding", "gradient of the sum"])
def test_other_kinds_are_carried_out(change: str, played: list[Tape]) -> None:
    attn = spdsl.compile("streaming", backend="triton", window=20, sinks=3)
    both_ways(attn, tensors(0), {})
    leaves = tensors(1, n=69 if change == "length" else N)
    if change == "strides":
        leaves = [each.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for each in leaves]
    if change == "type":
        leaves = [each.detach().half().requires_grad_() for each in leaves]
    if change == "padding":
        leaves = [torch.nn.functional.pad(each.detach(), (1, 0))[..., 1:].requires_grad_() for each in leaves]
    if change == "gradient of the sum":
        out = attn(*leaves)
        found = torch.autograd.grad(out.sum(), leaves)  # type: ignore[union-attr]
        fresh = spdsl.compile("streaming", backend="triton", window=20, sinks=3)(*leaves)
        expected = torch.autograd.grad(fresh.sum(), leaves)  # type: ignore[union-attr]
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert len(played) == 1
        return
    found = both_ways(attn, leaves, {})
    expected = attn.reference(*leaves)
    assert relative_error(found[0], expected) < (2e-3 if change == "type" else 1e-5)
    assert not played


GROWING: dict[str, dict[str, object]] = {
    "streaming": {"window": 20, "sinks": 3},
    "dilated": {"span": 40, "dilation": 3},
    "strided": {"local": 8, "stride": 16},
}


@pytest.mark.parametrize(("name", "padding"), [*((name, False) for name in GROWING), ("streaming", True)])
def test_a_growing_cache(name: str, padding: bool, played: list[Tape]) -> None:
    """One query after more and more tokens: as an attention computes it that has seen no other length."""
    attn = spdsl.compile(name, backend="triton", **GROWING[name])
    q, k, v = (each.detach() for each in tensors(0, 180))
    more = {"k_start": torch.tensor([0, 9], dtype=torch.int32)} if padding else {}
    lengths = (135, 136, 160)
    for n in lengths:
        given = q[:, :, n - 1 : n], k[:, :, :n].contiguous(), v[:, :, :n]
        found = attn(*given, return_lse=True, **more)
        before = len(played)
        expected = spdsl.compile(name, backend="triton", **GROWING[name])(*given, return_lse=True, **more)
        assert len(played) == before
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert len(played) == len(lengths) - 1
