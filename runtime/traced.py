"""Integers that a recorded call leaves open, and what has to hold of them.

From: the lengths and strides of one call.  To: a function that, for those of another call, gives the numbers of its
launches, or None where the call would have gone another way.

A `Traced` behaves like the int it stands for.  Arithmetic makes others; whatever asks for its value, by comparing,
hashing or converting, adds a condition to the `Trace`: that the answer stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

Numbers: TypeAlias = "Callable[..., tuple[int, ...] | None]"


@dataclass(slots=True, kw_only=True)
class Trace:
    """Open numbers by name, in the order in which they are given later, and conditions on them."""

    names: list[str] = field(default_factory=list)
    conditions: dict[str, None] = field(default_factory=dict)

    def number(self, name: str, value: int) -> int:
        """An open number; it passes for an int."""
        self.names.append(name)
        return cast("int", Traced(text=name, value=value, trace=self))

    def holds(self, text: str, answer: bool) -> bool:
        """Note that a condition has this answer."""
        self.conditions[text if answer else f"not {text}"] = None
        return answer

    def function(self, results: Sequence[Traced]) -> Numbers:
        """From open numbers in the order of ``names`` to ``results``; None where a condition does not hold."""
        made = "".join(f"{each.text}, " for each in results)
        conditions = " and ".join(self.conditions) or "True"
        text = f"lambda {', '.join(self.names)}: ({made}) if {conditions} else None"
        # Nothing but names from here, numbers and operators of `Traced` is in it.
        return cast("Numbers", eval(text, {"__builtins__": {}}))  # noqa: S307


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traced:
    """An int, and the text that computes it from open numbers."""

    text: str
    value: int
    trace: Trace

    def _made(self, operator: str, left: object, right: object, value: Callable[[int, int], int]) -> Traced:
        if not (isinstance(left, int | Traced) and isinstance(right, int | Traced)):
            return NotImplemented  # type: ignore[no-any-return]
        text = f"({_text(left)} {operator} {_text(right)})"
        return Traced(text=text, value=value(concrete(left), concrete(right)), trace=self.trace)

    def __add__(self, other: object) -> Traced:
        return self._made("+", self, other, int.__add__)

    def __radd__(self, other: object) -> Traced:
        return self._made("+", other, self, int.__add__)

    def __sub__(self, other: object) -> Traced:
        return self._made("-", self, other, int.__sub__)

    def __rsub__(self, other: object) -> Traced:
        return self._made("-", other, self, int.__sub__)

    def __mul__(self, other: object) -> Traced:
        return self._made("*", self, other, int.__mul__)

    def __rmul__(self, other: object) -> Traced:
        return self._made("*", other, self, int.__mul__)

    def __floordiv__(self, other: object) -> Traced:
        return self._made("//", self, other, int.__floordiv__)

    def __mod__(self, other: object) -> Traced:
        return self._made("%", self, other, int.__mod__)

    def __neg__(self) -> Traced:
        return self._made("-", 0, self, int.__sub__)

    def _asked(self, operator: str, other: object, answer: Callable[[int, int], bool]) -> bool:
        if not isinstance(other, int | Traced):
            return NotImplemented  # type: ignore[no-any-return]
        return self.trace.holds(f"({self.text} {operator} {_text(other)})", answer(self.value, concrete(other)))

    def __eq__(self, other: object) -> bool:
        return self._asked("==", other, int.__eq__)

    def __ne__(self, other: object) -> bool:
        return self._asked("!=", other, int.__ne__)

    def __lt__(self, other: object) -> bool:
        return self._asked("<", other, int.__lt__)

    def __le__(self, other: object) -> bool:
        return self._asked("<=", other, int.__le__)

    def __gt__(self, other: object) -> bool:
        return self._asked(">", other, int.__gt__)

    def __ge__(self, other: object) -> bool:
        return self._asked(">=", other, int.__ge__)

    def __bool__(self) -> bool:
        return self != 0

    def __index__(self) -> int:
        self.trace.holds(f"({self.text} == {self.value})", True)
        return self.value

    __int__ = __index__

    def __hash__(self) -> int:
        return hash(self.__index__())


def _text(number: int | Traced) -> str:
    return number.text if isinstance(number, Traced) else f"({int(number)})"


def concrete(number: Any) -> Any:
    """The value of a number, and anything else as it is; nothing is noted, so nothing may be decided by it."""
    return number.value if isinstance(number, Traced) else number
