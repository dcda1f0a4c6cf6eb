"""Run the text of a kernel with specialised warps in plain Python, as `tests.codegen.machine` does those in Triton.

The copying warp runs first, to its end: what it tells and where it copies from is kept, item by item and tile by tile.
Then each group of computing warps runs on that, but none that adds.  Barriers and memory are not modelled; their order
is that of `tests.codegen.race_machine`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from tests.codegen.machine import OPAQUE, Decorator, Int, Language, Turn


@dataclass(slots=True)
class Sent:
    """What the copying warp sends with one tile, and where the tile lies in K and V."""

    numbers: dict[int, Int] = field(default_factory=dict)
    places: dict[str, Any] = field(default_factory=dict)


class Memory:
    """Shared memory: the cells that hold numbers count, others do not."""

    def __init__(self, machine: Machine, *, numbers: bool) -> None:
        self._machine, self._numbers = machine, numbers

    def index(self, at: Any) -> Any:
        return Cell(self._machine, int(at)) if self._numbers else OPAQUE

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **more: self


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of the ring."""

    machine: Machine
    at: int

    def store(self, value: Int) -> None:
        self.machine.tell(self.at, value)

    def load(self, layout: Any) -> Int:
        return self.machine.told(self.at)


class Machine(Language):
    """Stands in for the languages of Gluon while one program runs; ``numbers`` are sent with each of the tiles, for
    which a ring has places, and behind these with each item."""

    def __init__(
        self,
        program: tuple[int, int, int],
        grid: tuple[int, int, int],
        numbers: int,
        own: tuple[str, ...],
        ring: int = 0,
    ) -> None:
        super().__init__(program, grid)
        self._own = own
        self._numbers = numbers
        self._ring = ring * numbers
        self._told: list[dict[int, Int]] = []
        self._begun: Any = None
        self._item = -1
        self.items: list[tuple[int, list[Turn]]] = []
        self._open: list[Turn] = []
        self.groups: list[list[tuple[int, list[Turn]]]] = []
        self.own: list[tuple[str, tuple[Int, ...]]] = []
        self.sent: list[Sent] = []
        self.written: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        self._current = -1

    def constexpr(self, value: Any) -> Any:  # type: ignore[override]
        return value

    def static_range(self, count: Any) -> range:
        return range(int(count))

    def allocate_shared_memory(self, kind: Any, *what: Any) -> Memory:
        return Memory(self, numbers=kind == self.int32)

    def convert_layout(self, value: Any, layout: Any) -> Any:
        return value

    def max(self, value: Any, axis: int) -> Any:
        return Int(value.value.max(axis)) if isinstance(value, Int) else OPAQUE

    def warp_specialize(self, parts: list[Any], warps: list[int], registers: list[int]) -> None:
        assert len(warps) == len(registers) == len(parts) - 1
        called = {function.__name__: (function, given) for function, given in parts}
        fetch, arguments = called["fetch"]
        fetch(*arguments)
        for function, given in (each for each in parts if each[0].__name__ == "compute"):
            self.items, self._open, self._current, self._item = [], [], -1, -1
            function(*given)
            assert self._current == len(self.sent) - 1, "tiles that nobody takes"
            assert self._item == len(self._told) - 1, "items that nobody takes"
            assert not self._open, "tiles without an end"
            self.groups.append(self.items)

    def async_copy_global_to_shared(self, tensor: Any, at: list[Any], barrier: Any, memory: Any) -> None:
        place = tuple(x if isinstance(x, Int) else Int(x) for x in at)
        if tensor.name in self._own:
            self.own.append((tensor.name, place))
        else:
            self.sent[-1].places[tensor.name] = place

    def async_copy_shared_to_global(self, tensor: Any, at: list[Any], memory: Any) -> None:
        self.written[tensor.name].append(tuple(int(each) for each in at))

    def add_to_memory(self, tensor: Any, at: list[Any], memory: Any) -> None:
        """Sums do not count."""

    def arrive(self, barrier: Any, count: Any = 1) -> None:
        """The barrier to which the copying warp first turns when it has told of an item is that of items."""
        if self._told and self._begun is None:
            self._begun = barrier

    expect = arrive

    def wait(self, barrier: Any, parity: Any) -> None:
        """Who waits for an item is told of the next."""
        if barrier is self._begun:
            self._item += 1

    def tell(self, at: int, value: Int) -> None:
        if at >= self._ring:
            self._told += [{}] if at == self._ring else []
            self._told[-1][at] = value
            return
        if at % self._numbers == 0:
            self.sent.append(Sent())
        self.sent[-1].numbers[at % self._numbers] = value

    def told(self, at: int) -> Int:
        if at >= self._ring:
            return self._told[self._item][at]
        if at % self._numbers == 0:
            self._current += 1
            tile = self.sent[self._current]
            if tile.places:
                self.turns = [Turn(rows=dict(tile.places))]
                self._open += self.turns
            else:
                self.items.append((self._item, self._open))
                self._open = []
        return self.sent[self._current].numbers[at % self._numbers]

    def warpgroup_mma_wait(self, running: int, deps: tuple[Any, ...]) -> Any:
        return deps if len(deps) > 1 else deps[0]


