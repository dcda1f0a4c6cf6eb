"""Calls whose steps are repeated, of functions that torch alone carries out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.checkpoint import checkpoint

from spdsl.runtime import recent, whole_calls
from spdsl.runtime.direct import Direct, kind_of, plain
from spdsl.runtime.notices import is_watched, watched
from spdsl.runtime.recent import ByContent
from spdsl.runtime.shelf import Shelf
from spdsl.runtime.sights import Sights
from spdsl.runtime.watched import ROOM, Notes
from spdsl.runtime.whole_calls import Found, WholeCalls


class Product:
    """Output ``a * b + c``, and how often it was carried out."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, tensors: Sequence[Tensor]) -> Found:
        self.times += 1
        a, b, c = tensors
        return a * b + c, None


def kind(make: Callable[[Sequence[Tensor]], Found], *, trained: bool = True) -> WholeCalls:
    return WholeCalls(make=make, trained=trained, kind_of=kind_of, plain=plain)


def leaves(seed: int, *, trained: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, generator=generator).requires_grad_(trained) for _ in range(3)]


def gradients(given: Sequence[Tensor], d_out: Tensor) -> list[Tensor]:
    """Those of `Product`."""
    a, b, _ = given
    return [d_out * b, d_out * a, d_out]


def same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_steps_and_those_of_the_backward() -> None:
    make = Product()
    calls = kind(make)
    for seed in range(4):
        given, d_out = leaves(seed), torch.full((2, 3), seed + 1.0)
        out, _ = calls(given)
        assert torch.equal(out, given[0] * given[1] + given[2])
        assert same(torch.autograd.grad(out, given, d_out), gradients(given, d_out))
    assert make.times == 2


@pytest.mark.parametrize("made", [lambda table: table, lambda table: table + 0], ids=["itself", "what is made of it"])
def test_a_tensor_from_nowhere_is_no_constant(made: Callable[[Tensor], Tensor]) -> None:
    """What is older than the watch may depend on anything, and so may what is made of it before the eyes of a watch."""
    table = torch.ones(2, 3)
    calls = kind(lambda tensors: (tensors[0] * made(table), None), trained=False)
    for seed in range(4):
        given = leaves(seed, trained=False)
        table = given[1].clone()
        assert torch.equal(calls(given)[0], given[0] * given[1])
    assert calls.ways is None


def test_a_number_of_a_tensor_from_nowhere_decides() -> None:
    table = torch.ones(2, 3)
    calls = kind(lambda tensors: (tensors[0] * float(table.sum()), None), trained=False)
    for seed in range(4):
        given = leaves(seed, trained=False)
        table = given[1].clone()
        assert torch.equal(calls(given)[0], given[0] * float(given[1].sum()))
    assert calls.ways is None


def test_numbers_that_the_host_writes_down_are_constants() -> None:
    calls = kind(lambda tensors: (tensors[0] * torch.tensor([1.0, 2.0, 3.0]) + torch.as_tensor(5), None), trained=False)
    for seed in range(4):
        given = leaves(seed, trained=False)
        assert torch.equal(calls(given)[0], given[0] * torch.tensor([1.0, 2.0, 3.0]) + 5)
    assert calls.ways is not None


@pytest.mark.parametrize("changed", ["other", "in place"])
def test_what_a_cache_has_made_of_an_input_is_no_constant(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "counts", lambda tensor: not tensor.is_inference())  # as on a GPU
    memory: ByContent[Tensor] = ByContent(size=4)

    def make(tensors: Sequence[Tensor]) -> Found:
        a, b, _ = tensors
        return a * memory.get("doubled", (b,), None, lambda: b * 2), None

    calls = kind(make, trained=False)
    a, b, c = leaves(0, trained=False)
    for turn in range(4):
        if turn > 1:
            b = b + 1 if changed == "other" else b.add_(1)
        assert torch.equal(calls((a, b, c))[0], a * b * 2)
    assert calls.ways is not None  # what is made of the input is a step


def test_caches_serve_whom_they_know() -> None:
    memory: ByContent[list[int]] = ByContent(size=8)
    table = torch.empty(3, device="meta")  # its changes are counted

    def ask(*tensors: Tensor) -> list[int]:
        return memory.get("key", tensors, None, list)

    before, alone = ask(table), ask()
    with watched(Notes(room=0)):
        assert ask(table) is ask(table)
        assert ask(table) is not before
        assert ask() is alone
        mine = ask(table)
    with watched(Notes(room=0)):
        assert ask(table) is not mine
    assert ask(table) is before


