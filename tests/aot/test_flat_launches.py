"""Launches by flat arguments pass to Triton's launcher what launches by name pass, for kernels compiled for Hopper."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

import spdsl
from benchmarks import host
from spdsl.diagnostics import SpatError
from spdsl.runtime import launch as launch_module
from spdsl.runtime import operator, split
from spdsl.runtime.tape import Arena, Launch, Operation, Start, Tape

Launched = tuple[object, ...]


class Filled:
    """A descriptor as the driver would fill it in."""

    def __init__(self, *settings: Any) -> None:
        self.settings = tuple(tuple(each) if isinstance(each, list) else each for each in settings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filled) and self.settings == other.settings

    __hash__ = None  # type: ignore[assignment]


LAUNCHES: list[Launched] = []
"""For all tests, because binaries are kept with the launchers that they were given."""


def launch(*arguments: object) -> None:
    LAUNCHES.append(tuple(each.data_ptr() if isinstance(each, Tensor) else each for each in arguments))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launched]]:
    """What Triton's functions in C are called with; tensors count as their addresses, as they do there."""
    LAUNCHES.clear()
    monkeypatch.setattr(host._Utils, "fill_tma_descriptor", lambda self, *settings: Filled(*settings))
    monkeypatch.setattr(host._Launcher, "launch_in_c", staticmethod(launch))
    with host.stubbed():
        yield LAUNCHES


