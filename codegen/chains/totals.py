"""A reduction of a tile while its members are added, one after the other: lines with tiles by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spdsl.codegen.chains.program import Known
from spdsl.semantics import build
from spdsl.semantics.graph import Pool, Softmax
from spdsl.semantics.nodes import Expr, Load, Param

if TYPE_CHECKING:
    from spdsl.codegen.chains.values import Values

TYPES = {"float": "tl.float32", "int": "tl.int32", "bool": "tl.int1"}


def is_share(values: Values, expr: Expr) -> bool:
    """Whether a value is one of a softmax, or a sum, mean or maximum of such: at least 0, and no NaN."""
    stage = values.stages.get(expr.table) if isinstance(expr, Load) else None
    if isinstance(stage, Pool):
        return stage.kind in ("sum", "mean", "max") and is_share(values, stage.value)
    return isinstance(stage, Softmax)


@dataclass(slots=True, kw_only=True)
class Total:
    """A reduction while its members are added: tiles by name."""

    stage: Pool
    values: Values
    what: Known
    value: str = ""
    count: str = ""
    shares: bool = False
    nothing: str = ""

    def begin(self, *, plain: bool = False, depth: int | None = None) -> None:
        """Nothing yet; ``plain`` members of an extreme are all there."""
        program, kind = self.values.program, self.stage.kind
        self.value = program.fresh(_NAMES[kind])
        # Shares are at least 0, and so is the largest of none.
        self.shares = kind == "max" and is_share(self.values, self.stage.value)
        empty = {
            "max": "0" if self.shares else "float('-inf')",
            "min": "float('inf')",
            "all": "True",
            "any": "False",
        }.get(kind, "0")
        if kind in ("max", "min") and self.stage.dtype == "int":
            empty = str(-(1 << 31) if kind == "max" else (1 << 31) - 1)
        self.nothing = f"{self.value} = tl.full({self.what.shape}, {empty}, {TYPES[self.stage.dtype]})"
        self._line(self.nothing, depth)
        if plain:
            return
        if kind in ("max", "min") and not self.shares:
            self.count = program.fresh("some")
            self._line(f"{self.count} = tl.full({self.what.shape}, False, tl.int1)", depth)
        elif kind == "mean":
            self.count = program.fresh("count")
            self._line(f"{self.count} = tl.full({self.what.shape}, 0, tl.int32)")

    def reset(self) -> None:
        """Nothing again; for sums."""
        self._line(self.nothing, len(self.values.program.stack) - 1)

    def _line(self, text: str, depth: int | None = None) -> None:
        self.values.program.line(text, self.what.depth if depth is None else depth)

    def add_plain(self, value: Expr) -> None:
        """One member more of an extreme; a NaN stays."""
        program = self.values.program
        better = "tl.maximum" if self.stage.kind == "max" else "tl.minimum"
        text = f"{better}({self.value}, {program.text(value)}, propagate_nan=tl.PropagateNan.ALL)"
        self._line(f"{self.value} = {text}", len(program.stack) - 1)

    def add(self, value: Expr, only: Expr, weight: Expr | None) -> None:
        """One member more."""
        program, kind = self.values.program, self.stage.kind
        deep = len(program.stack) - 1
        only = program.name("only", only)
        match kind:
            case "any" | "all":
                sign, text = ("|", "({0} & {1})") if kind == "any" else ("&", "({0} | ~{1})")
                if only == build.TRUE:
                    text = "{0}"
                elif value == build.TRUE and kind == "any":
                    text = "{1}"
                joined = text.format(program.atom(value), program.atom(only))
                self._line(f"{self.value} = {self.value} {sign} {joined}", deep)
            case "sum" | "mean":
                if weight is not None:
                    value = build.mul(value, weight)
                added = program.text(value)
                if only != build.TRUE:
                    added = f"tl.where({program.text(only)}, {added}, 0)"
                self._line(f"{self.value} += {added}", deep)
                if kind == "mean":
                    times = "1" if weight is None else program.text(weight)
                    times = times if only == build.TRUE else f"tl.where({program.text(only)}, {times}, 0)"
                    self._line(f"{self.count} += {times}", deep)
            case "max" if self.shares:
                at = program.text(value)
                at = at if only == build.TRUE else f"tl.where({program.text(only)}, {at}, 0.0)"
                self._line(f"{self.value} = tl.maximum({self.value}, {at})", deep)
            case _:
                at = program.atom(value, "value")
                there = program.text(only) if only != build.TRUE else ""
                if value.dtype == "float":
                    there = f"({there}) & ({at} == {at})" if there else f"{at} == {at}"
                there = program.atom(
                    program.let("counts", there or "True", program.of(only) | program.of(value), "bool")
                )
                better = "tl.maximum" if kind == "max" else "tl.minimum"
                self._line(f"{self.value} = tl.where({there}, {better}({self.value}, {at}), {self.value})", deep)
                self._line(f"{self.count} = {self.count} | {there}", deep)

    def end(self) -> Expr:
        """The reduction."""
        program, stage = self.values.program, self.stage
        program.known[self.value] = self.what
        if self.count:
            program.known[self.count] = self.what
        if stage.kind == "mean":
            text = f"{self.value} / tl.maximum({self.count}, 1)"
            return program.let("mean", text, self.what, stage.dtype)
        if stage.kind in ("max", "min") and self.count:
            return program.let("value", f"tl.where({self.count}, {self.value}, 0)", self.what, stage.dtype)
        return Param(name=self.value, dtype=stage.dtype)


_NAMES = {"sum": "total", "mean": "total", "max": "most", "min": "least", "any": "found", "all": "every"}
