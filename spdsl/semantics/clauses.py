"""What a softmax is made of: ``keep`` and settings, in ``attend { … }`` or bare, and choices between two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from spdsl.diagnostics import Span
from spdsl.grammar import nodes as syntax
from spdsl.semantics import branches, build, spaces
from spdsl.semantics.expressions import Arg, Evaluator
from spdsl.semantics.graph import is_free
from spdsl.semantics.nodes import Attend, Expr, Extent
from spdsl.semantics.report import listing
from spdsl.semantics.rewrite import mentions
from spdsl.semantics.unsupported import UNSUPPORTED_SETTINGS
from spdsl.semantics.values import POISON, Branch, Candidates, Merged, Poison, Scalar, Value
from spdsl.semantics.wording import excerpt

SETTINGS: dict[str, frozenset[str]] = {
    "bias": frozenset("bhgqk"),
    "scale": frozenset(),
    "softcap": frozenset(),
    "sink_logit": frozenset("bhgq"),
}
"""The settings of a softmax and the indices they may vary along."""


@dataclass(slots=True, kw_only=True)
class Clauses:
    """The clauses of one softmax as they are read."""

    keeps: list[Scalar] = field(default_factory=list)
    settings: dict[str, Scalar] = field(default_factory=dict)
    places: dict[str, Span | None] = field(default_factory=dict)
    streams: list[Branch] = field(default_factory=list)
    poisoned: bool = False
    free: bool = False
    """Whether sets may vary along free axes: those of ``attend { … }``, which are closed around it."""


def body(ev: Evaluator, node: syntax.Body) -> Value:
    """The value of ``attend(…) { … }``."""
    if node.kind == "linear":
        ev.mark_used(node)
        return ev.unsupported("`linear`", node.span)
    given = branches.sources(ev, node)
    clauses = Clauses(free=True)
    for part in node.clauses:
        clause(ev, clauses, part)
    found = finish(ev, clauses, node.span, "`attend`")
    if isinstance(given, Poison) or not isinstance(found, Branch):
        return POISON
    if given is not None and found.streams:
        return ev.unsupported("`keep … from` beside other keys of `attend`", node.span)
    return replace(found, sources=given)


def clause(ev: Evaluator, clauses: Clauses, node: syntax.Clause) -> None:
    """Check one clause and add it."""
    match node:
        case syntax.Keep():
            if node.source is not None or node.weight is not None:
                stream = branches.stream(ev, node)
                if stream is None:
                    clauses.poisoned = True
                else:
                    clauses.streams.append(stream)
                return
            kept = ev.scalar(node.set, "bool", "`keep`")
            if kept is None or not (clauses.free or spaces.closed(ev, kept, node.set.span, "`keep`")):
                clauses.poisoned = True
            else:
                clauses.keeps.append(kept)
        case syntax.Setting():
            _setting(ev, clauses, node)


def _setting(ev: Evaluator, clauses: Clauses, node: syntax.Setting) -> None:
    word = node.word
    if word in UNSUPPORTED_SETTINGS:
        ev.mark_used(node.value)
        ev.unsupported(f"`{word}`", node.span)
        clauses.poisoned = True
        return
    value = ev.scalar(node.value, "number", f"`{word}`")
    if word in clauses.places:
        first = clauses.places[word]
        line = f"the first is on line {first.line}" if first else ""
        ev.error(
            "SP213",
            f"`{word}` is given twice",
            node.span,
            note=line,
            help="a softmax has one; add biases up in one expression" if word == "bias" else "a softmax has one",
        )
        value = None
    clauses.places.setdefault(word, node.span)
    if value is None or not spaces.closed(ev, value, node.value.span, f"`{word}`"):
        clauses.poisoned = True
        return
    excess = sorted(name for name in value.axes if name.partition(".")[0] not in SETTINGS[word])
    runtime = [name for name in ("n", "nq") if mentions(value.expr, Extent(name=name))]
    if excess or (not SETTINGS[word] and (runtime or has_loads(value.expr))):
        what = listing(excess or runtime) if excess or runtime else "an input"
        may = "`b`, `h`, `g` and `q` alone" if SETTINGS[word] else "parameters alone"
        ev.error(
            "SP213",
            f"`{word}` depends on {what}, but may depend on {may}",
            node.value.span,
            help="what varies along pairs belongs into `bias`",
        )
        clauses.poisoned = True
        return
    if value.guards:
        ev.unsupported(
            f"coordinates of a named grid in `{word}`",
            node.value.span,
            help="choose by `if q in … and k in … then … else 0.0` around comparisons",
        )
        clauses.poisoned = True
        return
    clauses.settings[word] = Scalar(expr=build.to_float(value.expr), axes=value.axes, size=value.size)


def has_loads(expr: Expr) -> bool:
    """Whether the value comes from an input."""
    from spdsl.semantics.nodes import Load
    from spdsl.semantics.rewrite import walk

    return any(isinstance(node, Load) for node in walk(expr))


def finish(ev: Evaluator, clauses: Clauses, span: Span | None, what: str) -> Value:
    """The softmax of the clauses: the union of its `keep`s, in which a pair counts once."""
    if clauses.poisoned:
        return POISON
    if not clauses.keeps and clauses.streams:
        # Settings hold for all streams; the first takes the place of the keys of the pattern.
        first, *others = clauses.streams
        shared = {word: value.expr for word, value in clauses.settings.items()}
        if "bias" in shared:
            return ev.unsupported("`bias` beside `keep … from`", span)
        return replace(first, attend=replace(first.attend, span=span, **shared), streams=tuple(others))
    if not clauses.keeps:
        return ev.error(
            "SP214",
            f"{what} keeps nothing",
            span,
            help="say which pairs count, for example `keep causal` or `keep all`",
        )
    whole = clauses.keeps[0]
    # The union has a place of its own, so that its first part can be told from the whole.
    everything = whole.expr.span and whole.expr.span.to(clauses.keeps[-1].expr.span)
    for kept in clauses.keeps[1:]:
        joined = ev.combine("or", (whole, kept), everything)
        if not isinstance(joined, Scalar):
            return POISON
        whole = joined
    settings: dict[str, Expr] = {word: value.expr for word, value in clauses.settings.items()}
    attend = Attend(
        keep=whole.expr,
        bias=settings.get("bias"),
        scale=settings.get("scale"),
        softcap=settings.get("softcap"),
        sink_logit=settings.get("sink_logit"),
        span=span,
    )
    return Branch(attend=attend, axes=whole.axes, size=whole.size, streams=tuple(clauses.streams))


def choose_branch(ev: Evaluator, condition: Scalar, yes: Branch, no: Branch, node: syntax.Choose) -> Value:
    """``if c then attend { … } else attend { … }`` as one softmax: every query has one side or the other.

    By key there is no such choice between softmaxes, but there is one between sets, which patterns are that only keep.
    """
    keys = sorted(name for name in condition.axes if name.partition(".")[0] == "k")
    if keys and all(_is_set(branch, side) for branch, side in ((yes, node.yes), (no, node.no))):
        return _chosen(ev, condition, yes, no, node)
    if keys:
        return ev.error(
            "SP213",
            f"a choice between softmaxes may not depend on {listing(keys)}",
            node.condition.span,
            help="choose inside one softmax: `attend { keep if … then … else … }`",
        )
    if yes.sources is not None or no.sources is not None or yes.streams or no.streams:
        return _either(ev, condition, yes, no, node)
    merged: dict[str, Expr | None] = {}
    for word in SETTINGS:
        one: Expr | None = getattr(yes.attend, word)
        two: Expr | None = getattr(no.attend, word)
        if one == two:
            merged[word] = one
        elif word == "bias" or (one is not None and two is not None and word == "sink_logit"):
            merged[word] = build.apply(
                "where",
                condition.expr,
                build.lift(0.0) if one is None else one,
                build.lift(0.0) if two is None else two,
            )
        else:
            return _either(ev, condition, yes, no, node)
    kept = _chosen(ev, condition, yes, no, node)
    if not isinstance(kept, Scalar):
        return POISON
    attend = Attend(keep=kept.expr, span=node.span, **merged)
    return Branch(attend=attend, axes=kept.axes, size=kept.size)


def _is_set(branch: Branch, side: syntax.Expr) -> bool:
    """Whether a side of a choice stands for its set: a pattern whose clauses are all `keep`, and no `attend { … }`."""
    plain = branch.sources is None and not branch.streams
    return (
        plain and not isinstance(side, syntax.Body) and all(getattr(branch.attend, word) is None for word in SETTINGS)
    )


def _chosen(ev: Evaluator, condition: Scalar, yes: Branch, no: Branch, node: syntax.Choose) -> Value:
    """The pairs of one side where the condition holds, and of the other elsewhere."""
    return ev.operate(
        "where",
        (
            Arg(value=condition, node=node.condition),
            Arg(value=Scalar(expr=yes.attend.keep, axes=yes.axes, size=yes.size), node=node.yes),
            Arg(value=Scalar(expr=no.attend.keep, axes=no.axes, size=no.size), node=node.no),
        ),
        node.span,
        "`if`",
    )


def _either(ev: Evaluator, condition: Scalar, yes: Branch, no: Branch, node: syntax.Choose) -> Value:
    """A choice between softmaxes that differ in more than their sets: each has its queries, and no others."""
    parts: list[Merged] = []
    opposite = ev.combine("not", (condition,), node.condition.span)
    for branch, where in ((yes, condition), (no, opposite)):
        if branch.attend.sink_logit is not None:
            return ev.unsupported("a choice between softmaxes over other keys, one with a `sink_logit`,", node.span)
        one = _where(ev, branch, where)
        made = None if one is None else branches.stage_of(ev, one)
        if made is None:
            return POISON
        parts.append(made)
    return branches.merged(ev, parts, counted=True) or POISON


def _where(ev: Evaluator, branch: Branch, condition: Value) -> Branch | None:
    """The softmax of those queries for which a condition holds; others keep nothing."""
    own = Scalar(expr=branch.attend.keep, axes=branch.axes, size=branch.size)
    if not isinstance(condition, Scalar):
        return None
    kept = ev.combine("and", (condition, own), branch.attend.keep.span)
    streams = [_where(ev, stream, condition) for stream in branch.streams]
    if not isinstance(kept, Scalar) or any(stream is None for stream in streams):
        return None
    return replace(
        branch,
        attend=replace(branch.attend, keep=kept.expr),
        axes=kept.axes,
        size=kept.size,
        streams=tuple(stream for stream in streams if stream is not None),
    )


Bare = Literal["clauses", "return"]


def result(ev: Evaluator, node: syntax.Return) -> Value:
    """The softmax that a pattern returns."""
    value = ev.evaluate(node.value)
    match value:
        case Candidates(value=Scalar(dtype="float") as number, only=only, forced=None):
            # What is absent is 0.
            present = build.apply("where", only.expr, number.expr, 0.0, span=node.value.span)
            value = Scalar(expr=present, axes=number.axes | only.axes, size=number.size + only.size + 2)
        case _:
            pass
    match value:
        case Branch(axes=axes) | Merged(value=Scalar(axes=axes)):
            left = sorted(axis for axis in axes if is_free(axis) and axis != "d")
            if left:
                return ev.error(
                    "SP219",
                    f"there is a softmax for each member of `{left[0]}`, but a pattern returns one",
                    node.value.span,
                    help=f"close the axis, for example with `mean(…, over = {left[0]})`",
                )
            return value
        case Scalar(dtype="float", axes=axes) if "d" in axes and "q" in axes:
            left = sorted(axis for axis in axes if (is_free(axis) and axis != "d") or axis[0] == "k")
            if left:
                return ev.error(
                    "SP219",
                    f"the axis `{left[0]}` is not closed, but a pattern returns vectors of queries",
                    node.value.span,
                    help="reduce over it",
                )
            return value
        case Scalar(dtype="float", axes=axes) if "d" in axes and any(axis.startswith("q.") for axis in axes):
            return ev.error(
                "SP212",
                "this has one vector for each block of queries, but a pattern returns one for each query",
                node.value.span,
                help="lift it with `at(…, q)`",
            )
        case Scalar(dtype="bool"):
            return ev.error(
                "SP214",
                f"{excerpt(node.value)} is a set, not a softmax",
                node.value.span,
                note="bool",
                help="write `keep` instead of `return`",
            )
        case _:
            arg = Arg(value=value, node=node.value)
            if ev.expect(arg, "bool", "`return`") is None:
                return POISON
            return ev.error(
                "SP214",
                "a pattern returns a softmax",
                node.value.span,
                note=ev.note(arg),
                help="write `return attend { keep … }`",
            )


def only_keeps(statements: Sequence[syntax.Statement]) -> Bare | None:
    """Whether a pattern states its clauses bare or returns a softmax; None if it does neither."""
    for statement in statements:
        match statement:
            case syntax.Keep() | syntax.Setting():
                return "clauses"
            case syntax.Return():
                return "return"
            case _:
                pass
    return None