def kinds_of(name: str) -> tuple[spdsl.Attention, list[Tensor], dict[str, Tensor]]:
    attn = spdsl.compile(name, backend="triton")
    leaves = [torch.randn(1, 2, 300, 128, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    given = {"doc": torch.arange(300, dtype=torch.int32) // 70} if name == "documents" else {}
    return attn, leaves, given


def both(tape: Tape, tensors: list[Tensor], launches: list[Launched]) -> None:
    assert tape.flat is not tape.plain
    numbers, cells = tape.tensors.copy(), tape.cells.copy()
    numbers[: tape.inputs] = tensors
    cells[: tape.inputs] = [each.data_ptr() for each in tensors]
    cells[tape.stream] = 0
    for step in tape.plain:
        if isinstance(step, Operation):
            step(numbers, cells)
    launches.clear()
    flats = [step for step in tape.flat if isinstance(step, Launch)]
    plains = [step for step in tape.plain if isinstance(step, Start)]
    assert 0 < len(flats) < len(tape.flat)
    at_once = numbers.copy()
    for arena in (step for step in tape.flat if isinstance(step, Arena)):
        arena(at_once, cells)
        for at, offset in arena.parts:
            there, like = at_once[at][offset:], numbers[at]
            numbers[at] = there[: like.nbytes].view(like.dtype).view(like.shape)
    for flat, plain in zip(flats, plains, strict=True):
        flat(at_once, cells)
        plain(numbers, cells)
        by_flat, by_name = launches[-2:]
        # Hooks and what they are told stand before the arguments; without hooks both mean nothing.
        assert by_flat[:10] + by_flat[13:] == by_name[:10] + by_name[13:]
        assert by_flat[10:13] == (None, None, None)


@pytest.mark.parametrize("name", ["streaming", "documents"])
def test_both_ways_of_a_launch(name: str, launches: list[Launched]) -> None:
    attn, leaves, given = kinds_of(name)
    out = attn(*leaves, **given)
    d_out = torch.randn_like(out)  # type: ignore[arg-type]
    torch.autograd.grad(out, leaves, d_out)  # type: ignore[arg-type]
    (kind,) = attn._direct._kinds.values()
    ((forward, _),) = kind.outputs.entries.values()
    ((backward, _),) = next(iter(kind.gradients.values())).entries.values()
    others = [torch.randn_like(each) for each in leaves]
    inputs = [*others, *given.values()]
    both(forward, inputs, launches)
    both(backward, [*inputs, torch.randn_like(d_out), torch.randn(1, 2, 300), d_out], launches)


def test_hooks_see_launches_by_name(launches: list[Launched]) -> None:
    from triton import knobs

    attn, leaves, given = kinds_of("streaming")
    q, k, v = (each.detach() for each in leaves)
    attn(q, k, v, **given)
    seen: list[str] = []

    def hook(metadata: Any) -> None:
        seen.append(metadata.get()["name"])

    knobs.runtime.launch_enter_hook.add(hook)
    try:
        launches.clear()
        attn(q, k, v)
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)
    (arguments,) = launches
    assert arguments[11] is knobs.runtime.launch_enter_hook
    launches.clear()
    attn(q, k, v)
    (arguments,) = launches
    assert arguments[11] is None


def test_memory_that_only_launches_see_is_taken_at_once(launches: list[Launched]) -> None:
    attn, leaves, given = kinds_of("streaming")
    out = attn(*leaves, **given)
    torch.autograd.grad(out, leaves, torch.randn_like(out))  # type: ignore[arg-type]
    (kind,) = attn._direct._kinds.values()
    ((backward, _),) = next(iter(kind.gradients.values())).entries.values()
    (arena,) = (step for step in backward.flat if isinstance(step, Arena))
    used = [touched(step) for step in backward.plain]
    taken = (step for step in backward.plain if isinstance(step, Operation) and not step.arguments)
    sizes = {step.result: step.function().nbytes for step in taken}
    parts = [
        (offset, offset + sizes[at], {n for n, each in enumerate(used) if at in each}) for at, offset in arena.parts
    ]
    assert len(parts) >= 2
    assert all(begin % 256 == 0 and end <= arena.take().nbytes for begin, end, _ in parts)
    for (begin, end, steps), (other, behind, others) in combinations(parts, 2):
        apart = end <= other or behind <= begin
        assert apart or max(steps) < min(others) or max(others) < min(steps)
    assert not {at for at, _ in arena.parts} & set(backward.results)


def touched(step: object) -> set[int]:
    match step:
        case Operation(arguments=arguments, result=result):
            return {*arguments, result}
        case Start(tensors=tensors):
            return {at for _, at in tensors}
        case _:
            return set()


def test_more_heads_than_a_gpu_starts_programs_for(launches: list[Launched], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_module, "PROGRAMS", 1)
    attn, leaves, given = kinds_of("streaming")

    def both() -> None:
        out = attn(*leaves, **given)
        assert isinstance(out, Tensor)
        torch.autograd.grad(out.sum(), leaves)

    with pytest.raises(SpatError, match=r"for 1 sequences of 2 heads would start .* programs") as caught:
        both()
    assert caught.value.code == "SP510"
    assert str(caught.value.place).startswith("streaming.spat:")


# ---------------------------------------------------------------- growing caches

PATTERNS: dict[str, dict[str, object]] = {
    "causal": {},
    "streaming": {"window": 600, "sinks": 5},
    "strided": {"local": 32, "stride": 64},
    "dilated": {"span": 256, "dilation": 4},
}


def step(attn: spdsl.Attention, n: int, launches: list[Launched], **places: Tensor) -> list[Launched]:
    """The launches of one query after ``n - 1`` tokens, without addresses and hooks."""
    q, k, v = (torch.empty(8, heads, rows, 128, dtype=torch.bfloat16) for heads, rows in ((16, 1), (8, n), (8, n)))
    launches.clear()
    attn(q, k, v, **places)
    return [
        (*each[:4], *(value for value in each[13:] if isinstance(value, int) and value < 1 << 31)) for each in launches
    ]


@pytest.mark.parametrize("name", PATTERNS)
def test_a_growing_cache_is_recorded_once(name: str, launches: list[Launched], monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches for another length are those of an attention that has seen no other, and nothing is worked out anew but
    where the number of parts or of digits changes."""
    monkeypatch.setattr(split, "INTERPRETER", 132)
    forward, recorded = operator.forward, []
    monkeypatch.setattr(operator, "forward", lambda *given: (recorded.append(given[1].shape[2]), forward(*given))[1])
    attn = spdsl.compile(name, backend="triton", **PATTERNS[name])
    lengths = [*range(515, 530), 1000, 1023, 1024, *range(1025, 2049, 93), 2048, 2047, 1030]
    anew = 0
    for n in lengths:
        expected = step(spdsl.compile(name, backend="triton", **PATTERNS[name]), n, launches)
        before = len(recorded)
        assert step(attn, n, launches) == expected
        anew += len(recorded) - before
    assert 2 <= anew <= 5
    recorded.clear()
    for n in range(2049, 4097, 17):
        step(attn, n, launches)
    assert 1 <= len(recorded) <= 3


def test_a_growing_cache_with_padding_is_recorded_once(
    launches: list[Launched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split, "INTERPRETER", 132)
    forward, recorded = operator.forward, []
    monkeypatch.setattr(operator, "forward", lambda *given: (recorded.append(given[1].shape[2]), forward(*given))[1])
    attn, padding = spdsl.compile("causal", backend="triton"), torch.arange(8, dtype=torch.int32)
    for n in range(2049, 2080):
        before = len(recorded)
        found = step(attn, n, launches, k_start=padding)
        assert len(recorded) - before == (n == 2049)
        assert found == step(spdsl.compile("causal", backend="triton"), n, launches, k_start=padding)