@cache
def _compiled(text: str) -> Any:
    return compile(
        re.sub(r"^from [^\n]+ import (\([^)]*\)|[^\n]*)", "", text, flags=re.MULTILINE), "<generated>", "exec"
    )


def rows(place: tuple[Int, ...], count: int, classes: int) -> np.ndarray:
    """The rows of a tile that the copy engine is asked for, of tensors without boxes."""
    first, *rest = (int(at) for at in place[2:])
    assert rest[-1] == 0
    kind = rest[0] if classes > 1 else 0
    assert 0 <= kind < classes
    return (first + np.arange(count)) * classes + kind


def run(
    text: str,
    kernel: str,
    arguments: Mapping[str, Any],
    program: tuple[int, int, int],
    grid: tuple[int, int, int],
    classes: int,
) -> list[tuple[int, int, list[Turn]]]:
    """What every group of one program does with each of its items, or for each of their heads: sequence, head of its
    own side, and the turns, as `tests.codegen.machine.run` gives them; the first has the rows of its own."""
    sizes = {name: int(value) for name, value in re.findall(r"^(\w+) = gl\.constexpr\((\d+)\)$", text, re.MULTILINE)}
    own, walked, more, block = ("Q", "K", "V", "BLOCK_K") if kernel == "forward" else ("K", "Q", "dO", "BLOCK_Q")
    machine = Machine(program, grid, sizes["NUMBERS"], (own,) if kernel == "forward" else (own, "V"), sizes["RING"])
    names: dict[str, Any] = {"gl": machine, "tma": machine, "mbarrier": machine, "gluon": Decorator()}
    names |= {"range": machine.range, "warpgroup_mma_wait": machine.warpgroup_mma_wait}
    names |= dict.fromkeys(("fence_async_shared", "warpgroup_mma"), lambda *args, **more: OPAQUE)
    names["builtin"] = lambda function: machine.add_to_memory
    exec(_compiled(text), names)  # noqa: S102  # our own text
    names[kernel](**arguments)
    found = []
    count = len(machine.groups)
    places = [place for name, place in machine.own if name == own]
    if kernel != "forward":
        read = {name: [tuple(map(int, place)) for each, place in machine.own if each == name] for name in "KV"}
        assert machine.written == {f"d{name}": place for name, place in read.items()}, "gradients of other rows"
    for group, items in enumerate(machine.groups):
        for item, turns in items:
            place = places[max(item, 0) * count + group]  # without items there is one of its own
            for turn in turns:
                here, there = turn.rows.pop(walked), turn.rows.pop(more)
                assert [*map(int, here)] == [*map(int, there)]
                turn.rows = {walked: rows(here, sizes[block], classes)}
            first = Turn(rows={own: rows(place, sizes["ROWS"], classes)})
            found.append((int(place[0]), int(place[1]), [first, *turns]))
    return found
