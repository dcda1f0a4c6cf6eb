"""From stages to lines of a kernel: the value of a stage at a tile of rows and columns.

Reductions are loops around the tile, and what they add up is a tile; scores are matrix products; softmaxes divide by
sums that a kernel before this one has left.  Nothing crosses from one entry of a tile to another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from spdsl.codegen.chains.affine import tidy
from spdsl.codegen.chains.intervals import Intervals
from spdsl.codegen.chains.parts import Arguments, Sums, Vectors
from spdsl.codegen.chains.places import Members, Place, Places, UncoveredError
from spdsl.codegen.chains.program import NOTHING, Known, Program
from spdsl.codegen.frame import LOG2E
from spdsl.semantics import build
from spdsl.semantics.graph import (
    TENSORS,
    Mark,
    Pool,
    Score,
    Select,
    Softmax,
    Stage,
    index_of,
    is_free,
    on_side,
    side_of,
)
from spdsl.semantics.nodes import (
    Apply,
    BoundPattern,
    Const,
    Expr,
    Extent,
    FreeParam,
    Index,
    Load,
    Noise,
    Param,
    Reduce,
    Top,
)
from spdsl.semantics.rewrite import free_axes, transform, walk

UNROLLED = 16
"""The most members of a loop that is written out, so that conditions on their numbers are decided beforehand."""

TYPES = {"float": "tl.float32", "int": "tl.int32", "bool": "tl.int1"}


@dataclass(slots=True, kw_only=True)
class Values:
    """The values of the stages of a pattern in one kernel.

    ``terms`` says of how many numbers each number of keys of a score is a sum, by the name of the score.
    """

    pattern: BoundPattern
    stages: Mapping[str, Stage]
    terms: Mapping[str, int]
    program: Program
    places: Places = field(init=False)
    vectors: dict[str, Vectors] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)
    factors: dict[str, str] = field(default_factory=dict)
    done: dict[tuple[object, ...], tuple[Expr, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.places = Places(pattern=self.pattern)

    def arguments(self) -> Arguments:
        """What the kernel takes, as far as it is written."""
        return Arguments(
            vectors=tuple(self.vectors.values()),
            sums=tuple(self.sums.values()),
            tables=tuple(self.tables.items()),
            sizes=tuple(self.sizes.items()),
            factors=tuple(self.factors.items()),
        )

    # ------------------------------------------------------------ expressions

    def at(self, expr: Expr, place: Place) -> Expr:
        """The expression at a place: what it reads is named, and stands in the lines written so far."""

        def rewrite(node: Expr) -> Expr | None:
            match node:
                case Load(table=name) if name in self.stages:
                    stage = self.stages[name]
                    return self.stage(stage, Place(at=dict(zip(stage.axes, node.indices, strict=True))))
                case Load(table=name) if name in TENSORS:
                    raise UncoveredError("single numbers of queries and keys")
                case Load():
                    return self._gathered(node)
                case Noise() | Reduce() | Top() | FreeParam():
                    raise UncoveredError(f"{type(node).__name__} inside of stages")
                case Param():
                    return None
                case _:
                    found = self.places.index(node, place)
                    return None if found is None else tidy(found)

        return tidy(transform(expr, rewrite))

    def _gathered(self, node: Load) -> Expr:
        """An element of an input; outside of it, the nearest."""
        program, name = self.program, node.table
        table = next(each for each in self.pattern.tables if each.name == name)
        self.tables[name] = len(table.axes)
        what, offsets = NOTHING, [f"tl.cast(b, tl.int64) * stride_{name}_b"]
        if table.axes and table.axes[0].kind == "b":
            raise UncoveredError("inputs that name the batch")
        for place, (axis, index) in enumerate(zip(table.axes, node.indices, strict=True)):
            at = build.sub(index, Extent(name="q_start")) if axis.kind == "q" else index
            what = what | program.of(at)
            inside = program.atom(build.apply("max", build.apply("min", at, _size(f"size_{name}_{place}", program)), 0))
            offsets.append(f"tl.cast({inside}, tl.int64) * stride_{name}_{place}")
        text = f"tl.load(t_{name} + ({' + '.join(offsets)}))"
        if node.dtype == "float":
            text += ".to(tl.float32)"
        elif node.dtype == "bool":
            text += " != 0"
        return program.let(f"{name}_at", text, what, node.dtype)

    # ------------------------------------------------------------ stages

    def stage(self, stage: Stage, place: Place) -> Expr:
        """The value of a stage at a place."""
        key = (stage.name, place.key)
        if key in self.done:
            value, scope = self.done[key]
            if any(scope is each for each in self.program.stack):
                return value
        depth = self._known(place).depth
        match stage:
            case Score():
                value = self._score(stage, place)
            case Pool():
                value = self._pool(stage, place)
            case Softmax():
                value = self._softmax(stage, place)
            case Mark(value=expr):
                value = self.program.name("mark", self.at(expr, place))
            case Select():
                raise UncoveredError("selections among what a selection has chosen")
            case _:
                raise UncoveredError("selections by the result of attention")
        self.done[key] = value, self.program.stack[depth]
        return value

    def _known(self, place: Place) -> Known:
        found = NOTHING
        for entry in place.at.values():
            found = found | self.program.of(entry)
        return found

    def _score(self, stage: Score, place: Place) -> Expr:
        """A matrix product, times the scale."""
        product = self._product(stage, place)
        return self.program.name("score", build.mul(product, Param(name=self._scale(stage), dtype="float")))

    def _scale(self, stage: Score) -> str:
        """The name of the factor of a score."""
        name = f"{stage.name}_scale"
        self.factors[name] = stage.name
        self.program.known[name] = NOTHING
        return name

    def _product(self, stage: Score, place: Place) -> Expr:
        """A matrix product."""
        program = self.program
        query, key = stage.left, stage.right
        if on_side(free_axes(query), "k") is not None:
            query, key = key, query
        terms = self.terms[stage.name]
        rows = self._vectors(f"{stage.name}_q", query, stage.over, "q")
        columns = self._vectors(f"{stage.name}_k", key, stage.over, "k")
        columns = self.vectors[columns.name] = replace(columns, terms=max(1, terms))
        left = self._tile(rows, place, query, terms, 0)
        found: Expr | None = None
        # The smallest terms first, so that none is lost beside the larger ones.
        for term in reversed(range(columns.terms)):
            right = self._tile(columns, place, key, terms, term)
            what = program.of(left) | program.of(right)
            so_far = "" if found is None else f", {program.atom(found)}"
            precision = ', input_precision="ieee"' if terms == 0 else ""
            text = f"tl.dot({program.text(left)}, {program.text(right)}{so_far}{precision})"
            found = program.let("product", text, what, "float")
        assert found is not None
        return found

    def _vectors(self, name: str, expr: Expr, over: str, side: str) -> Vectors:
        base, _ = wrapped(expr) if side == "q" else (expr, None)
        axes = sorted(axis for axis in free_axes(base) - {"b", over} if side_of(axis) is None)
        rows = on_side(free_axes(base), "q" if side == "q" else "k")
        if rows is None or on_side(free_axes(base), "k" if side == "q" else "q") is not None:
            raise UncoveredError("products that are not of queries with keys")
        found = Vectors(name=name, expr=base, axes=tuple(axes), rows=rows, feature=over)
        self.vectors.setdefault(name, found)
        return found

    def _tile(self, vectors: Vectors, place: Place, expr: Expr, terms: int, term: int) -> Expr:
        """Rows as ``[BLOCK_R, FEATURES]``, keys as ``[FEATURES, BLOCK_C]``; zeros where there are none."""
        program, name = self.program, vectors.name
        is_query = name.endswith("_q")
        what, base = NOTHING, [name, f"tl.cast(b, tl.int64) * {name}_b"]
        for axis in vectors.axes:
            index = self.at(index_of(axis), place)
            what = what | program.of(index)
            base.append(f"tl.cast({program.atom(index)}, tl.int64) * {name}_{axis}")
        if term:
            base.append(f"{term} * {name}_t")
        entry = self.at(index_of(vectors.rows), place)
        entry = build.sub(entry, Extent(name="q_start")) if vectors.rows == "q" else entry
        entry = program.name("entry", entry)
        whole = what | program.of(entry)
        feature = f"tl.arange(0, {name.upper()})"
        feature = program.atom(
            program.let("feature", f"{feature}[None, :]" if is_query else f"{feature}[:, None]", NOTHING, "int")
        )
        start = program.atom(program.let("start", " + ".join(base), what, "int"))
        at = program.atom(entry)
        inside = program.atom(program.let("there", f"({at} >= 0) & ({at} < {name}_rows)", program.of(entry), "bool"))
        text = f"tl.load({start} + {at} * {name}_r + {feature} * {name}_f, "
        text += f"mask={inside} & ({feature} < {name}_size), other=0.0)"
        text += ".to(tl.float32)" if terms == 0 else ""
        found = program.let("query" if is_query else "key", text, whole, "float")
        if not is_query:
            return found
        _, wrap = wrapped(expr)
        assert wrap is not None
        made = transform(wrap, lambda node: found if node == _HOLE else None)
        if made is found:
            return found
        plain = "" if terms == 0 else f".to({program.atom(found)}.dtype)"
        return program.let("query", f"({program.text(made)}){plain}", whole, "float")

    def _softmax(self, stage: Softmax, place: Place, *, masked: bool = True) -> Expr:
        """The share of an entry in its row, of which an earlier kernel has found the sum; 0 where it is absent.

        Not ``masked`` it is anything where the entry is absent.
        """
        program = self.program
        if side_of(stage.over) != "k":
            raise UncoveredError("softmaxes over anything but keys")
        sums = self.sums.setdefault(stage.name, Sums(name=f"{stage.name}_sums", stage=stage.name))
        what = NOTHING
        at = [f"tl.cast(b, tl.int64) * {sums.name}_b"]
        for axis in stage.axes:
            if axis == stage.over:
                continue
            entry = self.at(index_of(axis), place)
            entry = build.sub(entry, Extent(name="q_start")) if axis == "q" else entry
            what = what | program.of(entry)
            text = program.atom(entry, "entry")
            if side_of(axis) == "q":
                text = f"tl.minimum(tl.maximum({text}, 0), {sums.name}_rows - 1)"
                at.append(text)
            else:
                at.append(f"{text} * {sums.name}_h")
        place_of = program.atom(program.let("row_of", " + ".join(at), what, "int"))
        log = program.let("log_sum", f"tl.load({sums.name} + {place_of} * 2)", what, "float")
        most = program.let("most_of", f"tl.load({sums.name} + {place_of} * 2 + 1)", what, "float")
        value = self._exponent(stage, place)
        whole = program.of(value) | what | self._known(place)
        # What is infinite gets the share that the sums allow.
        text = f"tl.minimum(number({program.text(value)} - {program.atom(log)}), {program.atom(most)})"
        if not masked:
            return program.let("share", f"tl.exp2({text})", whole, "float")
        text = self._only(stage, place, f"tl.exp2({text})", "0.0")
        return program.let("share", text, whole | program.of(self.at(stage.only, place)), "float")

    def logit(self, stage: Softmax, place: Place) -> Expr:
        """What a softmax takes as an exponent of 2: −inf where an entry is absent."""
        program = self.program
        value = self._exponent(stage, place)
        what = program.of(value) | program.of(self.at(stage.only, place)) | self._known(place)
        text = f"number({program.text(value)})"
        return program.let("logit", self._only(stage, place, text, "float('-inf')"), what, "float")

    def _exponent(self, stage: Softmax, place: Place) -> Expr:
        """The value of a softmax as an exponent of 2; a score's scale takes the factor."""
        program, inner = self.program, stage.value
        score = self.stages.get(inner.table) if isinstance(inner, Load) else None
        if isinstance(score, Score) and isinstance(inner, Load):
            at = Place(at=dict(zip(score.axes, (self.at(index, place) for index in inner.indices), strict=True)))
            factor = program.let("factor", f"{self._scale(score)} * {LOG2E}", NOTHING, "float")
            return build.mul(self._product(score, at), factor)
        return build.mul(self.at(inner, place), LOG2E)

    def _only(self, stage: Softmax, place: Place, text: str, nothing: str) -> str:
        """A value where an entry of a softmax is present."""
        only = self.at(stage.only, place)
        if only == build.TRUE:
            return text
        return f"tl.where({self.program.text(self.program.name('only', only))}, {text}, {nothing})"

    # ------------------------------------------------------------ reductions

    def _pool(self, stage: Pool, place: Place) -> Expr:
        if side_of(stage.over) is None and stage.over != "q-k":
            return self._over_heads(stage, place)
        if stage.per is None or side_of(stage.per) is None:
            raise UncoveredError("reductions over all queries or keys, and per distance")
        return self._over_members(stage, place)

    def _over_heads(self, stage: Pool, place: Place) -> Expr:
        """A reduction over heads, or over a free axis."""
        program, over = self.program, stage.over
        inner = {axis: entry for axis, entry in place.at.items() if axis != stage.per}
        ratio = self.pattern.heads // self.pattern.groups
        if over == "h" and stage.per == "g":
            count: str = str(ratio)
        elif over in ("h", "g"):
            count = str(self.pattern.heads if over == "h" else self.pattern.groups)
        else:
            self.sizes[f"size_{over}"] = over
            count = f"size_{over}"
        total = _Total(stage=stage, values=self, what=self._known(place))
        total.begin()
        member = program.fresh("member" if not is_free(over) else over)
        depth = self._known(place).depth
        with program.loop(f"for {member} in range({count}):", depth, member):
            index: Expr = Index(name=member)
            self.places.limits[member] = ratio - 1
            if stage.per == "g":
                index = build.add(build.mul(place.at["g"], ratio), index)
            at = Place(at={**inner, over: tidy(index)})
            softmax = self._filtered(stage)
            if softmax is None:
                total.add(self.at(stage.value, at), self.at(stage.only, at), None)
                only = None
            else:
                only = self.at(stage.only, at)
                late = program.of(only).depth <= depth
                total.add(self._softmax(softmax, at, masked=not late), build.TRUE, None)
                only = only if late and only != build.TRUE else None
        found = total.end()
        if only is None:
            return found
        # The condition is the same for all members: it is asked once, after the sum.
        text = f"tl.where({program.text(only)}, {program.atom(found)}, 0.0)"
        return program.let("total", text, program.of(found) | program.of(only), "float")

    def _filtered(self, stage: Pool) -> Softmax | None:
        """The softmax of which a reduction is the sum, where both have the same condition."""
        match stage:
            case Pool(kind="sum", value=Load(table=name)):
                inner = self.stages.get(name)
                return inner if isinstance(inner, Softmax) and inner.only == stage.only else None
            case _:
                return None

    def is_share(self, expr: Expr) -> bool:
        """Whether a value is one of a softmax, or a sum, mean or maximum of such: at least 0, and no NaN."""
        stage = self.stages.get(expr.table) if isinstance(expr, Load) else None
        if isinstance(stage, Pool):
            return stage.kind in ("sum", "mean", "max") and self.is_share(stage.value)
        return isinstance(stage, Softmax)

    def _over_members(self, stage: Pool, place: Place) -> Expr:
        """A reduction over the entries of an axis of queries or keys that belong to a coarser entry."""
        program, over = self.program, stage.over
        assert stage.per is not None
        members = self.places.members(over, stage.per, place.at[stage.per], stage.windows)
        total = _Total(stage=stage, values=self, what=self._known(place))
        total.begin()
        depth = self._known(place).depth
        if members.most == 1 or (members.most <= UNROLLED and self._counts_modulo(stage)):
            with program.inside(depth):
                for number in range(members.most):
                    self._member(stage, place, members, Const(value=number), total)
        else:
            member = program.fresh("member")
            with program.loop(f"for {member} in range({members.most}):", depth, member):
                self._member(stage, place, members, Index(name=member), total)
        return total.end()

    def _member(self, stage: Pool, place: Place, members: Members, number: Expr, total: _Total) -> None:
        at, there, weight = self.member(stage, place, members, number)
        only = build.conj(self.at(stage.only, at), there)
        if tidy(only) == build.FALSE:
            return
        value = self.at(stage.value, at)
        if value != build.FALSE or stage.kind != "any":
            total.add(value, only, weight)

    def member(self, stage: Pool, place: Place, members: Members, number: Expr) -> tuple[Place, Expr, Expr | None]:
        """The place of a member, whether it exists, and how often it counts."""
        assert stage.per is not None
        over, per = stage.over, stage.per
        entry = tidy(build.add(members.first, number))
        at = Place(at={**{axis: each for axis, each in place.at.items() if axis != per}, over: entry})
        begin, end = self.positions(over)
        if over in ("q", "k"):
            there = build.conj(build.apply("ge", entry, begin), build.apply("le", entry, end))
        else:
            there = build.conj(build.apply("ge", entry, 0), build.apply("lt", entry, self.count(over)))
        if members.last is not None:
            there = build.conj(there, build.apply("le", entry, members.last))
        if not members.weighed:
            return at, tidy(there), None
        weight = self.places.shared(over, entry, per, place.at[per], begin, end)
        return at, tidy(build.conj(there, build.apply("gt", weight, 0))), weight

    def positions(self, axis: str) -> tuple[Expr, Expr]:
        """The first and the last position that exist on the side of an axis."""
        if side_of(axis) == "k":
            return Const(value=0), build.sub(Extent(name="n"), 1)
        start = Extent(name="q_start")
        return build.apply("max", start, 0), build.sub(build.add(start, Extent(name="nq")), 1)

    def count(self, axis: str) -> Expr:
        """How many entries an axis has."""
        if side_of(axis) == "k":
            return self.places.count(axis)
        name = f"count_{axis.partition('.')[2]}" if "." in axis else "nq"
        if name != "nq":
            self.sizes[name] = axis
        return self.program.declare(name, NOTHING) if name != "nq" else Extent(name="nq")

    def _counts_modulo(self, stage: Pool) -> bool:
        """Whether a condition below a reduction of positions counts modulo something."""
        if stage.over not in ("q", "k"):
            return False
        seen, stack = set[str](), [stage.only, stage.value]
        while stack:
            for node in walk(stack.pop()):
                if isinstance(node, Apply) and node.op == "mod":
                    return True
                if isinstance(node, Load) and node.table in self.stages and node.table not in seen:
                    seen.add(node.table)
                    inner = self.stages[node.table]
                    if isinstance(inner, Pool):
                        stack += [inner.only, inner.value]
        return False

    # ------------------------------------------------------------ tiles that may be left out

    def intervals(self, ends: Mapping[str, tuple[Expr, Expr]]) -> Intervals:
        """What decides conditions from the ends of names."""

        def inside(expr: Expr) -> tuple[Expr, Intervals] | None:
            match expr:
                case Load(table=name, indices=indices) if isinstance(self.stages.get(name), Pool):
                    stage = self.stages[name]
                    assert isinstance(stage, Pool)
                    if stage.kind != "any" or stage.per is None or side_of(stage.per) is None:
                        return None
                    return self._opened(stage, Place(at=dict(zip(stage.axes, indices, strict=True))), ends)
                case _:
                    return None

        return Intervals(ends=ends, inside=inside)

    def _opened(
        self, stage: Pool, place: Place, ends: Mapping[str, tuple[Expr, Expr]]
    ) -> tuple[Expr, Intervals] | None:
        assert stage.per is not None
        members = self.places.members(stage.over, stage.per, place.at[stage.per], stage.windows)
        number = Index(name=f"?{stage.name}")
        at, there, _ = self.member(stage, place, members, number)
        condition = build.conj(self.condition(stage.value, at), self.condition(stage.only, at), there)
        known = {**ends, number.name: (Const(value=0), Const(value=members.most - 1))}
        return condition, self.intervals(known)

    def condition(self, expr: Expr, place: Place) -> Expr:
        """A condition at a place, with stages and tables left as they are."""

        def rewrite(node: Expr) -> Expr | None:
            found = self.places.index(node, place)
            return None if found is None else tidy(found)

        return tidy(transform(expr, rewrite))


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
        self.shares = kind == "max" and self.values.is_share(self.stage.value)
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

_HOLE = Param(name="?", dtype="float")


def wrapped(expr: Expr) -> tuple[Expr, Expr]:
    """What is loaded of an array of queries, and what is then done to its numbers without rounding any."""
    match expr:
        case Apply(op="max" | "min" as op, args=(inner, Const(value=0 | 0.0) as nothing)):
            base, wrap = wrapped(inner)
            return base, replace(expr, op=op, args=(wrap, nothing))
        case Apply(op="neg" | "abs", args=(inner,)):
            base, wrap = wrapped(inner)
            return base, replace(expr, args=(wrap,))
        case _:
            return expr, _HOLE


def _size(name: str, program: Program) -> Expr:
    return build.sub(program.declare(name, NOTHING), 1)
