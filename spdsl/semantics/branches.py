"""Softmaxes as values: over other tensors than Q, K and V, merged, lifted to positions, and computed with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from spdsl.grammar import nodes as syntax
from spdsl.semantics import build, spaces
from spdsl.semantics.access import load
from spdsl.semantics.expressions import Arg, Evaluator, Invocation
from spdsl.semantics.graph import Attention, Mark, Merge, index_of, is_free, loads, on_side, ordered
from spdsl.semantics.nesting import refines
from spdsl.semantics.nodes import Apply, Attend, Const, Coord, Expr, Load, Side
from spdsl.semantics.report import listing
from spdsl.semantics.rewrite import free_axes, transform, walk
from spdsl.semantics.selections import tensor
from spdsl.semantics.values import POISON, Branch, Candidates, Merged, Poison, Scalar, TableRef, Value
from spdsl.semantics.wording import excerpt

_NAMES = ("queries", "keys", "values")


def sources(ev: Evaluator, node: syntax.Body) -> tuple[Scalar, Scalar, Scalar] | Poison | None:
    """The tensors of ``attend(A, B, C)``; None for Q, K and V themselves."""
    if not node.arguments:
        return None
    if len(node.arguments) != 3 or any(argument.name is not None for argument in node.arguments):
        return ev.error(
            "SP204",
            "`attend` takes queries, keys and values, or nothing",
            node.span,
            help="for example `attend(Q, CK, CV) { … }`",
        )
    sides: tuple[Side, Side, Side] = ("q", "k", "k")
    found = [
        _tensor(ev, argument.value, what, side)
        for argument, what, side in zip(node.arguments, _NAMES, sides, strict=True)
    ]
    one, two, three = found
    if one is None or two is None or three is None:
        return POISON
    plain = tuple(tensor(name) for name in ("Q", "K", "V"))
    if tuple(value.expr for value in (one, two, three)) == tuple(value.expr for value in plain):
        return None
    return (one, two, three) if _match(ev, one, two, three, node) else POISON


def _tensor(ev: Evaluator, node: syntax.Expr, what: str, side: Side) -> Scalar | None:
    given = ev.arg(node)
    if isinstance(given.value, TableRef):
        given = replace(given, value=load(ev, given.value.table, (), node, position=side))
    value = ev.expect(given, "number", f"the {what} of `attend`")
    if value is None:
        return None
    features = [axis for axis in value.axes if is_free(axis)]
    positions = [axis for axis in value.axes if axis.partition(".")[0] == side]
    others = value.axes - set(features) - set(positions) - {"b", "h", "g"}
    if len(features) != 1 or len(positions) != 1 or others:
        ev.error(
            "SP219",
            f"the {what} of `attend` are vectors along one axis of {spaces.WHAT[side]}",
            node.span,
            note=f"it varies along {listing(ordered(value.axes))}",
            help="for example `mean(K, per = k.blk)`",
        )
        return None
    if side == "k" and "h" in value.axes:
        ev.unsupported(f"`attend` with {what} of its own for each query head", node.span)
        return None
    return Scalar(expr=build.to_float(value.expr), axes=value.axes, size=value.size)


def _match(ev: Evaluator, query: Scalar, key: Scalar, value: Scalar, node: syntax.Body) -> bool:
    one, two = (next(axis for axis in x.axes if is_free(axis)) for x in (query, key))
    if one != two:
        ev.error(
            "SP219",
            f"queries have the features `{one}`, keys the features `{two}`",
            node.span,
            help="give both vectors along the same free axis",
        )
        return False
    if on_side(key.axes, "k") != on_side(value.axes, "k"):
        ev.error(
            "SP218",
            f"keys lie along `{on_side(key.axes, 'k')}`, values along `{on_side(value.axes, 'k')}`",
            node.span,
            help="pool both in the same way",
        )
        return False
    return True


def stream(ev: Evaluator, node: syntax.Keep) -> Branch | None:
    """``keep SET from (K1, V1) weight w``: keys of their own in the same softmax; None after a mistake."""
    span = node.span
    given = node.source if node.source is not None else (syntax.Name(id="K"), syntax.Name(id="V"))
    body = syntax.Body(
        kind="attend",
        arguments=tuple(
            syntax.Argument(name=None, value=each, span=span) for each in (syntax.Name(id="Q", span=span), *given)
        ),
        clauses=(),
        span=span,
    )
    found = sources(ev, body)
    kept = ev.scalar(node.set, "bool", "`keep`")
    weight = None if node.weight is None else ev.scalar(node.weight, "number", "`weight`")
    if isinstance(found, Poison) or kept is None or (node.weight is not None and weight is None):
        return None
    bias = None if weight is None else build.apply("log", build.to_float(weight.expr))
    axes = kept.axes | (frozenset() if weight is None else weight.axes)
    return Branch(attend=Attend(keep=kept.expr, bias=bias, span=span), axes=axes, size=kept.size, sources=found)


# ---------------------------------------------------------------- from branches to stages


def stage_of(ev: Evaluator, branch: Branch | Merged) -> Merged | None:
    """The softmax as a stage, once; None after a mistake."""
    if isinstance(branch, Merged):
        return branch
    known = ev.unit.staged.get(id(branch))
    if known is None:
        made = _staged(ev, branch)
        if made is None:
            return None
        known = ev.unit.staged[id(branch)] = (branch, made)
    return known[1]


def _staged(ev: Evaluator, branch: Branch) -> Merged | None:
    own = _attention(ev, branch)
    if own is None or not branch.streams:
        return own
    plain = replace(branch.attend, sink_logit=None, bias=None)
    parts = [own]
    for each in branch.streams:
        shared = replace(each.attend, scale=plain.scale, softcap=plain.softcap)
        made = _attention(ev, replace(each, attend=shared))
        if made is None:
            return None
        parts.append(made)
    return merged(ev, parts, counted=False)


def merged(
    ev: Evaluator,
    parts: list[Merged],
    *,
    counted: bool,
    over: str | None = None,
    by: Literal["lse", "mean"] = "lse",
    stopped: bool = False,
) -> Merged | None:
    """Several softmaxes over the same queries as one; with ``over`` the members of each along that free axis."""
    axes = {tuple(ordered(part.value.axes)) for part in parts}
    if len(axes) > 1:
        ev.error(
            "SP218",
            f"softmaxes along {' and '.join(listing(each) for each in sorted(axes))} cannot be merged",
            parts[0].value.expr.span,
            help="merge softmaxes over the same queries; `at(…, q)` lifts a result, but not its LSE",
        )
        return None
    stage = Merge(
        name=ev.unit.stage_name(),
        axes=ordered(parts[0].value.axes - {over or ""}),
        parts=tuple(part.stage for part in parts),
        counted=counted,
        over=over,
        by=by,
        stopped=stopped,
        span=parts[0].value.expr.span,
    )
    return Merged(stage=stage.name, value=spaces.add(ev, stage))


def _attention(ev: Evaluator, branch: Branch) -> Merged | None:
    query, key, value = branch.sources or tuple(tensor(name) for name in ("Q", "K", "V"))
    rows, columns = on_side(query.axes, "q"), on_side(key.axes, "k")
    assert rows is not None
    assert columns is not None
    attend = branch.attend
    for clause in (attend.keep, attend.bias, attend.sink_logit):
        if clause is not None and not _fits(ev, clause, rows, columns, branch.sources is not None):
            return None
    keep = _inside_grids(ev, mark(ev, attend.keep), {rows, columns})
    for word in ("bias", "sink_logit"):
        clause = getattr(attend, word)
        if clause is not None and _has_pairs(ev, clause):
            ev.unsupported(f"a score of pairs in `{word}`", clause.span, help="reduce it to one side first")
            return None
    feature = next(axis for axis in value.axes if is_free(axis))
    members = sorted(axis for axis in free_axes(keep) if is_free(axis))
    if len(members) > 1 or feature in members or any(axis in ev.unit.members for axis in members):
        ev.unsupported(f"`attend` for each member of {listing(members)}", attend.span)
        return None
    stage = Attention(
        name=ev.unit.stage_name(),
        axes=ordered(frozenset({"h", *members, rows, feature})),
        query=query.expr,
        key=key.expr,
        value=value.expr,
        rows=rows,
        columns=columns,
        attend=replace(attend, keep=keep),
        member=members[0] if members else None,
        span=attend.span,
    )
    return Merged(stage=stage.name, value=spaces.add(ev, stage))


def _fits(ev: Evaluator, clause: Expr, rows: str, columns: str, pooled: bool) -> bool:
    """Whether a clause is written at the queries and keys of its softmax."""
    for own in (rows, columns):
        side = own[0]
        for axis in sorted(free_axes(clause)):
            if axis.partition(".")[0] != side or axis == own or not pooled or own == side:
                continue
            if axis == side or not refines(ev.unit.axes, own, axis):
                ev.error(
                    "SP212",
                    f"this varies inside a block of {spaces.WHAT[side]}: `{side}` must appear through `{own}`",
                    clause.span,
                    help=f"compare blocks, or their first or last positions: `{own}.last`",
                )
                return False
    return True


def mark(ev: Evaluator, keep: Expr) -> Expr:
    """A set whose conditions on dynamic numbers are stages of their own."""

    def dynamic(node: Expr) -> bool:
        return not loads(node).isdisjoint((*ev.unit.stages, "Q", "K", "V"))

    def cut(node: Expr) -> Expr:
        if not dynamic(node):
            return node
        match node:
            case Load():
                return node
            case Apply(op=op, args=args) if all(arg.dtype == "bool" for arg in args):
                if op == "and" and _is_of_one_space(node, dynamic):
                    return made(node)
                return replace(node, args=tuple(cut(arg) for arg in args))
            case Apply() if node.dtype == "bool":
                return made(node)
            case _:
                return node

    def made(node: Expr) -> Expr:
        value = Scalar(expr=node, axes=free_axes(node) - {"b"})
        axes = spaces.space(ev, (value,), node.span)
        if axes is None:
            return Const(value=False)
        for known in ev.unit.stages.values():
            if isinstance(known, Mark) and (known.axes, known.value) == (axes, node):
                return spaces.array(axes, known).expr
        return spaces.add(ev, Mark(name=ev.unit.stage_name(), axes=axes, value=node, span=node.span)).expr

    return cut(keep)


def _inside_grids(ev: Evaluator, keep: Expr, own: set[str]) -> Expr:
    """What stages have chosen along axes of named grids is false for tokens outside of these, as comparisons are."""

    def guarded(node: Expr) -> Expr | None:
        if not isinstance(node, Load) or node.table not in ev.unit.stages:
            return None
        places = [index for index in node.indices if isinstance(index, Coord) and index.side in own]
        grids = frozenset[tuple[Side, str]]().union(*(ev.unit.guards(each.side, each.axis) for each in places))
        return build.conj(*(ev.unit.inside(side, grid).expr for side, grid in sorted(grids)), node) if grids else None

    return transform(keep, guarded)


def _is_of_one_space(node: Expr, dynamic: Callable[[Expr], bool]) -> bool:
    """Whether the comparisons of dynamic numbers in a condition vary along all of its axes."""
    compared = frozenset[str]()
    for part in walk(node):
        if isinstance(part, Apply) and part.dtype == "bool" and part.args[0].dtype != "bool" and dynamic(part):
            compared |= free_axes(part)
    return bool(compared) and free_axes(node) - {"g", "b"} <= compared


def _has_pairs(ev: Evaluator, clause: Expr) -> bool:
    """Whether a clause reads dynamic numbers of both sides."""
    for node in walk(clause):
        if isinstance(node, Load) and node.table in ev.unit.stages:
            axes = ev.unit.stages[node.table].axes
            if on_side(axes, "q") is not None and on_side(axes, "k") is not None:
                return True
    return False


# ---------------------------------------------------------------- computing with branches


def output(ev: Evaluator, arg: Arg) -> Value:
    """A softmax branch as an array; other values as they are."""
    match arg.value:
        case Branch() | Merged() as branch:
            made = stage_of(ev, branch)
            return POISON if made is None else made.value
        case value:
            return value


def at(ev: Evaluator, call: Invocation) -> Value:
    """``at(coarse, q)``: each position reads the value of its block."""
    if len(call.args) != 2 or call.keywords:
        return ev.error("SP204", "`at` takes a value and `q` or `k`", call.span, help="for example `at(coarse, q)`")
    value, target = output(ev, call.args[0]), call.args[1].value
    if isinstance(value, Poison) or isinstance(target, Poison):
        return POISON
    found = (
        value.value
        if isinstance(value, Candidates)
        else ev.expect(Arg(value=value, node=call.args[0].node), "any", "`at`")
    )
    if found is None:
        return POISON
    side = next((side for side in spaces.SIDES if isinstance(target, Scalar) and target.expr == index_of(side)), None)
    own = None if side is None else on_side(found.axes, side)
    if side is None or own is None:
        return ev.error(
            "SP203",
            f"{excerpt(call.args[1].node)} is no axis to which {excerpt(call.args[0].node)} can be lifted",
            call.args[1].node.span,
            note=f"it varies along {listing(ordered(found.axes))}",
            help="write `at(…, q)` or `at(…, k)` for a value of blocks of that side",
        )
    axis = ev.unit.axes.get(own.partition(".")[2])
    if axis is not None and axis.step is not None:
        return ev.unsupported("`at` of a value of overlapping windows", call.span)
    return replace(found, axes=found.axes - {own} | {side})