def test_what_depends_on_no_tensor_is_kept_with_the_steps() -> None:
    memory: ByContent[tuple[Tensor]] = ByContent(size=4)
    made = []

    def make(tensors: Sequence[Tensor]) -> Found:
        (line,) = memory.get("line", (), None, lambda: (torch.arange(3.0),))
        made.append(line)
        return tensors[0] * line, None

    calls = kind(make, trained=False)
    for seed in range(4):
        given = leaves(seed, trained=False)
        assert torch.equal(calls(given)[0], given[0] * torch.arange(3.0))
    assert len(made) == 2


def test_steps_hold_nothing_of_the_call_that_was_watched() -> None:
    """Whatever stands beside the tensors of an operation: a number, a name, a list of tensors."""

    def make(tensors: Sequence[Tensor]) -> Found:
        a, b, c = tensors
        both = torch.cat([torch.add(a, b, alpha=2), torch.mul(c, torch.arange(3.0))], dim=1)
        return torch.sum(both.softmax(1), 0, keepdim=True, dtype=torch.float64), None

    calls, gone = kind(make, trained=False), list[StorageWeakRef]()
    for seed in range(2):
        given = leaves(seed, trained=False)
        gone += [StorageWeakRef(each.untyped_storage()) for each in given]
        calls(given)
    del given
    assert calls.ways is not None
    assert all(each.expired() for each in gone)
    held = {id(each): each for each in calls.ways[0].forward.tape.tensors if each is not None}
    assert calls.ways[0].nbytes == sum(each.untyped_storage().nbytes() for each in held.values()) == 12


def test_checkpoints_of_activations() -> None:
    """They count what is saved, and carry the call out again in the backward."""
    calls = kind(Product())
    for seed in range(4):
        given, d_out = leaves(seed), torch.full((2, 3), seed + 1.0)
        for use_reentrant in (False, True):
            out = checkpoint(lambda *tensors: calls(tensors)[0], *given, use_reentrant=use_reentrant)
            for each in given:
                each.grad = None
            out.backward(d_out)  # the second kind asks for this way
            assert same([each.grad for each in given if each.grad is not None], gradients(given, d_out))


