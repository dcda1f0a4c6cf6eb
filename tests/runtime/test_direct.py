"""Calls outside of the dispatcher: who still goes through it, what is told apart, what is refused."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import spdsl
from spdsl.runtime import direct, recent
from spdsl.runtime.recent import identity, weakly
from spdsl.runtime.recorder import Recorder


def tensors(n: int = 40, *, requires_grad: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 4, n, 16), (1, 2, n, 16), (1, 2, n, 16))
    return [torch.randn(shape, generator=generator).requires_grad_(requires_grad) for shape in shapes]


class Seen(TorchDispatchMode):
    """Writes down the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_modes_see_the_operators() -> None:
    attn, leaves = spdsl.compile("streaming"), tensors()
    attn(*leaves)  # known from now on
    with Seen() as seen:
        out = attn(*leaves)
        torch.autograd.grad(out.sum(), leaves)  # type: ignore[union-attr]
    assert {"spdsl.attend.default", "spdsl.attend_backward.default"} <= set(seen.names)


def test_a_recorded_call_is_watched_in_its_backward() -> None:
    attn, leaves = spdsl.compile("streaming"), tensors()
    out = attn(*leaves)
    with Seen() as seen:
        torch.autograd.grad(out.sum(), leaves)  # type: ignore[union-attr]
    assert "spdsl.attend_backward.default" in seen.names


def test_subclasses_go_through_the_dispatcher() -> None:
    class Named(Tensor):
        pass

    attn, (q, k, v) = spdsl.compile("causal"), tensors(requires_grad=False)
    assert type(attn(q.as_subclass(Named), k, v)) is Named


def test_autocast_after_a_call_without() -> None:
    attn, leaves = spdsl.compile("causal"), tensors()
    assert attn(*leaves).dtype == torch.float32  # type: ignore[union-attr]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attn(*leaves).dtype == torch.bfloat16  # type: ignore[union-attr]
        assert attn(*leaves).dtype == torch.bfloat16  # type: ignore[union-attr]
    assert attn(*leaves).dtype == torch.float32  # type: ignore[union-attr]


def test_gradients_of_gradients_are_refused() -> None:
    attn, leaves = spdsl.compile("causal"), tensors()
    for _ in range(2):
        grads = torch.autograd.grad(attn(*leaves).square().sum(), leaves, create_graph=True)  # type: ignore[union-attr]
        with pytest.raises(spdsl.SpatError) as caught:
            torch.autograd.grad(grads[0].sum(), leaves)
        assert caught.value.code == "SP349"


def test_transforms_are_refused_after_a_call() -> None:
    attn, (q, k, v) = spdsl.compile("causal"), tensors(requires_grad=False)
    attn(q, k, v)
    with pytest.raises(spdsl.SpatError) as caught:
        torch.func.grad(lambda q: attn(q, k, v).sum())(q)  # type: ignore[union-attr]
    assert caught.value.code == "SP349"


def test_what_a_call_needs_is_asked_every_time() -> None:
    attn, (q, k, v) = spdsl.compile("documents"), tensors(requires_grad=False)
    attn(q, k, v, doc=torch.zeros(40, dtype=torch.int32))
    for wrong in ({}, {"dok": torch.zeros(40, dtype=torch.int32)}, {"doc": torch.zeros(39, dtype=torch.int32)}):
        with pytest.raises(spdsl.SpatError):
            attn(q, k, v, **wrong)
    with pytest.raises(spdsl.SpatError) as caught:
        attn(q, k, v, doc=torch.arange(40).flip(0))
    assert caught.value.code == "SP350"


def test_gradients_follow_the_mode_of_the_call() -> None:
    attn, leaves = spdsl.compile("causal"), tensors()
    with torch.no_grad():
        assert not attn(*leaves).requires_grad  # type: ignore[union-attr]
    assert attn(*leaves).requires_grad  # type: ignore[union-attr]
    assert not attn(*(each.detach() for each in leaves)).requires_grad  # type: ignore[union-attr]
    with torch.inference_mode():
        assert attn(*leaves).is_inference()  # type: ignore[union-attr]


def test_more_queries_than_keys_are_refused_again() -> None:
    attn, (q, k, v) = spdsl.compile("causal"), tensors(requires_grad=False)
    for q_start in (0, -10):  # where the queries of the refused call would begin
        attn(q, k[:, :, :30], v[:, :, :30], q_start=q_start)
        with pytest.raises(spdsl.SpatError) as caught:
            attn(q, k[:, :, :30], v[:, :, :30])
        assert caught.value.code == "SP304"


def test_few_kinds_are_remembered() -> None:
    attn = spdsl.compile("causal")
    for n in range(1, 80):
        attn(*tensors(n, requires_grad=False))
    assert len(attn._direct._kinds) <= direct._KINDS


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda attn: pickle.loads(pickle.dumps(attn))])  # noqa: S301  # our own
def test_copies_after_a_call(copied: Callable[[spdsl.Attention], spdsl.Attention]) -> None:
    attn, leaves = spdsl.compile("streaming", window=8), tensors()
    out = attn(*leaves)
    other = copied(attn)
    assert not other._direct._kinds
    assert torch.equal(other(*leaves), out)  # type: ignore[arg-type]


# ---------------------------------------------------------------- identity of tables


def test_freed_memory_is_not_taken_for_what_it_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "counts", lambda tensor: True)
    seen: dict[object, object] = {}
    gc.freeze()  # what is alive already need not be looked at fifty times
    try:
        for _ in range(50):
            table = torch.zeros(1000)
            same = identity(table)
            assert same not in seen
            seen[same] = weakly(table)
            assert identity(table.view(10, 100).view(1000)) == same
            table[3] = 1
            assert identity(table) != same
            del table
            gc.collect()
    finally:
        gc.unfreeze()


def test_weak_references_free_the_numbers() -> None:
    table = torch.zeros(1000)
    (held,) = weakly(table)
    assert not held.expired()
    del table
    assert held.expired()


def test_inference_tensors_have_no_identity() -> None:
    with torch.inference_mode():
        assert identity(torch.zeros(3, device="meta")) is None


# ---------------------------------------------------------------- recording


def test_what_a_recorder_has_not_seen_gives_no_tape() -> None:
    x, device = torch.ones(3), torch.device("cpu")
    recorder = Recorder()
    recorder.read(x)
    y = recorder.run(torch.neg, x)
    tape = recorder.tape((y,), device)
    assert tape is not None
    assert torch.equal(tape.play((torch.full((3,), 2.0),))[0], torch.full((3,), -2.0))
    assert recorder.tape((y.clone(),), device) is None
    recorder.run(torch.neg, torch.ones(3))
    assert recorder.tape((y,), device) is None


def test_a_recorder_that_gave_up_gives_no_tape() -> None:
    recorder = Recorder()
    out = recorder.run(lambda: torch.ones(2))
    assert recorder.tape((out,), torch.device("cpu")) is not None
    recorder.give_up()
    assert recorder.tape((out,), torch.device("cpu")) is None


def test_tensors_that_are_held_keep_their_numbers() -> None:
    x, held = torch.ones(3), torch.tensor([1.0, 2.0, 3.0])
    recorder = Recorder()
    recorder.read(x)
    recorder.hold(held, x, held)
    y = recorder.run(torch.mul, x, held)
    tape = recorder.tape((y,), torch.device("cpu"))
    assert tape is not None
    assert tape.constant
    assert torch.equal(tape.play((2 * x,))[0], 2 * held)
