"""Which sets are walked by what queries have picked, and in which tiles."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Plan, Problem
from spdsl.analysis.tiles import ListWalk, PickWalk, SlotWalk
from spdsl.pipeline import bound, key_of, opened, read, softmax_keys


def planned(
    keep: str,
    *,
    of: str = "g, q",
    block: int = 64,
    heads: int = 16,
    groups: int = 1,
    dtype: Literal["bf16", "fp32"] = "bf16",
    shape: Literal["square", "offset"] = "square",
    target: str = "sm_90",
    picks: int = 4,
    dim: int = 128,
    run: int = 64,
) -> Plan:
    own = "q.run.last" if "q.run" in of else "q"
    text = (
        f"pattern program() {{\n  axis blk = token by {block}\n  axis run = token by {run}\n"
        f"  input s: float[{of}, k.blk]\n  let chosen = s |> only(k.blk.first <= {own}) "
        f"|> top({picks})\n  keep {keep}\n}}"
    )
    key = key_of(read(text), {}, None, None, deterministic=False)
    pattern = bound(opened(softmax_keys(key)[-1])[0], heads, groups, dim)
    tables = tuple((table.name, "int32") for table in pattern.tables)
    return plan(Problem(pattern=pattern, dtype=dtype, value_dim=dim, shape=shape, tables=tables), target)


@pytest.mark.parametrize(
    ("heads", "groups", "positions", "lanes"), [(16, 1, 4, 16), (6, 1, 8, 8), (64, 1, 1, 64), (128, 1, 1, 128)]
)
def test_heads_that_share_a_list_fill_a_tile(heads: int, groups: int, positions: int, lanes: int) -> None:
    made = planned("causal and chosen", heads=heads, groups=groups)
    for kernel in made.kernels:
        assert isinstance(kernel.walk, PickWalk)
        assert kernel.picks is not None
        assert (kernel.picks.heads, kernel.picks.lanes) == (heads // groups, lanes)
        assert kernel.block_q == kernel.picks.positions * lanes
    assert made.forward.queries == positions
    assert made.forward.walk.bounds.full is not None  # type: ignore[union-attr]  # a PickWalk, as seen above


def test_few_picks_are_kept_at_once() -> None:
    made = planned("causal and chosen", of="g, q", heads=4, picks=64)
    assert made.forward.picks is not None
    assert made.forward.picks.order == "union"
    alone = planned("causal and chosen", of="h, q", heads=4, groups=4, picks=64)
    assert alone.forward.picks is not None
    # Each query of a tile has a bit of a number.
    assert (alone.forward.picks.order, alone.forward.picks.positions) == ("union", 32)
    assert isinstance(alone.dkdv.walk, PickWalk)


def test_queries_of_one_run_have_picked_alike() -> None:
    for shape, many in (("square", False), ("offset", True)):
        kernel = planned("causal and chosen", of="g, q.run", shape=shape).forward  # type: ignore[arg-type]
        assert kernel.picks is not None
        assert (kernel.picks.order == "union") == many


@pytest.mark.parametrize(("of", "heads", "groups"), [("h, q", 4, 4), ("h, q", 4, 2), ("g, q", 6, 2)])
def test_queries_of_few_heads_are_gathered(of: str, heads: int, groups: int) -> None:
    made = planned("causal and chosen", of=of, heads=heads, groups=groups)
    for kernel in (made.forward, made.dq):
        assert kernel.picks is not None
        assert kernel.picks.order == "gathered"
    # Heads that share keys, and have picked each for itself.
    assert isinstance(made.dkdv.walk, ListWalk if (of, heads // groups) == ("h, q", 2) else PickWalk)


@pytest.mark.parametrize(
    "keep", ["causal and not chosen", "causal and (chosen or s[0, q, k.blk] > 1)", "chosen and q > 9"]
)
def test_sets_that_are_no_selection(keep: str) -> None:
    made = planned(keep)
    assert isinstance(made.forward.walk, PickWalk) == ("not" not in keep and " or " not in keep)


@pytest.mark.parametrize(("block", "fine"), [(8, True), (16, True), (64, False), (128, False)])
def test_runs_shorter_than_a_tile(block: int, fine: bool) -> None:
    """A run of 16 queries of one head has a tile of its own, filled by several blocks of keys."""
    text = (
        f"pattern program() {{\n  axis blk = token by {block}\n  axis run = token by 16\n"
        "  input s: float[h, q.run, k.blk]\n  keep s |> top(9)\n}"
    )
    key = key_of(read(text), {}, None, None, deterministic=False)
    pattern = bound(opened(softmax_keys(key)[-1])[0], 4, 4, 64)
    tables = tuple((table.name, "int32") for table in pattern.tables)
    for shape, own in (("square", True), ("origin", True), ("offset", False)):
        problem = Problem(pattern=pattern, dtype="bf16", value_dim=64, shape=shape, tables=tables)  # type: ignore[arg-type]
        kernel = plan(problem, "sm_90").forward
        # Queries of several runs have a bit each.
        assert kernel.picks is not None
        expected = ("alike", fine, 16) if own else ("union", block < 16, 32)
        assert (kernel.picks.order, kernel.picks.fine, kernel.block_q) == expected


def test_fine_blocks_are_gathered() -> None:
    made = planned("causal and chosen", block=8)
    assert isinstance(made.forward.walk, PickWalk)
    assert made.forward.picks is not None
    assert made.forward.picks.fine
    assert isinstance(made.dkdv.walk, PickWalk)
    shared = planned("causal and chosen", block=8, heads=4).forward
    assert shared.picks is not None
    assert (shared.picks.order, shared.picks.fine, shared.picks.positions) == ("union", True, 16)
    assert isinstance(planned("causal and chosen", block=24).forward.walk, ListWalk)


def test_more_queries_than_bits() -> None:
    """Runs of 64 queries that do not begin where tiles do."""
    made = planned("causal and chosen", of="h, q.run", shape="offset")
    assert made.forward.picks is not None
    assert (made.forward.picks.order, made.forward.picks.positions) == ("union", 32)


def test_by_key_runs_that_pick_for_each_head_are_whole_tiles() -> None:
    made = planned("causal and chosen", of="h, q.run", heads=4, groups=2, dim=64)
    for kernel in (made.dkdv, made.fused):
        assert kernel is not None
        assert kernel.turned is not None
        assert (kernel.block_q, kernel.block_k) == (64, 64)
        # Nothing is looked up: what is left to test is causal, and not asked of tiles below the diagonal.
        assert "chosen" not in repr(kernel.turned.keep)
        assert kernel.turned.bounds.full is not None
    wide = planned("causal and chosen", of="h, q.run", heads=4, groups=2)
    assert (wide.fused, wide.dkdv.turned is None) == (None, False)  # a group alone has no room for wide heads
    large = planned("causal and chosen", of="h, q.run", heads=4, groups=2, block=128)
    assert large.fused is not None
    assert (large.fused.block_q, large.fused.block_k) == (64, 128)
    several = planned("causal and chosen", of="h, q.run", heads=4, groups=4, dim=64, run=128, block=32)
    assert several.fused is not None
    assert several.fused.turned is not None
    # A tile holds four blocks, of which lists tell one by one; other kernels gather them.
    assert (several.fused.block_q, several.fused.block_k, several.fused.turned.held) == (128, 128, 4)
    assert (several.dkdv.turned, several.forward.block_k) == (None, 128)
    both = planned("causal and (q - k < 300 or chosen)", of="h, q.run", heads=4, groups=2, block=128)
    assert [part.fused is not None for part in both.parts] == [True, True]


@pytest.mark.parametrize("more", [{"of": "g, q.run"}, {"of": "h, q"}, {"of": "h, q.run", "shape": "offset"}])
def test_other_picks_are_no_whole_tiles_by_key(more: dict[str, Any]) -> None:
    """Of heads that share lists, of single queries, and where runs begin within tiles."""
    made = planned("causal and chosen", heads=4, groups=2, dim=64, **more)
    assert made.dkdv.turned is None
    assert made.fused is None


def test_the_static_part_of_a_union_is_walked_in_closed_form() -> None:
    made = planned("causal and (chosen or q - k < 300)")
    window, chosen = made.parts
    assert isinstance(window.forward.walk, SlotWalk)
    assert window.forward.specialised
    assert window.fused is not None
    assert isinstance(chosen.forward.walk, PickWalk)
    assert chosen.forward.picks is not None
    assert isinstance(chosen.dkdv.walk, PickWalk)
    assert isinstance(planned("causal and (chosen or q - k < 300)", target="cpu").forward.walk, ListWalk)


def test_a_warp_copies_queries_by_key() -> None:
    """On Hopper, for plain logits, where the copy engine has several heads of a query to move at once."""
    assert planned("causal and chosen").dkdv.specialised
    assert planned("causal and chosen", of="g, q.run", heads=8, block=128).dkdv.specialised
    assert planned("causal and (q - k < 70 or chosen)", heads=32, groups=2).parts[-1].dkdv.specialised
    for plain in (
        planned("causal and chosen", heads=4),
        planned("causal and chosen", heads=12),
        planned("causal and chosen", heads=128),
        planned("causal and chosen", block=32),
        planned("causal and chosen", dtype="fp32"),
        planned("causal and chosen", target="sm_100"),
        planned("causal and chosen  bias 0.5 * (k - q)"),
        planned("causal and chosen  softcap 5.0"),
        planned("causal and chosen and q - k < 90 * (h + 1)"),
    ):
        assert isinstance(plain.dkdv.walk, PickWalk)
        assert not plain.dkdv.specialised
