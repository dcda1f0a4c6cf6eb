"""What is known while one pattern is checked: its library of definitions, and the tables, axes and grids found so far.

Patterns that are called are checked into the unit of their caller, so that all of it ends in one `CheckedPattern`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from spdsl.diagnostics import Span, error
from spdsl.grammar import nodes as syntax
from spdsl.semantics import axes as axis_rules
from spdsl.semantics import build
from spdsl.semantics import nodes as ir
from spdsl.semantics.bounds import Facts, Range
from spdsl.semantics.expressions import Evaluator
from spdsl.semantics.graph import Export, Stage
from spdsl.semantics.nodes import Coord, Expr, Side
from spdsl.semantics.report import Report, did_you_mean
from spdsl.semantics.rewrite import on_side
from spdsl.semantics.scope import BUILTINS
from spdsl.semantics.values import POISON, Branch, FunctionRef, Merged, Scalar, Value
from spdsl.semantics.wording import excerpt

MAX_STEPS = 200_000
"""The most expressions that are looked at for one pattern, every call of a `def` counted."""

MAX_NESTING = 150
"""How deep expressions may nest, every call of a `def` counted: they are looked at by recursion."""

Watch: TypeAlias = Callable[[syntax.Expr, Value, Facts], None]
"""What wants to know the value of every expression of a pattern as it is found, calls not written out: editors."""

UNDECLARED = "declare it above, as a parameter, an input, an axis or a `let`; what another file defines needs `use`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """The definitions and patterns that a file sees, by name; ``incomplete`` if a file it uses could not be read."""

    defs: Mapping[str, syntax.Def] = field(default_factory=dict)
    patterns: Mapping[str, syntax.Pattern] = field(default_factory=dict)
    incomplete: bool = False


def _looked_up(coordinate: Coord, what: str) -> Expr:
    """The first or last position of a member, or how many it has, as a reduction over positions."""
    kind: Literal["min", "max", "sum"] = "min" if what == "first" else "max" if what == "last" else "sum"
    body: Expr = build.lift(1) if what == "size" else ir.Index(name=coordinate.side)
    return ir.Reduce(kind=kind, side=coordinate.side, axis=coordinate.axis, body=body, dtype="int")


class Unit:
    """The state of checking one pattern."""

    def __init__(
        self,
        library: Library,
        report: Report,
        *,
        root: str = "",
        broken: frozenset[str] = frozenset(),
        watch: Watch | None = None,
    ) -> None:
        self.library, self.report = library, report
        # The pattern that is checked, and the definitions that are wrong by themselves.
        self.root, self.broken = root, broken
        self._watch = watch
        self.tables: dict[str, ir.Table] = {}
        self.axes: dict[str, ir.Axis] = {}
        self.grids: list[ir.Grid] = []
        self.stages: dict[str, Stage] = {}
        self.exports: dict[str, Export] = {}
        self.staged: dict[int, tuple[Branch, Merged]] = {}
        # Free axes whose members are the items of a tuple: how many.
        self.members: dict[str, int] = {}
        self.params: dict[str, Range] = {}
        self.table_ranges: dict[str, Range] = {}
        self.facts = Facts(params=self.params, tables=self.table_ranges)
        self.trail: list[tuple[str, str]] = []
        self.used: dict[str, syntax.Def | syntax.Pattern] = {}
        self.later: dict[str, Span | None] = {}
        self._grid_of: dict[str, str | None] = {}
        self._inside: dict[tuple[str, str], Scalar] = {}
        self._steps = 0
        self._nesting = 0

    def saw(self, node: syntax.Expr, value: Value) -> None:
        """Tell who watches what an expression of the pattern itself means."""
        if self._watch is not None and not self.trail:
            self._watch(node, value, self.facts)

    def leave(self) -> None:
        """End a step of work."""
        self._nesting -= 1

    def enter(self, span: Span | None) -> None:
        """Begin a step of work.  Raises `SpatError` when definitions multiply or nest too deeply."""
        self._steps += 1
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            raise error(
                "SP216",
                "this is nested too deeply once every `def` is written out",
                span,
                help="name parts with `let`",
            )
        if self._steps > MAX_STEPS:
            raise error(
                "SP216",
                "this pattern becomes too large when every `def` is written out",
                span,
                help="name shared parts with `let`, so that they are worked out once",
            )

    # ------------------------------------------------------------ names

    def unknown(self, evaluator: Evaluator, node: syntax.Name) -> Value:
        """The value of a name that is not declared: a function without its call, or a mistake."""
        from spdsl.semantics.functions import FUNCTIONS
        from spdsl.semantics.unsupported import UNSUPPORTED

        name = node.id
        if name in self.library.defs:
            return FunctionRef(name=name, kind="def")
        if name in self.library.patterns:
            return FunctionRef(name=name, kind="pattern")
        if name in FUNCTIONS or name in UNSUPPORTED:
            return FunctionRef(name=name, kind="function")
        if self.comes_later(name):
            return self.refuse_early(evaluator, name, node.span)
        if name in evaluator.scope.coordinates:
            return evaluator.error("SP201", f"`{name}` needs a side", node.span, help=f"write `q.{name}` or `k.{name}`")
        if self.library.incomplete:
            # It may be in the file that could not be read.
            return POISON
        known = [*evaluator.scope.entries, *BUILTINS, *self.library.defs, *self.library.patterns, *FUNCTIONS]
        return evaluator.error(
            "SP201", f"unknown name `{name}`", node.span, help=did_you_mean(name, known) or UNDECLARED
        )

    def comes_later(self, name: str) -> bool:
        """Whether the pattern declares a name further down."""
        return name in self.later and not self.trail

    def refuse_early(self, evaluator: Evaluator, name: str, span: Span | None) -> Value:
        """A name that is declared further down is a mistake (SP208)."""
        declared = self.later[name]
        line = f"declared on line {declared.line}" if declared else ""
        return evaluator.error("SP208", f"`{name}` is used before it is declared", span, note=line, help="move it up")

    def stage_name(self) -> str:
        """A name for the next stage, which no input has."""
        number = len(self.stages)
        while f"stage_{number}" in self.tables:
            number += 1
        return f"stage_{number}"

    def mention(self, name: str) -> None:
        """Keep a definition that only a refused construct calls."""
        found = self.library.defs.get(name) or self.library.patterns.get(name)
        if found is not None:
            self.used.setdefault(name, found)

    # ------------------------------------------------------------ axes and grids

    def fresh(self, name: str) -> str:
        """The name, or the name with the first free number, for an axis or grid of a called pattern."""
        taken = {*self.axes, *self._grid_of, *(grid.name for grid in self.grids)}
        candidate, number = name, 2
        while candidate in taken:
            candidate, number = f"{name}_{number}", number + 1
        return candidate

    def add_axis(self, axis: ir.Axis) -> None:
        """Make an axis known; its coordinates belong to the named grid whose coordinate it divides."""
        grid = None
        for part in axis.of:
            if isinstance(part, Coord):
                grid = grid or self._grid_of.get(part.axis)
        self.axes[axis.name] = axis
        self._grid_of[axis.name] = grid

    def add_grid(self, grid: ir.Grid) -> None:
        """Make a grid and its coordinates known; without a name, those of a nested grid belong to the outer one."""
        outer = self._grid_of.get(grid.of.axis) if isinstance(grid.of, Coord) else None
        self.grids.append(grid)
        for name, _ in grid.coordinates:
            self._grid_of[name] = grid.name if grid.name is not None else outer

    def guards(self, side: Side, coordinate: str) -> frozenset[tuple[Side, str]]:
        """The condition under which a coordinate means something."""
        grid = self._grid_of.get(coordinate)
        return frozenset() if grid is None else frozenset(((side, grid),))

    def inside(self, side: Side, name: str) -> Scalar:
        """Whether the position of a side lies in a named grid."""
        key = (side, name)
        if key not in self._inside:
            grid = next(grid for grid in self.grids if grid.name == name)
            total: Expr = grid.coordinates[0][1]
            for _, extent in grid.coordinates[1:]:
                total = build.mul(total, extent)
            where = on_side(grid.of, side)
            within = build.conj(build.apply("le", 0, where), build.apply("lt", where, total))
            axes: frozenset[str] = frozenset((side,))
            size = 12
            if isinstance(grid.of, Coord):
                axes = frozenset((f"{side}.{grid.of.axis}",))
                for _, outer in self.guards(side, grid.of.axis):
                    condition = self.inside(side, outer)
                    within = build.conj(condition.expr, within)
                    axes, size = axes | condition.axes, size + condition.size
            self._inside[key] = Scalar(expr=within, axes=axes, size=size)
        return self._inside[key]

    def extent(self, name: str) -> Expr:
        """How many coordinates a grid coordinate or an axis has; of `token`, the number of keys."""
        if name == "token":
            return ir.Extent(name="n")
        for grid in self.grids:
            for coordinate, extent in grid.coordinates:
                if coordinate == name:
                    return extent
        return self.count(name)

    def count(self, name: str) -> Expr:
        """``name.count``."""
        if name in self.axes:
            return axis_rules.count(self.axes[name])
        return self.extent(name)

    def coordinate_of(self, axis: ir.TableAxis) -> str:
        """The coordinate that a table axis of kind ``axis`` counts, such as ``q.blk``."""
        return axis.label

    def member(self, evaluator: Evaluator, coordinate: Coord, node: syntax.Attribute) -> Value:
        """``k.blk.first``, ``k.blk.last`` and ``k.blk.size``."""
        rules = {"first": axis_rules.first, "last": axis_rules.last, "size": axis_rules.size}
        if node.name not in rules:
            help = did_you_mean(node.name, rules) or "a coordinate has `.first`, `.last` and `.size`"
            if node.name == "count":
                help = f"the number of coordinates is `{coordinate.axis}.count`"
            return evaluator.error("SP207", f"a coordinate has no `{node.name}`", node.span, help=help)
        axis = self.axes.get(coordinate.axis)
        if axis is None:
            return evaluator.error(
                "SP207",
                f"{excerpt(node.value)} is a coordinate of a grid, which has no `{node.name}`",
                node.span,
                help="only members of an `axis` have a first and a last position",
            )
        expr = rules[node.name](axis, coordinate, self.axes)
        name = f"{coordinate.side}.{coordinate.axis}"
        if expr is None and axis.table is None and node.name != "size":
            return evaluator.unsupported(
                f"`.{node.name}` of an axis by several coordinates",
                node.span,
                help=f"write `{'min' if node.name == 'first' else 'max'}({coordinate.side}, per = {name})`",
            )
        if expr is None:
            # Members by a table, and tiles, are looked up: among the positions that exist.
            expr = _looked_up(coordinate, node.name)
        return Scalar(
            expr=build.place(expr, node.span),
            axes=frozenset((name,)),
            guards=self.guards(coordinate.side, coordinate.axis),
            size=8,
        )
