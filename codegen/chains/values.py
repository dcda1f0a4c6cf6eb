"""From stages to lines of a kernel: the value of a stage at a tile of rows and columns.

Scores are matrix products (`products`), reductions are loops around the tile (`reductions`), and softmaxes divide by
sums that a kernel before this one has left.  Nothing crosses from one entry of a tile to another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from spdsl.codegen.chains.affine import tidy
from spdsl.codegen.chains.coarser import coarse_value, is_coarser
from spdsl.codegen.chains.columns import is_made_before
from spdsl.codegen.chains.paired import pairs_of, write_pairs
from spdsl.codegen.chains.parts import Arguments, Fold, Sums, Terms, Tile, Vectors
from spdsl.codegen.chains.places import FIRST_DISTANCE, Place, Places, UncoveredError
from spdsl.codegen.chains.presence import presence
from spdsl.codegen.chains.products import product, scale, score
from spdsl.codegen.chains.program import NOTHING, Known, Program
from spdsl.codegen.chains.reductions import pooled
from spdsl.codegen.chains.rows import belongs_to_rows
from spdsl.codegen.frame import LOG2E
from spdsl.semantics import build
from spdsl.semantics.graph import (
    DISTANCE,
    TENSORS,
    Mark,
    Pool,
    Score,
    Select,
    Softmax,
    Stage,
    index_of,
    side_of,
)
from spdsl.semantics.nodes import (
    BoundPattern,
    Dtype,
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
from spdsl.semantics.rewrite import free_axes, transform

FIRST_OF = {"q": Extent(name="q_start"), DISTANCE: FIRST_DISTANCE}
"""What the first entry of an axis stands for, where that is not 0."""


@dataclass(slots=True, kw_only=True)
class Values:
    """The values of the stages of a pattern in one kernel.

    ``terms`` says of how many numbers those of queries and of keys are sums, by the name of the score; ``deep`` is
    how many queries are folded into a row, if any are; ``alone``: all that is read was made beforehand.  While numbers
    are taken for ``ordinary``, an infinite query may leave NaNs, for which whoever says so looks afterwards.
    ``paired`` is how many products a score is the sum of; ``tiles`` are those of neighbours, by the names of entries.
    ``pairs``: where keys of the axis ``column`` are written, the stages of pairs of a row and a coarser entry that a
    kernel leaves before, and whether each has heads.
    """

    pattern: BoundPattern
    stages: Mapping[str, Stage]
    terms: Mapping[str, Terms]
    program: Program
    places: Places = field(init=False)
    vectors: dict[str, Vectors] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)
    factors: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reduced: dict[Reduce, str] = field(default_factory=dict)
    done: dict[tuple[object, ...], tuple[Expr, object]] = field(default_factory=dict)
    fold: Fold | None = None
    deep: int | None = None
    ordinary: bool = False
    alone: bool = False
    paired: int = 0
    tiles: dict[str, Tile] = field(default_factory=dict)
    pairs: dict[str, bool] | None = None
    column: str = ""

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
            arrays=tuple(self.arrays.items()),
            reduced=tuple((name, node) for node, name in self.reduced.items()),
            pairs=tuple((self.pairs or {}).items()),
        )

    @contextmanager
    def taken_for_ordinary(self) -> Iterator[None]:
        """While this lasts, no number is taken for infinite."""
        self.ordinary = True
        yield
        self.ordinary = False

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
                case Reduce(side=side, axis=str(), body=body) if free_axes(body) <= {side}:
                    return self._reduced(node, place)
                case Noise() | Reduce() | Top() | FreeParam():
                    raise UncoveredError(f"{type(node).__name__} inside of stages")
                case Param():
                    return None
                case _:
                    found = self.places.index(node, place)
                    # Members of an axis by a table are read there.
                    return None if found is None else tidy(transform(found, self._read))

        return tidy(transform(expr, rewrite, into_stages=False))

    def _read(self, node: Expr) -> Expr | None:
        return self._gathered(node) if isinstance(node, Load) else None

    def _reduced(self, node: Reduce, place: Place) -> Expr:
        """What a reduction over the positions of one side has for a member of its axis: made beforehand, for all."""
        axis = f"{node.side}.{node.axis}"
        name = self.reduced.setdefault(node, f"{node.kind}_{len(self.reduced)}")
        self.arrays[name] = (axis,)
        return self._element(name, (axis,), node.dtype, place)

    def _gathered(self, node: Load) -> Expr:
        """An element of an input; outside of it, the nearest."""
        program, name = self.program, node.table
        table = next(each for each in self.pattern.tables if each.name == name)
        what, offsets = NOTHING, [f"tl.cast(b, tl.int64) * stride_{name}_b"]
        axes, indices = table.axes, node.indices
        if axes and axes[0].kind == "b":
            if indices[0] != Index(name="b"):
                raise UncoveredError("inputs of other sequences")
            axes, indices = axes[1:], indices[1:]
        self.tables[name] = len(axes)
        for place, (axis, index) in enumerate(zip(axes, indices, strict=True)):
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
        key = (stage.name, place.key, self.ordinary)
        if key in self.done:
            value, scope = self.done[key]
            if any(scope is each for each in self.program.stack):
                return value
        depth = self.known(place).depth
        closed = presence(self, stage, place)
        match stage:
            case Pool() if closed is not None:
                value = self.program.name("present", closed)
            case _ if self.alone or belongs_to_rows(stage) or is_made_before(stage):
                value = self._made(stage, place)
            case _ if is_coarser(self, stage, place):
                value = coarse_value(self, stage, place)
            case Score():
                value = score(self, stage, place)
            case Pool():
                pairs = pairs_of(self, stage, place)
                value = pooled(self, stage, place) if pairs is None else write_pairs(self, pairs, place)
            case Softmax():
                value = self.share(stage, place)
            case Mark(value=expr):
                value = self.program.name("mark", self.at(expr, place))
            case Select():
                raise UncoveredError("selections among what a selection has chosen")
            case _:
                raise UncoveredError("selections by the result of attention")
        # Conditions of a whole tile stand deeper than all they are made of.
        self.done[key] = value, self.program.stack[max(depth, self.program.of(value).depth)]
        return value

    def _made(self, stage: Stage, place: Place) -> Expr:
        """What was made beforehand for a row, column or distance."""
        self.arrays[stage.name] = stage.axes
        return self._element(stage.name, stage.axes, stage.dtype, place)

    def _element(self, name: str, axes: tuple[str, ...], dtype: Dtype, place: Place) -> Expr:
        """An element of an array that was made beforehand; past the ends, the nearest."""
        program = self.program
        what, offsets = NOTHING, [f"tl.cast(b, tl.int64) * {name}_b"]
        for axis in axes:
            entry = self.at(index_of(axis), place)
            entry = build.sub(entry, FIRST_OF[axis]) if axis in FIRST_OF else entry
            what = what | program.of(entry)
            text = program.atom(entry, "entry")
            if side_of(axis) is not None or axis == DISTANCE:
                text = f"tl.minimum(tl.maximum({text}, 0), {name}_rows - 1)"
            offsets.append(f"tl.cast({text}, tl.int64) * {name}_{axis[:1]}")
        text = f"tl.load({name} + {' + '.join(offsets)})"
        text += {"bool": " != 0", "int": ".to(tl.int32)", "float": ".to(tl.float32)"}[dtype]
        return program.let("value_of", text, what, dtype)

    def known(self, place: Place) -> Known:
        """What is known of the indices of a place."""
        found = NOTHING
        for entry in place.at.values():
            found = found | self.program.of(entry)
        return found

    def share(self, stage: Softmax, place: Place, *, masked: bool = True, plain: bool = False) -> Expr:
        """The share of an entry in its row, of which an earlier kernel has found the sum; 0 where it is absent.

        Not ``masked`` it is anything where the entry is absent.  ``plain`` it is NaN or infinite where the entry's
        score is NaN, or infinite and the largest.
        """
        program = self.program
        exponent, place_of, whole = self.relative(stage, place)
        text = program.text(exponent)
        if not plain:
            # What is infinite gets the share that the sums allow.
            of = program.of(place_of)
            most = program.let("most_of", f"tl.load({stage.name}_sums + {program.atom(place_of)} * 2 + 1)", of, "float")
            text = f"tl.minimum(number({text}), {program.atom(most)})"
        if not masked:
            return program.let("share", f"tl.exp2({text})", whole, "float")
        text = self._only(stage, place, f"tl.exp2({text})", "0.0")
        return program.let("share", text, whole | program.of(self.at(stage.only, place)), "float")

    def relative(self, stage: Softmax, place: Place) -> tuple[Expr, Expr, Known]:
        """The exponent of 2 that gives the share of an entry, where that is ordinary; where the sums of its row stand,
        and what is known of the share."""
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
        place_of = program.let("row_of", " + ".join(at), what, "int")
        log = program.let("log_sum", f"tl.load({sums.name} + {program.atom(place_of)} * 2)", what, "float")
        value = self.exponent(stage, place)
        return build.sub(value, log), place_of, program.of(value) | what | self.known(place)

    def logit(self, stage: Softmax, place: Place) -> Expr:
        """What a softmax takes as an exponent of 2: −inf where an entry is absent."""
        program = self.program
        value = self.exponent(stage, place)
        what = program.of(value) | program.of(self.at(stage.only, place)) | self.known(place)
        text = f"number({program.text(value)})"
        return program.let("logit", self._only(stage, place, text, "float('-inf')"), what, "float")

    def exponent(self, stage: Softmax, place: Place) -> Expr:
        """The value of a softmax as an exponent of 2; a score's scale takes the factor."""
        program, inner = self.program, stage.value
        given = self.stages.get(inner.table) if isinstance(inner, Load) else None
        if isinstance(given, Score) and isinstance(inner, Load):
            at = Place(at=dict(zip(given.axes, (self.at(index, place) for index in inner.indices), strict=True)))
            factor = program.let("factor", f"{scale(self, given)} * {LOG2E}", NOTHING, "float")
            return build.mul(product(self, given, at), factor)
        return build.mul(self.at(inner, place), LOG2E)

    def _only(self, stage: Softmax, place: Place, text: str, nothing: str) -> str:
        """A value where an entry of a softmax is present."""
        only = self.at(stage.only, place)
        if only == build.TRUE:
            return text
        return f"tl.where({self.program.text(self.program.name('only', only))}, {text}, {nothing})"


def _size(name: str, program: Program) -> Expr:
    return build.sub(program.declare(name, NOTHING), 1)
