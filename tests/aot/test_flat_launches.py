"""Launches by flat arguments pass to Triton's launcher what launches by name pass, for kernels compiled for Hopper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import spdsl
from benchmarks import host
from spdsl.runtime.tape import Tape

Launch = tuple[object, ...]


class Filled:
    """A descriptor as the driver would fill it in."""

    def __init__(self, *settings: Any) -> None:
        self.settings = tuple(tuple(each) if isinstance(each, list) else each for each in settings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filled) and self.settings == other.settings

    __hash__ = None  # type: ignore[assignment]


LAUNCHES: list[Launch] = []
"""For all tests, because binaries are kept with the launchers that they were given."""


def launch(*arguments: object) -> None:
    LAUNCHES.append(tuple(each.data_ptr() if isinstance(each, Tensor) else each for each in arguments))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
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


def both(tape: Tape, tensors: list[Tensor], launches: list[Launch]) -> None:
    assert tape.flat is not tape.plain
    launches.clear()
    numbers, cells = tape.tensors.copy(), tape.cells.copy()
    numbers[: tape.inputs] = tensors
    cells[: tape.inputs] = [each.data_ptr() for each in tensors]
    cells[tape.stream] = 0
    seen = 0
    for flat, plain in zip(tape.flat, tape.plain, strict=True):
        flat(numbers, cells)
        if flat is plain:
            continue
        plain(numbers, cells)
        by_flat, by_name = launches[-2:]
        # Hooks and what they are told stand before the arguments; without hooks both mean nothing.
        assert by_flat[:10] + by_flat[13:] == by_name[:10] + by_name[13:]
        assert by_flat[10:13] == (None, None, None)
        seen += 1
    assert 0 < seen < len(tape.flat)


@pytest.mark.parametrize("name", ["streaming", "documents"])
def test_both_ways_of_a_launch(name: str, launches: list[Launch]) -> None:
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


def test_hooks_see_launches_by_name(launches: list[Launch]) -> None:
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
