"""Run the text of a generated kernel in plain Python: its integers as Triton computes them, its floats not at all.

Integers are 32 bits wide unless the text widens them, and ``//`` and ``%`` truncate.  Of tensors only the rows that are
read count, and of masks the pairs that they keep: what comes out is the list of tiles that a program visits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

WIDTH = 64
"""Columns of all tensors, and so from row to row."""


class Opaque:
    """A float, or a tile of them: whatever is done with it gives another."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **more: self

    def __getitem__(self, index: Any) -> Opaque:
        return self


def _absorb(self: Opaque, *others: Any) -> Opaque:
    return self


for _name in ("add", "sub", "mul", "truediv", "and", "or", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Opaque, f"__{_name}__", _absorb)
    setattr(Opaque, f"__r{_name}__", _absorb)
for _name in ("neg", "invert"):
    setattr(Opaque, f"__{_name}__", _absorb)
Opaque.__hash__ = object.__hash__  # type: ignore[method-assign]

OPAQUE = Opaque()


@dataclass(frozen=True, eq=False)
class Int:
    """An int or bool, or an array of them; ``wide`` where 64 bits are meant."""

    value: Any
    wide: bool = False

    def __post_init__(self) -> None:
        value = np.asarray(self.value)
        object.__setattr__(self, "value", value if value.dtype == bool else value.astype(np.int64))
        if not self.wide and value.dtype != bool:
            assert (np.abs(self.value) < 1 << 31).all(), "an int of 32 bits overflows"

    def to(self, kind: str) -> Int:
        return Int(self.value != 0) if kind == "int1" else Int(self.value, wide=kind == "int64")

    def __getitem__(self, index: Any) -> Int:
        return Int(self.value[index], wide=self.wide)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __index__(self) -> int:
        return int(self.value)

    def __invert__(self) -> Int:
        return Int(~self.value, wide=self.wide)

    def __neg__(self) -> Int:
        return Int(-self.value, wide=self.wide)


def _quotient(a: Any, b: Any) -> Any:
    assert np.all(b != 0), "a division by zero"
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


_INFIX: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": _quotient,
    "mod": lambda a, b: a - _quotient(a, b) * b,
    "rshift": operator.rshift,
    "lshift": operator.lshift,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}


def _infix(function: Callable[[Any, Any], Any], turned: bool) -> Callable[[Int, Any], Any]:
    def method(self: Int, other: Any) -> Any:
        if not isinstance(other, Int | int | np.integer):
            return NotImplemented if isinstance(other, Pointer) else OPAQUE
        right = other if isinstance(other, Int) else Int(other)
        a, b = (right, self) if turned else (self, right)
        return Int(function(a.value, b.value), wide=a.wide or b.wide)

    return method


for _name, _function in _INFIX.items():
    setattr(Int, f"__{_name}__", _infix(_function, turned=False))
    setattr(Int, f"__r{_name}__", _infix(_function, turned=True))
Int.__hash__ = object.__hash__  # type: ignore[method-assign]


@dataclass(frozen=True, slots=True)
class Pointer:
    """Elements of the tensor ``name``; ``data`` is None where only the rows that are read count."""

    name: str
    data: np.ndarray | None
    offset: Any = 0
    layout: None = None  # as descriptors have

    def __add__(self, more: Any) -> Pointer:
        assert isinstance(more, Int | int), "an address from a float"
        return Pointer(self.name, self.data, self.offset + more)


@dataclass(slots=True)
class Turn:
    """One turn of a loop: the rows of each tensor that it reads, and the mask that it applies."""

    rows: dict[str, np.ndarray] = field(default_factory=dict)
    keep: np.ndarray | None = None