def test_what_is_saved_goes_through_hooks_that_nobody_sees() -> None:
    def pack(tensor: Tensor) -> Tensor:
        with _disable_current_modes():
            return tensor.detach().clone()

    calls = kind(Product())
    for seed in range(4):
        given, d_out = leaves(seed), torch.full((2, 3), seed + 1.0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out, _ = calls(given)
        assert same(torch.autograd.grad(out, given, d_out), gradients(given, d_out))


def test_a_subset_of_the_gradients() -> None:
    """Fewer than were watched are asked for."""
    make = Product()
    calls = kind(make)
    for seed in range(4):
        given, d_out = leaves(seed), torch.full((2, 3), seed + 1.0)
        out, _ = calls(given)
        some = given if seed < 2 else given[:1]
        assert same(torch.autograd.grad(out, some, d_out), gradients(given, d_out)[: len(some)])


@pytest.mark.parametrize("lse", [False, True], ids=["of nothing", "of another result"])
def test_an_input_that_a_result_does_not_depend_on(lse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that only a selection reads: the result of each call is as that of the first."""

    def make(tensors: Sequence[Tensor]) -> Found:
        a, b, c = tensors
        return a * b, c * 2 if lse else None

    calls = kind(make)
    for seed in range(4):
        a, b, c = leaves(seed, trained=False)
        c.requires_grad_()
        out, other = calls((a, b, c))
        assert torch.equal(out, a * b)
        assert not out.requires_grad
        scale = torch.ones(2, 3, requires_grad=True)
        (out * scale + (0 if other is None else other)).sum().backward()
        assert torch.equal(scale.grad, a * b) if scale.grad is not None else False
        assert (c.grad is None) is not lse
        if seed == 1:
            assert calls.ways is not None
            calls.make = lambda _: pytest.fail("carried out again")


def test_gradients_of_nothing_that_the_results_depend_on() -> None:
    """They are asked for alone, by a backward that is unlike the one that was watched."""
    calls = kind(lambda tensors: (tensors[0] * tensors[1], None))
    for seed in range(4):
        given = leaves(seed)
        out, _ = calls(given)
        wanted = given if seed < 2 else given[2:]
        found = torch.autograd.grad(out, wanted, torch.ones(2, 3), allow_unused=True)
        assert found[-1] is None


def test_captures_of_the_backward_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graph reads what the steps hold; and nothing of a capture is kept."""
    mine, calls = Shelf(), kind(Product())
    monkeypatch.setattr(whole_calls, "SHELF", mine)

    def call(*, capturing: bool) -> None:
        given, d_out = leaves(0), torch.full((2, 3), 2.0)
        out, _ = calls(given)
        with monkeypatch.context() as context:
            context.setattr(whole_calls, "captured", lambda tensor: capturing)
            assert same(torch.autograd.grad(out, given, d_out), gradients(given, d_out))

    call(capturing=False)
    call(capturing=True)
    assert calls.ways is None
    while calls.ways is None:
        assert calls.sights.met < 4
        call(capturing=False)
    call(capturing=False)
    assert not mine.pinned
    call(capturing=True)
    assert list(mine.pinned.values()) == [calls.ways[0]]


def test_two_calls_before_either_backward() -> None:
    """One at a time is watched."""
    make = Product()
    calls = kind(make)
    d_out = torch.ones(2, 3)
    for seed in range(3):
        pairs = [(given, calls(given)[0]) for given in (leaves(seed), leaves(seed + 10))]
        for given, out in pairs:
            assert same(torch.autograd.grad(out, given, d_out), gradients(given, d_out))
    # As it is and watched; repeated.
    assert make.times == 2
    calls.ways, calls.sights = None, Sights(met=1)
    pairs = [(given, calls(given)[0]) for given in (leaves(0), leaves(1))]
    assert make.times == 4
    for given, out in pairs:
        assert same(torch.autograd.grad(out, given, d_out), gradients(given, d_out))
    assert calls.ways is not None


def test_calls_that_can_have_no_steps_use_up_no_tries() -> None:
    make = Product()
    calls = kind(make)
    for seed in range(9):
        a, b, _ = given = leaves(seed)
        calls((a, b, b))  # one tensor stands for two
        out, _ = calls(given)
        if seed % 2:  # of the others nobody asks for gradients
            assert same(torch.autograd.grad(out, given, a), gradients(given, a.detach()))
    assert calls.ways is None
    assert calls.sights.tries == 0
    while calls.ways is None:
        given = leaves(calls.sights.met)
        torch.autograd.grad(calls(given)[0], given, torch.ones(2, 3))
        assert calls.sights.met <= 16


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_no_memory_for_notes(part: str) -> None:
    """A call that does not fit while it is watched is carried out as it is."""

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: Tensor) -> Tensor:
            if is_watched() and part == "forward":
                raise torch.OutOfMemoryError("notes")
            return tensor.clone()

        @staticmethod
        def backward(ctx: Any, d_out: Tensor) -> Tensor:
            if is_watched() and part == "backward":
                raise torch.OutOfMemoryError("notes")
            return d_out

    def make(tensors: Sequence[Tensor]) -> Found:
        a, b, c = tensors
        out: Tensor = Fails.apply(a * b + c)  # type: ignore[no-untyped-call]
        return out, None

    calls = kind(make)
    for seed in range(5):
        given, d_out = leaves(seed), torch.full((2, 3), seed + 1.0)
        assert same(torch.autograd.grad(calls(given)[0], given, d_out), gradients(given, d_out))
    assert calls.ways is None


def test_threads_that_call_while_steps_are_forgotten() -> None:
    calls = kind(Product())

    def ask(seed: int) -> bool:
        right = True
        for turn in range(60):
            given, d_out = leaves(seed), torch.full((2, 3), 2.0)
            d_out = d_out.mT.contiguous().mT if turn % 3 == 0 else d_out
            out, _ = calls(given)
            right &= same(torch.autograd.grad(out, given, d_out), gradients(given, d_out))
            calls.sights.met = 1
        return right

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(4)))


def test_copies_know_that_tables_are_made_anew() -> None:
    direct = copy.copy(Direct("key", (1,), ("name",), made=True))
    assert (direct._key, direct._values, direct._names, direct._made) == ("key", (1,), ("name",), True)


class OnCuda:
    """As much of a tensor on a GPU as decides how much may be held."""

    is_cuda, device = True, torch.device("cuda", 0)

    def untyped_storage(self) -> OnCuda:
        return self

    def nbytes(self) -> int:
        return 1 << 30


@pytest.mark.parametrize("free", [0, 1 << 20, 320 << 30])
def test_all_that_are_watched_hold_at_most_half_of_what_is_free(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 320 << 30))
    given: list[Any] = [OnCuda()] * 3
    open = [kind(Product()).notes(given) for _ in range(3)]
    assert sum(each.room for each in open) <= free // 2
    assert open[0].room == min(free // 2, ROOM + 96 * given[0].nbytes())
    for each in open:
        each.give_up()
    assert kind(Product()).notes(given).room == open[0].room
