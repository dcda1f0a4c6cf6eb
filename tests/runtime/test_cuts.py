"""Walks clamped by intervals of tables, tile by tile against the mask."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from spdsl.analysis.relation import tile_relation
from spdsl.analysis.tiles import Residues, SlotWalk, TileRelation
from spdsl.runtime.calls import Call
from spdsl.runtime.lists import walk_lists
from spdsl.runtime.tile_grid import By, TileGrid
from spdsl.semantics.nodes import Expr, Table
from tests.runtime.build import CAUSAL, G, H, K, Q, const, every, load, op, plan, table, window
from tests.runtime.test_tiles import _by_tile as by_tile
from tests.runtime.test_tiles import _mask as mask_of

DECLARED: tuple[Table, ...] = (
    table("doc", "int", "token", sorted=True),
    table("part", "int", "h", "token", sorted=True),
    table("piece", "int", "g", "token", sorted=True),
    table("end", "int", "token", sorted=True),
    table("limit", "int", "token"),
)
BACK = op("sub", Q, K)
DOCS = op("eq", load("doc", Q), load("doc", K))

AFFINE: dict[str, Expr | None] = {
    "everything": None,
    "causal": CAUSAL,
    "window": window(50),
    "both sides": op("le", op("abs", BACK), 70),
    "sinks": every(CAUSAL, op("or", op("lt", BACK, 40), op("lt", K, 20))),
    "stride": every(CAUSAL, op("or", op("lt", BACK, 20), op("lt", op("mod", BACK, 128), 8))),
    "blocks": op("eq", op("floordiv", Q, 48), op("floordiv", K, 48)),
}
CUTS: dict[str, Expr] = {
    "documents": DOCS,
    "of heads": op("eq", load("part", H, Q), load("part", H, K)),
    "of groups": op("eq", load("piece", G, Q), load("piece", G, K)),
    "neighbours": op("le", op("abs", op("sub", load("doc", Q), load("doc", K))), 1),
    "next one": op("eq", op("add", load("doc", Q), 1), load("doc", K)),
    "pairs of them": op("eq", op("floordiv", load("doc", Q), 2), op("floordiv", load("doc", K), 2)),
    "earlier": op("gt", load("doc", Q), load("doc", K)),
    "no later": op("not", op("lt", load("doc", Q), load("doc", K))),
    "ends": op("lt", K, load("end", Q)),
    "beginnings": op("ge", op("mul", K, 2), load("end", Q)),
    "causal or ends": op("or", CAUSAL, op("lt", K, load("end", Q))),
    "limits": op("le", K, load("limit", Q)),
    "both": every(DOCS, op("lt", K, load("limit", Q))),
}
EXACT = frozenset({"everything", "causal", "window", "both sides", "blocks"})
"""With one of these beside documents, tiles that both touch are touched together."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A call, and how its tiles are walked."""

    call: Call
    relation: TileRelation
    grids: tuple[TileGrid, TileGrid]


def draw(affine: str, cut: str, seed: int) -> Drawn:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    n, batch = rng.randrange(1, 700), rng.choice((1, 2))
    square = rng.random() < 0.5
    nq = n if square else rng.randrange(1, n + 1)
    start = 0 if square else rng.choice((n - nq, n - nq, rng.randrange(0, n - nq + 1), -rng.randrange(0, nq)))
    part = AFFINE[affine]
    keep = CUTS[cut] if part is None else every(part, CUTS[cut])
    block_q, block_k = rng.choice((16, 32, 64, 128, 256)), rng.choice((16, 32, 64, 128, 256))
    shape = "square" if square else "offset"
    relation = tile_relation(
        keep, block_q=block_q, block_k=block_k, shape=shape, heads=4, groups=2, tables=DECLARED
    )  # fmt: skip
    q, k = torch.zeros(batch, 4, nq, 8), torch.zeros(batch, 2, n, 8)
    chosen = plan(keep, tables=DECLARED, shape=shape, heads=4, groups=2)  # type: ignore[arg-type]
    call = Call(plan=chosen, q=q, k=k, v=k, q_start=start, tables=_tables(rng, batch, n))
    by_query = TileGrid(by="query", block_q=block_q, block_k=block_k)
    return Drawn(call=call, relation=relation, grids=(by_query, replace(by_query, by="key")))


def _tables(rng: random.Random, batch: int, n: int) -> dict[str, Tensor]:
    most = rng.choice((1, 2, 6, 40))

    def documents(*shape: int) -> Tensor:
        return torch.randint(-3, most, (rng.choice((1, batch)), *shape, n)).sort()[0].int()

    ends = torch.randint(0, n + 1, (rng.choice((1, batch)), n)).int()
    return {
        "doc": documents(), "part": documents(4), "piece": documents(2), "end": ends.sort()[0],
        "limit": torch.randint(-1, n + 1, (1, n)).int(),
    }  # fmt: skip