class Language:
    """Stands in for `triton.language` while one program runs."""

    int1, int32, int64, float32, constexpr = "int1", "int32", "int64", "float32", "constexpr"

    def __init__(self, program: tuple[int, int, int], grid: tuple[int, int, int]) -> None:
        self._program, self._grid = program, grid
        self.turns = [Turn()]

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **more: OPAQUE

    def range(self, low: Any, high: Any, step: Any = 1, **more: Any) -> Iterator[Int]:
        for value in range(int(low), int(high), int(step)):
            self.turns.append(Turn())
            yield Int(value)

    def program_id(self, axis: int) -> Int:
        return Int(self._program[axis])

    def num_programs(self, axis: int) -> Int:
        return Int(self._grid[axis])

    def arange(self, low: int, high: int, *layout: Any) -> Int:
        return Int(np.arange(low, high))

    def full(self, shape: Any, value: Any, kind: str, *layout: Any) -> Any:
        if isinstance(value, float):
            return OPAQUE
        given = value.value if isinstance(value, Int) else value
        return Int(np.full([int(x) for x in shape], given, dtype=np.int64), kind == "int64")

    def maximum(self, a: Any, b: Any) -> Any:
        return self._both(np.maximum, a, b)

    def minimum(self, a: Any, b: Any) -> Any:
        return self._both(np.minimum, a, b)

    def abs(self, a: Any) -> Any:
        if isinstance(a, Opaque | float):
            return OPAQUE
        return Int(np.abs(a.value), wide=a.wide) if isinstance(a, Int) else abs(a)

    @staticmethod
    def _both(function: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
        if isinstance(a, Opaque | float) or isinstance(b, Opaque | float):
            return OPAQUE
        a, b = (x if isinstance(x, Int) else Int(x) for x in (a, b))
        return Int(function(a.value, b.value), wide=a.wide or b.wide)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if isinstance(a, Opaque | float) or isinstance(b, Opaque | float):
            if isinstance(condition, Int | bool) and isinstance(a, Opaque) and b in (0.0, float("-inf")):
                assert self.turns[-1].keep is None, "two masks"
                self.turns[-1].keep = np.asarray(
                    Int(condition).value if isinstance(condition, bool) else condition.value
                )
            return OPAQUE
        a, b = (x if isinstance(x, Int) else Int(x) for x in (a, b))
        value = np.where(condition.value if isinstance(condition, Int) else condition, a.value, b.value)
        return Int(value, wide=a.wide or b.wide)

    def load(self, pointer: Pointer, mask: Any = None, other: Any = None) -> Any:
        at = np.asarray(pointer.offset.value if isinstance(pointer.offset, Int) else pointer.offset)
        if pointer.data is None:
            if at.ndim == 2:
                self._read(pointer.name, at, mask)
            return OPAQUE
        inside = np.broadcast_to(True if mask is None else mask.value, at.shape)
        assert ((at >= 0) & (at < pointer.data.size))[inside].all(), f"{pointer.name} is read outside"
        found = pointer.data.ravel()[np.where(inside, at, 0)]
        return Int(np.where(inside, found, 0)) if found.dtype.kind in "iub" else OPAQUE

    def atomic_add(self, pointer: Pointer, value: Any, sem: str = "acq_rel") -> Any:
        """What was there; elements of tensors that do not count are not known."""
        if pointer.data is None:
            return OPAQUE
        at = int(pointer.offset)
        before = int(pointer.data.ravel()[at])
        pointer.data.ravel()[at] += int(value)
        return Int(before)

    def _read(self, name: str, at: np.ndarray, mask: Any) -> None:
        rows = at[:, 0] // WIDTH
        if mask is not None:
            rows = np.where(np.broadcast_to(mask.value, at.shape)[:, 0], rows, -1)
        self.turns[-1].rows.setdefault(name, rows)


class Decorator:
    """Stands in for `triton`."""

    @staticmethod
    def jit(function: Any = None, **options: Any) -> Any:
        return (lambda given: given) if function is None else function


@cache
def _compiled(text: str) -> Any:
    lines = [line for line in text.split("\n") if not line.startswith(("import ", "from "))]
    return compile("\n".join(lines), "<generated>", "exec")


def run(
    text: str,
    kernel: str,
    arguments: Mapping[str, Any],
    program: tuple[int, int, int],
    grid: tuple[int, int, int],
) -> list[Turn]:
    """The turns of all loops of one program; the first holds what is read before them.

    Rows read under a mask that is false count as -1.
    """
    language = Language(program, grid)
    names: dict[str, Any] = {"tl": language, "triton": Decorator()}
    exec(_compiled(text), names)  # noqa: S102  # our own text
    names[kernel](**arguments)
    return language.turns
