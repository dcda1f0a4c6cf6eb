"""The parts of a row: together they walk its tiles, each tile once, for any walk and any number of parts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Problem
from spdsl.analysis.tiles import Interval, ListWalk, Slot, SlotWalk, Walk
from spdsl.codegen.arith import index, number
from spdsl.codegen.blocks import Block, Define, If, ListBounds, ListedTile, Loop
from spdsl.codegen.expressions import text_of
from spdsl.codegen.frame import Frame
from spdsl.codegen.split import share
from spdsl.codegen.walks import Walker, lower_walk
from spdsl.semantics.nodes import Const, Expr
from tests.library.bound import library

NAMES: dict[str, Any] = {
    "tl": SimpleNamespace(minimum=min, maximum=max, where=lambda test, a, b: a if test else b, abs=abs),
    "floor_div": lambda a, b: a // b,
    "floor_mod": lambda a, b: a % b,
    "n": 64 * 40,
    "nq": 64 * 40,
}


def frame() -> Frame:
    """A frame of a kernel that splits rows; what it walks does not matter."""
    pattern = library("bigbird", heads=2, groups=2)
    return Frame(
        plan=(chosen := plan(Problem(pattern=pattern, dtype="bf16", value_dim=16, shape="square"), "sm_90")),
        kernel=chosen.forward,
        by="query",
    )


def value_of(expr: Expr, env: dict[str, Any]) -> Any:
    """The value of the text that a kernel would have."""
    return eval(text_of(expr), NAMES | env)  # noqa: S307  # what our own printer wrote


def walked(blocks: tuple[Block, ...], env: dict[str, Any]) -> list[tuple[str, int]]:
    """The tiles that blocks visit, and in which mode."""
    found: list[tuple[str, int]] = []
    for block in blocks:
        match block:
            case Define(name=name, value=value):
                env[name] = value_of(value, env)
                if name.startswith("tile_"):
                    found.append(
                        (name.removeprefix("tile_") if name != "tile_either" else str(env["masked"]), env[name])
                    )
            case If(condition=condition, body=body):
                if value_of(condition, env):
                    found += walked(body, env)
            case Loop(variable=variable, low=low, high=high, body=body):
                for turn in range(value_of(low, env), value_of(high, env)):
                    found += walked(body, env | {variable: turn})
            case ListBounds():
                env |= {"begin": 3, "middle": 12, "end": 30}
            case ListedTile(variable=variable):
                env[variable] = 1000 - env["t"]
            case _:
                raise AssertionError(block)
    return found


tiles = st.integers(-3, 40)
intervals = st.tuples(tiles, tiles).map(lambda pair: Interval(lo=number(pair[0]), hi=number(pair[1])))
slots = st.builds(
    lambda touched, full, lattice, filtered: Slot(
        touched=touched,
        full=full,
        step=lattice[0],
        run=lattice[1],
        phase=Const(value=lattice[2]) if lattice[0] > 1 else None,
        filter=Const(value=True) if filtered else None,
    ),
    intervals,
    st.none() | intervals,
    st.sampled_from([(1, 1, 0), (1, 1, 0), (4, 1, 2), (5, 3, -1)]),
    st.booleans(),
)
walks = st.lists(slots, min_size=1, max_size=3).map(lambda found: SlotWalk(slots=tuple(found)))


@settings(max_examples=150, deadline=None)
@given(walk=walks | st.just(ListWalk(reason="")), parts=st.integers(1, 9), separate=st.integers(1, 3))
def test_parts_make_the_row(walk: Walk, parts: int, separate: int) -> None:
    def body(mode: str) -> tuple[Block, ...]:
        return (Define(name=f"tile_{mode}", value=index("j")),)

    walker = Walker(
        by="query",
        shape="square",
        spans=(64, 64),
        separate=separate,
        place=lambda expr: expr,
        place_tile=lambda expr: ((), expr),
        body=body,
    )
    setup, loops = lower_walk(walk, walker)
    row = walked((*setup, *loops), {})
    shared = share(frame(), loops)
    found = [walked((*setup, *shared), {"part": part, "shares": parts}) for part in range(parts)]
    assert sorted(each for part in found for each in part) == sorted(row)
    if isinstance(walk, ListWalk) or all(slot.step == 1 and slot.filter is None for slot in walk.slots):
        assert max(map(len, found)) <= sum(-(-len(row) // parts) for _ in loops)