def compare(call: Call, walk: SlotWalk, grid: TileGrid) -> tuple[int, int]:
    """Tiles walked in vain, and touched, over batch and heads; raises if one is missing, or full and kept in part.

    Tiles of existing pairs alone that are kept entirely must be known as full.
    """
    some, whole = by_tile(mask_of(call), grid.block_q, grid.block_k)
    lists = walk_lists(call, walk, grid)
    touched, full = torch.zeros_like(some), torch.zeros_like(some)
    rows = some.shape[-2] if grid.by == "query" else some.shape[-1]
    for b in range(some.shape[0]):
        for h in range(some.shape[1]):
            at = min(b, lists.begin.shape[0] - 1), min(h, lists.begin.shape[1] - 1)
            for row in range(rows):
                begin, middle, end = (int(each[(*at, row)]) for each in (lists.begin, lists.middle, lists.end))
                tiles = lists.tiles[begin:end].tolist()
                assert len(set(tiles)) == len(tiles)
                for number, tile in enumerate(tiles):
                    i, j = (row, tile) if grid.by == "query" else (tile, row)
                    touched[b, h, i, j] = True
                    full[b, h, i, j] = number < middle - begin
    assert not (some & ~touched).any()
    assert not (full & ~whole).any()
    first = call.q_start + torch.arange(some.shape[-2])[:, None] * grid.block_q
    last = (torch.arange(some.shape[-1]) + 1) * grid.block_k
    exist = (first >= 0) & (first - call.q_start + grid.block_q <= call.q.shape[2]) & (last <= call.k.shape[2])
    assert not (some & whole & exist & ~full).any()
    return int((touched & ~some).sum()), int(some.sum())


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("affine", AFFINE)
def test_tiles_equal_those_of_the_mask(affine: str, cut: str) -> None:
    for seed in range(6):
        drawn = draw(affine, cut, seed)
        walks = (drawn.relation.by_query, drawn.relation.by_key)
        # a limit without order can be searched for keys, not for queries
        listed = cut in ("limits", "both")
        assert [isinstance(walk, SlotWalk) for walk in walks] == [True, not listed]
        assert not drawn.relation.notes
        for walk, grid in zip(walks, drawn.grids, strict=True):
            if isinstance(walk, SlotWalk):
                in_vain, _ = compare(drawn.call, walk, grid)
                whole = drawn.call.q.shape[2] % grid.block_q == 0 == drawn.call.k.shape[2] % grid.block_k
                assert not (in_vain and affine == "everything" and cut != "both" and whole and drawn.call.q_start == 0)


def test_few_tiles_are_walked_in_vain() -> None:
    """Both parts touch such a tile, but not in the same pairs."""
    in_vain = touched = 0
    for affine in AFFINE:
        for seed in range(10):
            drawn = draw(affine, "documents", seed)
            for walk, grid in zip((drawn.relation.by_query, drawn.relation.by_key), drawn.grids, strict=True):
                assert isinstance(walk, SlotWalk)
                more, some = compare(drawn.call, walk, grid)
                in_vain, touched = in_vain + more, touched + some
    assert in_vain < 0.03 * touched, (in_vain, touched)


def _side(rng: random.Random, at: Expr, names: tuple[str, ...], depth: int) -> Expr:
    """A random int expression of one side."""
    kind = rng.randrange(8 if depth else 3)
    if kind < 3:
        return (at, load(rng.choice(names), at), const(rng.randrange(-20, 60)))[kind]
    inner = _side(rng, at, names, depth - 1)
    match kind:
        case 3:
            return op("neg", inner)
        case 4:
            return op("mul", inner, rng.choice((-2, 2, 3)))
        case 5:
            return op("floordiv", inner, rng.choice((2, 5, -3)))
        case _:
            return op(rng.choice(("add", "sub", "min", "max")), inner, _side(rng, at, names, depth - 1))


def _clause(rng: random.Random, depth: int) -> Expr:
    """A random comparison of queries with keys, or several."""
    kind = rng.randrange(9)
    if depth and kind >= 6:
        left, right = _clause(rng, depth - 1), _clause(rng, depth - 1)
        if kind == 6:
            # what both sides of an `or` have in common
            value, mark = _side(rng, Q, ("limit", "doc"), 1), _side(rng, K, ("doc", "end"), 1)
            others = rng.choice(((value, _side(rng, K, ("doc",), 1)), (_side(rng, Q, ("doc", "limit"), 1), mark)))
            name = rng.choice((("lt", "le"), ("le", "le"), ("gt", "ge"), ("ge", "ge")))
            return op("or", op(name[0], value, mark), op(name[1], *others))
        return op("not", left) if kind == 7 else every(left, right)
    q, k = _side(rng, Q, ("doc", "limit", "end"), 2), _side(rng, K, ("doc", "end"), 1)
    if kind == 0:
        return op(rng.choice(("le", "lt")), op("abs", op("sub", q, k)), rng.randrange(1, 60))
    return op(rng.choice(("lt", "le", "gt", "ge", "eq")), *rng.sample((q, k), 2))


