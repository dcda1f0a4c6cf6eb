"""Calls of patterns with stages whose steps are repeated, in Triton's interpreter: the numbers of calls that are not.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl import staged
from spdsl.runtime import graphs, lists, recent, repeated
from spdsl.runtime.ranking import FAR
from spdsl.runtime.whole_calls import WholeCalls
from tests.library.compare import relative_error

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

GATED = """pattern gated() {
  input gate: float[h, q]
  axis blk = token by 16
  let chosen = score(mean(Q, per = q.blk), mean(K, per = k.blk)) |> top(2)
  let some = attend { keep chosen }
  return gate * some
}
"""

LISTED = """pattern listed() {
  axis blk = token by 16
  input gate: float[h, q]
  input chosen: bool[g, q, k.blk]
  let coarse = attend(Q, mean(K, per = k.blk), mean(V, per = k.blk)) { keep k.blk.last <= q }
  let fine = attend { keep causal and chosen }
  return gate * fine + coarse
}
"""


def compiled(name: str) -> spdsl.Attention:
    if name == "llsa":
        return spdsl.compile(name, backend="triton", block=16, picks=(2, 1))
    return spdsl.compile(spdsl.loads(GATED), backend="triton")


def tensors(name: str, seed: int, *, trained: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = 265 if name == "llsa" else 75
    made = [torch.randn(1, 1, size, 16, generator=generator).half() for _ in range(3)]
    made += [torch.rand(1, size, generator=generator)] if name == "gated" else []
    return [each.requires_grad_(trained) for each in made]


def call(attn: spdsl.Attention, given: list[Tensor]) -> Tensor:
    inputs = {"gate": given[3]} if len(given) > 3 else {}
    found = attn(*given[:3], **inputs)
    assert isinstance(found, Tensor)
    return found


def forget(attn: spdsl.Attention) -> spdsl.Attention:
    """A pattern whose next call repeats nothing."""
    attn._direct._whole.clear()
    repeated._steps.entries.clear()
    repeated._sights.entries.clear()
    graphs._direct.cache_clear()
    return attn


def kinds(attn: spdsl.Attention) -> list[WholeCalls]:
    return list(attn._direct._whole.values())


@pytest.fixture
def carried_out(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One element for each call that is carried out as it is."""
    found: list[str] = []
    attend = staged.attend
    monkeypatch.setattr(staged, "attend", lambda *given: (found.append(given[5]), attend(*given))[1])
    return found


def test_a_call_that_is_repeated(carried_out: list[str]) -> None:
    name = "gated"
    attn, other = compiled(name), compiled(name)
    with torch.no_grad():
        for seed in range(3):
            given = tensors(name, seed, trained=False)
            assert torch.equal(call(attn, given), call(forget(other), given))
    assert len(carried_out) == 2 + 3
    assert kinds(attn)[0].ways is not None


@pytest.mark.parametrize("name", ["gated", pytest.param("llsa", marks=pytest.mark.slow)])
def test_gradients_that_are_repeated(name: str, carried_out: list[str]) -> None:
    attn, other = compiled(name), compiled(name)
    for seed in range(3):
        given = tensors(name, seed, trained=True)
        d_out = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(seed)).half()
        found = torch.autograd.grad(call(attn, given), given, d_out)
        fresh = torch.autograd.grad(call(forget(other), given), given, d_out)
        for one, two in zip(found, fresh, strict=True):
            assert torch.equal(one, two)
    assert len(carried_out) == 2 + 3
    (kind,) = kinds(attn)
    assert kind.ways is not None
    assert kind.ways[0].backward is not None


def test_a_backward_unlike_the_one_that_was_watched(carried_out: list[str]) -> None:
    """It carries the call out again; of the next calls one is watched anew."""
    attn, other = compiled("gated"), compiled("gated")
    for seed, strided in enumerate((False, False, False, True, True, True, True)):
        given = tensors("gated", seed, trained=True)
        d_out = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(seed)).half()
        d_out = d_out.transpose(2, 3).contiguous().transpose(2, 3) if strided else d_out
        found = torch.autograd.grad(call(attn, given), given, d_out)
        fresh = torch.autograd.grad(call(forget(other), given), given, d_out)
        for one, two in zip(found, fresh, strict=True):
            assert torch.equal(one, two)
    # As it is, watched, repeated, repeated and once more, as it is, watched, repeated; and seven for the comparison.
    assert len(carried_out) == 1 + 1 + 0 + 1 + 1 + 1 + 0 + 7


