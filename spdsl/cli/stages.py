"""From a word of the command line to any intermediate result, each with no more than the stages it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from spdsl.cli.files import Given, read
from spdsl.cli.options import Value, fit_tuples
from spdsl.cli.tree import record, tree
from spdsl.diagnostics import error

if TYPE_CHECKING:
    from spdsl.analysis.plans import Kind, Tiles
    from spdsl.planning import Chosen
    from spdsl.semantics.nodes import BoundPattern, CheckedPattern

Stage: TypeAlias = Literal["ast", "text", "checked", "bound", "tiles", "plan", "block", "triton", "gluon"]
Shape: TypeAlias = Literal["square", "origin", "offset", "batched"]
Choice: TypeAlias = "tuple[tuple[Kind, Tiles], ...]"
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942", "cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a pattern is to be compiled for; ``tiles`` are those of kernels that are not to have the plan's own."""

    parameters: Mapping[str, Value]
    heads: int
    groups: int
    head_dim: int
    value_dim: int
    dtype: str
    layer: int | None
    shape: str
    target: str
    tiles: Choice = ()


def intermediate(word: str, stage: str, wish: Wish) -> tuple[str, Any]:
    """What ``stage`` makes of the pattern that ``word`` names: as text, and as JSON knows it.

    Raises:
        SpatError: the pattern is wrong, or the stage cannot be reached with this wish.
    """
    from spdsl.semantics.show import dump as dump_pattern

    given = read(word)
    match stage:
        case "ast":
            from spdsl.grammar.parse import parse
            from spdsl.grammar.show import dump

            program = parse(given.text, given.name)
            return dump(program), record(program)
        case "text" | "checked":
            checked = checked_pattern(given)
            if wish.parameters:
                bound_pattern(checked, wish)  # what is given must fit, although these stages come before it
            return (checked.text, checked.text) if stage == "text" else (dump_pattern(checked), record(checked))
        case "bound":
            bound = bound_pattern(checked_pattern(given), wish)
            return dump_pattern(bound), record(bound)
        case "plan":
            plans = [made.plan for made in made_plans(checked_pattern(given), wish)]
            both = [_both(plan) for plan in plans]
            return "\n".join(text for text, _ in both), both[0][1] if len(both) == 1 else [each for _, each in both]
    from spdsl.codegen.emit import emit
    from spdsl.codegen.gluon import emit_gluon
    from spdsl.codegen.lower import lower

    plans = [made.plan for made in made_plans(checked_pattern(given), wish)]
    graphs = [lower(part) for plan in plans for part in plan.parts]
    if stage == "block":
        shown, records = zip(*map(_both, graphs), strict=True)
        return "\n".join(shown), records[0] if len(records) == 1 else records
    if stage == "gluon":
        texts = [emit_gluon(graph, kernel).text for graph in graphs for kernel in graph.gluon]
        if not texts:
            raise error(
                "SP615",
                f"`{graphs[0].name}` has no kernel in Gluon for {wish.target} with head dims of {wish.head_dim}",
                help="they are for sm_90 and 16-bit types; see `--emit triton`",
            )
        text = "\n\n".join(texts)
    else:
        # The sets of a union have a file each.
        text = "\n\n".join(emit(graph).text for graph in graphs)
    return text, text


def checked_pattern(given: Given) -> CheckedPattern:
    """The checked pattern of a text."""
    from spdsl.pipeline import read as read_pattern

    return read_pattern(given.text, source=given.name, name=given.pattern, resolve=given.resolve)


def bound_pattern(pattern: CheckedPattern, wish: Wish) -> BoundPattern:
    """The pattern with the parameters and sizes of ``wish``."""
    from spdsl.semantics.bind import bind

    return bind(
        pattern,
        fit_tuples(pattern, wish.parameters),
        layer=wish.layer,
        heads=wish.heads,
        groups=wish.groups,
        head_dim=wish.head_dim,
    )


def made_plan(pattern: CheckedPattern, wish: Wish) -> Chosen:
    """The plan for ``wish`` of a pattern without stages."""
    from spdsl.pipeline import key_of, refuse_stages

    refuse_stages(key_of(pattern, fit_tuples(pattern, wish.parameters), wish.layer, None, False))
    return made_plans(pattern, wish)[0]


def made_plans(pattern: CheckedPattern, wish: Wish) -> list[Chosen]:
    """The plans of the softmaxes of a pattern for ``wish``, with gradients for every float input."""
    from spdsl.analysis.plans import Problem
    from spdsl.pipeline import key_of, softmax_keys
    from spdsl.planning import choose, element

    if wish.target not in TARGETS:
        raise error("SP512", f"`{wish.target}` is not a target", help=f"Use one of {', '.join(TARGETS)}.")
    bound_pattern(pattern, wish)  # what is given must fit, also where kernels do not depend on it

    def problem(bound: BoundPattern) -> Problem:
        return Problem(
            pattern=bound,
            dtype=wish.dtype,  # type: ignore[arg-type]  # the command has checked it
            value_dim=wish.value_dim,
            shape=wish.shape,  # type: ignore[arg-type]  # the command has checked it
            tables=tuple((table.name, element(table)) for table in bound.tables),
            gradients=tuple(table.name for table in bound.tables if table.dtype == "float"),
            tiles=wish.tiles,
        )

    key = key_of(pattern, fit_tuples(pattern, wish.parameters), wish.layer, None, False)
    sizes = wish.heads, wish.groups, wish.head_dim
    return [choose(each, sizes, problem, wish.target) for each in softmax_keys(key)]


def _both(node: object) -> tuple[str, Any]:
    return tree(node), record(node)
