"""Reductions over heads and free axes, as loops around a tile.

From: a reduction and a place.  To: lines with a loop over the members.  Where all of them are present or absent
together, a first loop takes every score for a number, which takes fewer operations; what is left when one was not shows
that, and then a second loop looks at each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spdsl.codegen.chains.affine import tidy
from spdsl.codegen.chains.places import Place
from spdsl.codegen.chains.totals import Total, is_share
from spdsl.semantics import build
from spdsl.semantics.graph import Pool, Softmax, is_free
from spdsl.semantics.nodes import Const, Expr, Index, Load
from spdsl.semantics.rewrite import free_axes

if TYPE_CHECKING:
    from spdsl.codegen.chains.values import Values


def over_heads(values: Values, stage: Pool, place: Place) -> Expr:
    """The reduction over an axis of heads, or over a free axis."""
    heads = _Heads(values=values, stage=stage, place=place)
    total = Total(stage=stage, values=values, what=values.known(place))
    with values.program.inside(values.known(place).depth):
        if heads.softmax is not None:
            found = _of_shares if stage.kind == "sum" else _largest_share
            return found(heads, heads.softmax, total)
        if heads.is_plain():
            return _extreme(heads, total)
        total.begin()
        heads.each(lambda at: total.add(values.at(stage.value, at), values.at(stage.only, at), None))
        return total.end()


def _of_shares(heads: _Heads, softmax: Softmax, total: Total) -> Expr:
    """The sum of the shares that an entry has for several heads."""
    values, program = heads.values, heads.values.program
    late = heads.is_asked_late()
    total.begin()
    with values.taken_for_ordinary():
        heads.each(lambda at: total.add(values.share(softmax, at, masked=not late, plain=True), build.TRUE, None))
    only = values.at(heads.stage.only, heads.place) if late else build.TRUE
    program.line("# Shares are up to 1, unless scores are NaN or infinite: then they are found with more care.")
    with heads.where(only, f"~({total.value} <= 3.0e38)"):
        total.reset()
        heads.each(lambda at: total.add(values.share(softmax, at, masked=not late), build.TRUE, None))
    return _present(heads, only, total.end())


def _largest_share(heads: _Heads, softmax: Softmax, total: Total) -> Expr:
    """The largest of the shares that an entry has for several heads: that of the largest exponent."""
    values, program = heads.values, heads.values.program
    depth = len(program.stack) - 1
    total.begin()
    most = program.fresh("exponent")
    program.line(f"{most} = tl.full({total.what.shape}, float('-inf'), tl.float32)", total.what.depth)

    def add(at: Place) -> None:
        exponent, _, _ = values.relative(softmax, at)
        text = f"tl.maximum({most}, {program.text(exponent)}, propagate_nan=tl.PropagateNan.ALL)"
        program.line(f"{most} = {text}", len(program.stack) - 1)

    with values.taken_for_ordinary():
        heads.each(add)
    program.line(f"{total.value} = tl.exp2({most})", depth)
    only = values.at(heads.stage.only, heads.place)
    program.line("# Exponents are numbers, unless scores are NaN or infinite: then shares are found with more care.")
    with heads.where(only, f"~({most} <= 3.0e38)"):
        total.reset()
        heads.each(lambda at: total.add(values.share(softmax, at, masked=False), build.TRUE, None))
    return _present(heads, only, total.end())


def _extreme(heads: _Heads, total: Total) -> Expr:
    """The largest or smallest of the values of several heads, which are present or absent together."""
    values, program, stage = heads.values, heads.values.program, heads.stage
    total.begin(plain=True)
    with values.taken_for_ordinary():
        heads.each(lambda at: total.add_plain(values.at(stage.value, at)))
    only = values.at(stage.only, heads.place)
    program.line("# A NaN is absent: where there is one, the others are looked at one by one.")
    with heads.where(only, f"{total.value} != {total.value}"):
        inner = Total(stage=stage, values=values, what=total.what)
        inner.begin(depth=len(program.stack) - 1)
        heads.each(lambda at: inner.add(values.at(stage.value, at), build.TRUE, None))
        program.line(f"{total.value} = tl.where({inner.count}, {inner.value}, 0)")
    return _present(heads, only, total.end())


def _present(heads: _Heads, only: Expr, found: Expr) -> Expr:
    """A reduction where its members are present: that is asked once, after the loop."""
    program = heads.values.program
    if only == build.TRUE:
        return found
    text = f"tl.where({program.text(only)}, {program.atom(found)}, 0.0)"
    return program.let("total", text, program.of(found) | program.of(only), "float")


@dataclass(slots=True, kw_only=True)
class _Heads:
    """The members of a reduction at a place."""

    values: Values
    stage: Pool
    place: Place
    softmax: Softmax | None = field(init=False)

    def __post_init__(self) -> None:
        self.softmax = _filtered(self.values, self.stage)
        if self.stage.kind == "max" and (is_free(self.stage.over) or not self.is_asked_late()):
            self.softmax = None

    @property
    def ratio(self) -> int:
        """How many query heads a key head has."""
        return self.values.pattern.heads // self.values.pattern.groups

    @property
    def count(self) -> str:
        """How many members there are."""
        over, pattern = self.stage.over, self.values.pattern
        if over == "h" and self.stage.per == "g":
            return str(self.ratio)
        if over in ("h", "g"):
            return str(pattern.heads if over == "h" else pattern.groups)
        self.values.sizes[f"size_{over}"] = over
        return f"size_{over}"

    def is_plain(self) -> bool:
        """Whether the largest or smallest member is found without asking for each whether it is there."""
        stage = self.stage
        floats = stage.kind in ("max", "min") and stage.dtype == "float" and not is_share(self.values, stage.value)
        # Of a free axis there may be none.
        return floats and not is_free(stage.over) and self.is_asked_late()

    def is_asked_late(self) -> bool:
        """Whether the condition of the reduction does not depend on the member."""
        over, read = self.stage.over, free_axes(self.stage.only)
        return over not in read and not (over == "h" and "g" in read and self.stage.per != "g")

    def each(self, add: Callable[[Place], None]) -> None:
        """A loop that adds one member after the other; a single one stands by itself, so that what it needs of
        keys is loaded where that is best."""
        program, over = self.values.program, self.stage.over
        if self.count == "1":
            add(self._member(Const(value=0)))
            return
        member = program.fresh("member" if not is_free(over) else f"each_{over}")
        if self.stage.per == "g":
            self.values.places.limits[member] = self.ratio - 1
        with program.loop(f"for {member} in range({self.count}):", len(program.stack) - 1, member):
            add(self._member(Index(name=member)))

    def _member(self, index: Expr) -> Place:
        """The place of a member."""
        if self.stage.per == "g":
            index = build.add(build.mul(self.place.at["g"], self.ratio), index)
        inner = {axis: entry for axis, entry in self.place.at.items() if axis != self.stage.per}
        return Place(at={**inner, self.stage.over: tidy(index)})

    @contextmanager
    def where(self, only: Expr, wrong: str) -> Iterator[None]:
        """Lines for tiles in which something is wrong at an entry that is present."""
        program = self.values.program
        text = wrong if only == build.TRUE else f"({program.text(only)}) & ({wrong})"
        with program.loop(f"if tl.sum(({text}).to(tl.int32)) > 0:", len(program.stack) - 1):
            yield


def _filtered(values: Values, stage: Pool) -> Softmax | None:
    """The softmax of which a reduction is the sum or the maximum, where both have the same condition."""
    match stage:
        case Pool(kind="sum" | "max", value=Load(table=name)):
            inner = values.stages.get(name)
            return inner if isinstance(inner, Softmax) and inner.only == stage.only else None
        case _:
            return None