@pytest.mark.parametrize("seed", range(150))
def test_random_clauses(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    n = rng.randrange(1, 300)
    nq = rng.choice((n, rng.randrange(1, n + 1)))
    shape = "square" if nq == n else "offset"
    keep = _clause(rng, 2) if seed % 2 else every(CAUSAL, _clause(rng, 2))
    block_q, block_k = rng.choice((16, 32, 64)), rng.choice((16, 32, 64))
    relation = tile_relation(
        keep, block_q=block_q, block_k=block_k, shape=shape, heads=4, groups=2, tables=DECLARED
    )  # fmt: skip
    chosen = plan(keep, tables=DECLARED, shape=shape, heads=4, groups=2)  # type: ignore[arg-type]
    q, k = torch.zeros(1, 4, nq, 8), torch.zeros(1, 2, n, 8)
    call = Call(plan=chosen, q=q, k=k, v=k, q_start=n - nq, tables=_tables(rng, 1, n))
    for by, walk in (("query", relation.by_query), ("key", relation.by_key)):
        if isinstance(walk, SlotWalk):
            grid = TileGrid(by=by, block_q=block_q, block_k=block_k)  # type: ignore[arg-type]
            compare(call, walk, grid)


@pytest.mark.parametrize("seed", range(12))
def test_classes_of_rows(seed: int) -> None:
    """Under residues the intervals are those of a class, and tiles hold every so many-th row."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    modulus, n = rng.choice((2, 3, 5)), rng.randrange(1, 400)
    shift = rng.randrange(modulus)
    keep = every(CAUSAL, op("lt", BACK, 150), op("eq", op("mod", BACK, modulus), shift), DOCS)
    residues = Residues(modulus=modulus, shift=shift, stride=modulus, keep=every(CAUSAL, op("lt", BACK, 150), DOCS))
    relation = tile_relation(
        keep, block_q=16, block_k=32, shape="square", heads=1, groups=1, tables=DECLARED, residues=residues
    )
    q = torch.zeros(1, 1, n, 8)
    chosen = plan(keep, tables=DECLARED, heads=1, groups=1)
    call = Call(plan=chosen, q=q, k=q, v=q, tables=_tables(rng, 1, n))
    mask = mask_of(call)[0, 0]
    for by, walk in (("query", relation.by_query), ("key", relation.by_key)):
        assert isinstance(walk, SlotWalk)
        assert walk.cuts is not None
        grid = TileGrid(by=by, block_q=16, block_k=32, modulus=modulus, shift=shift)  # type: ignore[arg-type]
        seen = torch.zeros_like(mask, dtype=torch.int32)
        lists = walk_lists(call, walk, grid)
        for program in range(lists.begin.shape[2]):
            begin, middle, end = (int(each[0, 0, program]) for each in (lists.begin, lists.middle, lists.end))
            for number, tile in enumerate(lists.tiles[begin:end].tolist()):
                i, j = (program, tile) if by == "query" else (tile, program)
                where = grid.within(torch.tensor(i), torch.tensor(j), 0)
                rows = (where["i"] * 16 + torch.arange(16)) * modulus + where["q_class"]
                keys = (where["j"] * 32 + torch.arange(32)) * modulus + where["k_class"]
                rows, keys = rows[rows < n], keys[keys < n]
                seen[rows[:, None], keys] += 1
                if number < middle - begin:
                    assert mask[rows[:, None], keys].all()
        assert (seen[mask] == 1).all()


@pytest.mark.parametrize("by", ["query", "key"])
def test_empty_and_single(by: By) -> None:
    for n in (1, 2):
        relation = tile_relation(
            every(CAUSAL, DOCS), block_q=16, block_k=16, shape="square", heads=1, groups=1, tables=DECLARED
        )
        walk = relation.by_query if by == "query" else relation.by_key
        assert isinstance(walk, SlotWalk)
        q = torch.zeros(1, 1, n, 8)
        chosen = plan(every(CAUSAL, DOCS), tables=DECLARED)
        call = Call(plan=chosen, q=q, k=q, v=q, tables={"doc": torch.zeros(1, n, dtype=torch.int32)})
        lists = walk_lists(call, walk, TileGrid(by=by, block_q=16, block_k=16))
        assert lists.tiles.tolist() == [0]
