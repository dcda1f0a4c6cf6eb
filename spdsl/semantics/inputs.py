"""``input`` declarations: the axes of a table, and what is promised about its values."""

from __future__ import annotations

from typing import cast

from spdsl.grammar import nodes as syntax
from spdsl.semantics import nodes as ir
from spdsl.semantics.expressions import Evaluator
from spdsl.semantics.nodes import Const, Coord, Dtype, Extent, Index, TableAxis
from spdsl.semantics.parameters import check_range
from spdsl.semantics.report import did_you_mean
from spdsl.semantics.scope import TYPES
from spdsl.semantics.values import AxisRef, Entry, Poison, Scalar, describe
from spdsl.semantics.wording import excerpt

MAX_AXES = 3
_NEARLY_TOKEN = ("tokens", "key", "keys")
"""What an axis of the keys is called by mistake."""
_SIZES = {"q": "nq", "h": "heads", "g": "groups", "b": "b"}


def input_table(ev: Evaluator, node: syntax.Input) -> ir.Table | None:
    """The declared table, made known to the unit; None after a mistake."""
    if node.type.name not in TYPES:
        ev.error(
            "SP203",
            f"there is no type `{node.type.name}`",
            node.type.span,
            help=did_you_mean(node.type.name, TYPES) or "types are int, float and bool",
        )
        return None
    dtype = cast(Dtype, node.type.name)
    axes = [_axis(ev, extent, node.name) for extent in node.type.extents]
    bounds = check_range(ev, node.range, dtype, node.name)
    found = tuple(axis for axis in axes if axis is not None)
    if len(found) != len(axes):
        return None
    if len(found) > MAX_AXES:
        ev.unsupported(
            f"a table of more than {MAX_AXES} axes",
            node.type.span,
            help="join two into one, for example `[a * b]`, read at `i * b + j`",
        )
        return None
    kinds = [axis.kind for axis in found]
    if any(kinds.count(kind) > 1 for kind in ("h", "g", "b", "q")):
        ev.error(
            "SP203",
            f"`{node.name}` names an axis twice",
            node.type.span,
            help="write one of them as a size, for example `bool[h, heads]`",
        )
        return None
    if "b" in kinds[1:]:
        ev.error("SP203", f"the axis `b` of `{node.name}` comes first", node.type.span, help="move it to the front")
        return None
    if node.sorted and (dtype != "int" or kinds[-1:] != ["token"]):
        ev.error(
            "SP203",
            f"only an int table along `token` can be sorted, but `{node.name}` is "
            f"{dtype}[{', '.join(axis.label for axis in found)}]",
            node.span,
            help="leave `sorted` out",
        )
        return None
    table = ir.Table(name=node.name, dtype=dtype, axes=found, bounds=bounds, sorted=node.sorted, span=node.span)
    known = ev.unit.tables.get(node.name)
    if known is not None and known != table:
        line = known.span.line if known.span else "?"
        ev.error(
            "SP202",
            f"input `{node.name}` is declared in two ways",
            node.span,
            note=f"the other is on line {line}",
            help="a pattern and those it calls share inputs by name; rename one of them",
        )
        return None
    ev.unit.tables[node.name] = table
    if bounds is not None:
        ev.unit.table_ranges[node.name] = (bounds.low, bounds.high)
    return table


def _axis(ev: Evaluator, extent: syntax.Extent, table: str) -> TableAxis | None:
    value = extent.value
    match value:
        case syntax.Name(id="token") if extent.name is None:
            return TableAxis(kind="token", size=Extent(name="n"), label="token", span=extent.span)
        case syntax.Name(id="q" | "h" | "g" | "b" as name) if extent.name is None:
            size = Index(name="b") if name == "b" else Extent(name=_SIZES[name])
            return TableAxis(kind=name, size=size, label=name, span=extent.span)
        case syntax.Name(id="k") if extent.name is None:
            ev.error(
                "SP203",
                "a table along keys has the axis `token`",
                extent.span,
                help=f"declare it along `token`, and read it with `{table}[k]`",
            )
            return None
        case syntax.Name(id="d") if extent.name is None:
            return TableAxis(kind="free", size=Extent(name="d"), label="d", span=extent.span)
        case syntax.Name(id=name) if extent.name is None and ev.free_name(name):
            if name in _NEARLY_TOKEN:
                ev.unit.report.warning(
                    "SP222",
                    f"`{name}` is an axis of its own, of any size",
                    extent.span,
                    help=f"if `{table}` has an element for each key, declare it along `token`",
                )
            ev.scope.entries.setdefault(name, _free(name, extent))
            return TableAxis(kind="free", size=Extent(name=name), label=name, span=extent.span)
        case _:
            return _computed(ev, extent)


def _computed(ev: Evaluator, extent: syntax.Extent) -> TableAxis | None:
    value = ev.evaluate(extent.value)
    match value:
        case Scalar(expr=Coord(side=side, axis=name)):
            return TableAxis(kind="axis", size=ev.unit.count(name), label=f"{side}.{name}", span=extent.span)
        case Scalar(expr=Index(name=name)):
            ev.error(
                "SP203",
                f"`{name}` is not the size of an axis",
                extent.span,
                help="use `token`, `q`, `h`, `g`, `b`, a coordinate such as `q.blk`, or a size",
            )
        case Scalar(dtype="int", axes=axes, expr=expr) if not axes:
            if isinstance(expr, Const) and expr.value < 1:
                ev.error(
                    "SP203",
                    f"the size of an axis must be at least 1, not {expr.value}",
                    extent.span,
                    help="give a larger number",
                )
                return None
            written = excerpt(extent.value).strip("`")
            label = extent.name if extent.name is not None else written
            if extent.name is not None and ev.free_name(extent.name):
                ev.scope.entries.setdefault(extent.name, _free(extent.name, extent))
                return TableAxis(kind="free", size=expr, label=label, span=extent.span)
            return TableAxis(kind="own", size=expr, label=label, span=extent.span)
        case Poison():
            pass
        case AxisRef(name=name):
            ev.error("SP203", f"`{name}` needs a side", extent.span, help=f"write `q.{name}` or `k.{name}`")
        case _:
            ev.error(
                "SP203",
                f"{excerpt(extent.value)} is {describe(value)}, not the size of an axis",
                extent.span,
                help="use `token`, `q`, `h`, `g`, `b`, a coordinate such as `q.blk`, or a size",
            )
    return None


def _free(name: str, extent: syntax.Extent) -> Entry:
    value = Scalar(expr=Index(name=name), axes=frozenset((name,)))
    return Entry(value=value, span=extent.span, kind="free axis", used=True)
