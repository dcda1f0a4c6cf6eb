"""Reductions as loops around a tile: over heads, free axes, and the entries of an axis that belong to a coarser one.

From: a reduction and a place.  To: lines with a loop that adds tiles to a tile; where conditions count modulo
something, members of positions are written out, so that those which never count are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spdsl.codegen.chains.affine import tidy
from spdsl.codegen.chains.places import Members, Place, UncoveredError
from spdsl.codegen.chains.program import NOTHING, Known
from spdsl.semantics import build
from spdsl.semantics.graph import Pool, Softmax, is_free, side_of
from spdsl.semantics.nodes import Apply, Const, Expr, Extent, Index, Load, Param
from spdsl.semantics.rewrite import walk

if TYPE_CHECKING:
    from spdsl.codegen.chains.values import Values

UNROLLED = 16
"""The most members of a loop that is written out, so that conditions on their numbers are decided beforehand."""

TYPES = {"float": "tl.float32", "int": "tl.int32", "bool": "tl.int1"}


def pooled(values: Values, stage: Pool, place: Place) -> Expr:
    """The value of a reduction at a place."""
    if side_of(stage.over) is None and stage.over != "q-k":
        return _over_heads(values, stage, place)
    if stage.per is None or side_of(stage.per) is None:
        raise UncoveredError("reductions over all queries or keys, and per distance")
    return _over_members(values, stage, place)


def _over_heads(values: Values, stage: Pool, place: Place) -> Expr:
    """A reduction over heads, or over a free axis."""
    program, over = values.program, stage.over
    inner = {axis: entry for axis, entry in place.at.items() if axis != stage.per}
    ratio = values.pattern.heads // values.pattern.groups
    if over == "h" and stage.per == "g":
        count: str = str(ratio)
    elif over in ("h", "g"):
        count = str(values.pattern.heads if over == "h" else values.pattern.groups)
    else:
        values.sizes[f"size_{over}"] = over
        count = f"size_{over}"
    total = _Total(stage=stage, values=values, what=values.known(place))
    total.begin()
    member = program.fresh("member" if not is_free(over) else f"each_{over}")
    depth = values.known(place).depth
    with program.loop(f"for {member} in range({count}):", depth, member):
        index: Expr = Index(name=member)
        if stage.per == "g":
            values.places.limits[member] = ratio - 1
            index = build.add(build.mul(place.at["g"], ratio), index)
        at = Place(at={**inner, over: tidy(index)})
        softmax = _filtered(values, stage)
        if softmax is None:
            total.add(values.at(stage.value, at), values.at(stage.only, at), None)
            only = None
        else:
            only = values.at(stage.only, at)
            late = program.of(only).depth <= depth
            total.add(values.share(softmax, at, masked=not late), build.TRUE, None)
            only = only if late and only != build.TRUE else None
    found = total.end()
    if only is None:
        return found
    # The condition is the same for all members: it is asked once, after the sum.
    text = f"tl.where({program.text(only)}, {program.atom(found)}, 0.0)"
    return program.let("total", text, program.of(found) | program.of(only), "float")


def _filtered(values: Values, stage: Pool) -> Softmax | None:
    """The softmax of which a reduction is the sum, where both have the same condition."""
    match stage:
        case Pool(kind="sum", value=Load(table=name)):
            inner = values.stages.get(name)
            return inner if isinstance(inner, Softmax) and inner.only == stage.only else None
        case _:
            return None


def is_share(values: Values, expr: Expr) -> bool:
    """Whether a value is one of a softmax, or a sum, mean or maximum of such: at least 0, and no NaN."""
    stage = values.stages.get(expr.table) if isinstance(expr, Load) else None
    if isinstance(stage, Pool):
        return stage.kind in ("sum", "mean", "max") and is_share(values, stage.value)
    return isinstance(stage, Softmax)


def _over_members(values: Values, stage: Pool, place: Place) -> Expr:
    """A reduction over the entries of an axis of queries or keys that belong to a coarser entry."""
    program, over = values.program, stage.over
    assert stage.per is not None
    members = values.places.members(over, stage.per, place.at[stage.per], stage.windows)
    total = _Total(stage=stage, values=values, what=values.known(place))
    total.begin()
    depth = values.known(place).depth
    if members.most == 1 or (members.most <= UNROLLED and _counts_modulo(values, stage)):
        with program.inside(depth):
            for number in range(members.most):
                _add_member(values, stage, place, members, Const(value=number), total)
    else:
        member = program.fresh("member")
        with program.loop(f"for {member} in range({members.most}):", depth, member):
            _add_member(values, stage, place, members, Index(name=member), total)
    return total.end()


def _add_member(values: Values, stage: Pool, place: Place, members: Members, number: Expr, total: _Total) -> None:
    at, there, weight = member(values, stage, place, members, number)
    only = build.conj(values.at(stage.only, at), there)
    if tidy(only) == build.FALSE:
        return
    value = values.at(stage.value, at)
    if value != build.FALSE or stage.kind != "any":
        total.add(value, only, weight)


def member(
    values: Values, stage: Pool, place: Place, members: Members, number: Expr
) -> tuple[Place, Expr, Expr | None]:
    """The place of a member, whether it exists, and how often it counts."""
    assert stage.per is not None
    over, per = stage.over, stage.per
    entry = tidy(build.add(members.first, number))
    at = Place(at={**{axis: each for axis, each in place.at.items() if axis != per}, over: entry})
    begin, end = positions(over)
    if over in ("q", "k"):
        there = build.conj(build.apply("ge", entry, begin), build.apply("le", entry, end))
    else:
        there = build.conj(build.apply("ge", entry, 0), build.apply("lt", entry, count(values, over)))
    if members.last is not None:
        there = build.conj(there, build.apply("le", entry, members.last))
    if not members.weighed:
        return at, tidy(there), None
    weight = values.places.shared(over, entry, per, place.at[per], begin, end)
    return at, tidy(build.conj(there, build.apply("gt", weight, 0))), weight


def positions(axis: str) -> tuple[Expr, Expr]:
    """The first and the last position that exist on the side of an axis."""
    if side_of(axis) == "k":
        return Const(value=0), build.sub(Extent(name="n"), 1)
    start = Extent(name="q_start")
    return build.apply("max", start, 0), build.sub(build.add(start, Extent(name="nq")), 1)


def count(values: Values, axis: str) -> Expr:
    """How many entries an axis has."""
    if side_of(axis) == "k":
        return values.places.count(axis)
    name = f"count_{axis.partition('.')[2]}" if "." in axis else "nq"
    if name != "nq":
        values.sizes[name] = axis
    return values.program.declare(name, NOTHING) if name != "nq" else Extent(name="nq")


def _counts_modulo(values: Values, stage: Pool) -> bool:
    """Whether a condition below a reduction of positions counts modulo something."""
    if stage.over not in ("q", "k"):
        return False
    seen, stack = set[str](), [stage.only, stage.value]
    while stack:
        for node in walk(stack.pop()):
            if isinstance(node, Apply) and node.op == "mod":
                return True
            if isinstance(node, Load) and node.table in values.stages and node.table not in seen:
                seen.add(node.table)
                inner = values.stages[node.table]
                if isinstance(inner, Pool):
                    stack += [inner.only, inner.value]
    return False


# ---------------------------------------------------------------- sums so far


@dataclass(slots=True, kw_only=True)
class _Total:
    """A reduction while its members are added: tiles by name."""

    stage: Pool
    values: Values
    what: Known
    value: str = ""
    count: str = ""
    shares: bool = False

    def begin(self) -> None:
        """Nothing yet."""
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
        self._line(f"{self.value} = tl.full({self.what.shape}, {empty}, {TYPES[self.stage.dtype]})")
        if kind in ("max", "min") and not self.shares:
            self.count = program.fresh("some")
            self._line(f"{self.count} = tl.full({self.what.shape}, False, tl.int1)")
        elif kind == "mean":
            self.count = program.fresh("count")
            self._line(f"{self.count} = tl.full({self.what.shape}, 0, tl.int32)")

    def _line(self, text: str, depth: int | None = None) -> None:
        self.values.program.line(text, self.what.depth if depth is None else depth)

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
        if stage.kind in ("max", "min") and not self.shares:
            return program.let("value", f"tl.where({self.count}, {self.value}, 0)", self.what, stage.dtype)
        return Param(name=self.value, dtype=stage.dtype)


_NAMES = {"sum": "total", "mean": "total", "max": "most", "min": "least", "any": "found", "all": "every"}