def test_gradients_twice_and_of_gradients() -> None:
    attn = compiled("gated")
    for seed in range(3):
        given = tensors("gated", seed, trained=True)
        out = call(attn, given)
        one, two = (torch.autograd.grad(out, given, torch.ones_like(out), retain_graph=True) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        with pytest.raises(spdsl.SpatError, match="SP349"):
            torch.autograd.grad(out, given[:1], torch.ones_like(out), create_graph=True)


@pytest.mark.parametrize("trained", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_lists_that_are_given(trained: bool, carried_out: list[str]) -> None:
    """Other lists of the same shape are walked by the same steps."""
    attn, other = (spdsl.compile(spdsl.loads(LISTED), backend="triton") for _ in range(2))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (torch.randn(1, heads, 37, 16, generator=generator).half() for heads in (4, 1, 1))
        given = [each.requires_grad_(trained) for each in (q, k, v, torch.rand(4, 37, generator=generator))]
        own = (torch.arange(37) // 16).int()
        first = torch.where(torch.rand(1, 37, generator=generator) < 0.5, 0, own - 1).clamp(min=0)
        lists = torch.stack([first, torch.where(first < own, own, FAR)], -1)

        def results(attn: spdsl.Attention, given: list[Tensor], lists: Tensor) -> list[Tensor]:
            out = attn(*given[:3], gate=given[3], chosen=lists)
            assert isinstance(out, Tensor)
            return [out, *(torch.autograd.grad(out, given, torch.ones_like(out)) if trained else ())]

        forget(other)._listed.clear()
        for one, two in zip(results(attn, given, lists), results(other, given, lists), strict=True):
            assert torch.equal(one, two)
    assert len(carried_out) == 2 + 3


@pytest.mark.parametrize("changed", ["other", "in place"])
def test_lists_of_tiles_made_of_an_input_are_made_of_others(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watched call is given the table of the one before, whose lists are remembered where changes are counted."""
    monkeypatch.setattr(recent, "counts", lambda tensor: not tensor.is_inference())  # as on a GPU
    text = GATED.replace("gate: float[h, q]", "w: float[token]").replace(
        "return gate * some", "let other = attend { keep w[k] > 0.5 }\n  return some + other"
    )
    attn = spdsl.compile(spdsl.loads(text), backend="triton")
    q, k, v = tensors("gated", 0, trained=False)[:3]
    first, second = (torch.arange(75) < 16).float(), (torch.arange(75) >= 32).float()
    w = first.clone()
    with torch.no_grad():
        for turn in range(3):
            if turn == 2:
                w = second if changed == "other" else w.copy_(second)
            found, wanted = attn(q, k, v, w=w), attn.reference(q, k, v, w=w)
            assert isinstance(found, Tensor)
            assert isinstance(wanted, Tensor)
            assert relative_error(found, wanted) <= 2e-3


@pytest.mark.parametrize("wanted", [(0,), pytest.param((1, 3), marks=pytest.mark.slow)])
def test_some_tensors_want_gradients(wanted: tuple[int, ...], carried_out: list[str]) -> None:
    attn = compiled("gated")
    for seed in range(3):
        given = tensors("gated", seed, trained=False)
        some = [given[each].requires_grad_() for each in wanted]
        out, expected = call(attn, given), attn.reference(*given[:3], gate=given[3])
        assert isinstance(expected, Tensor)
        found = torch.autograd.grad(out, some, torch.ones_like(out))
        reference = torch.autograd.grad(expected, some, torch.ones_like(expected))
        for one, two in zip(found, reference, strict=True):
            assert relative_error(one, two) <= 2e-3
    assert len(carried_out) == 2


def test_calls_under_autocast_are_carried_out_as_they_are(carried_out: list[str]) -> None:
    """Its types are no part of a kind."""
    attn = compiled("gated")
    with torch.no_grad():
        for seed in range(4):
            given = tensors("gated", seed, trained=False)
            with torch.autocast("cpu", torch.float16, enabled=seed != 3):
                found, wanted = call(attn, given), attn.reference(*given[:3], gate=given[3])
            assert isinstance(wanted, Tensor)
            assert relative_error(found, wanted) <= 2e-3
    assert len(carried_out) == 4
    assert kinds(attn)[0].ways is None


SETTLED = """pattern settled() {
  input piece: int[token] sorted
  input text: bool[token]
  axis pc = token by piece
  let chosen = score(mean(Q, per = q.pc), mean(K, per = k.pc)) |> top(2)
  keep chosen or any(text[k], per = k.pc)
}
"""


@pytest.mark.slow
def test_what_tokens_are_is_known_by_its_content(carried_out: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that say the same of tokens, in whichever tensors, are of one kind, and what changes is seen."""
    monkeypatch.setattr(lists, "_UNASKED", {"cpu"})
    attn = spdsl.compile(spdsl.loads(SETTLED), backend="triton")
    piece, text = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 4, 4, 4, 5, 5]).int(), torch.arange(14) == 6
    for seed in range(6):
        given = tensors("gated", seed, trained=False)[:3]
        q, k, v = (each[:, :, :14] for each in given)
        if seed == 3:
            piece[4:] += 1
        if seed == 5:
            text = ~text
        with torch.no_grad():
            found = attn(q, k, v, piece=piece.clone() if seed % 2 else piece, text=text)
        wanted = attn.reference(q, k, v, piece=piece, text=text)
        assert isinstance(found, Tensor)
        assert isinstance(wanted, Tensor)
        assert relative_error(found, wanted) <= 2e-3
    # Two of each of the first two contents, of which the second is watched, and one of the third.
    assert len(carried_out) == 2 + 2 + 1
    assert [kind.ways is not None for kind in kinds(attn)] == [True, True, False]
    with pytest.raises(spdsl.SpatError, match="SP350"):
        attn(q, k, v, piece=piece.flip(0), text=text)
