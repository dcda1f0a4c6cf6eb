"""Keys in the order of what they keep: against loops, and how much their tiles walk in vain."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spdsl
from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Plan, Problem
from spdsl.pipeline import bound, lives_of
from spdsl.runtime.lists import lists_for
from spdsl.runtime.lives import lives
from spdsl.runtime.spans import order_of, spanned_keys, spanned_tiles
from spdsl.semantics.softmaxes import softmax_pattern
from spdsl.states import EMPTY, FULL, tile_rows, tile_states
from spdsl.trials import call_of
from spdsl.walks import visits

TYPES = {"float": "float32", "int": "int32", "bool": "int32"}


def plan_of(text: str, heads: int, groups: int, shape: str = "square") -> Plan:
    found = lives_of(spdsl.compile(spdsl.loads(text))._open_key, heads, groups, 16)
    assert found is not None
    pattern = bound(found[0], heads, groups, 16)
    assert pattern.graph is not None
    (stage,) = pattern.graph.attentions
    pattern = softmax_pattern(pattern, stage.name)
    tables = tuple((table.name, TYPES[table.dtype]) for table in pattern.tables)
    return plan(Problem(pattern=pattern, dtype="bf16", value_dim=16, shape=shape, tables=tables), "sm_90")  # type: ignore[arg-type]


TEXT = """pattern lasting() {{
  input x: float[{axes}]
  let c = x[{index}] |> only(causal) |> top({most})
  keep {keep}
}}"""


@pytest.mark.parametrize(
    ("axes", "index", "keep", "gathers"),
    [
        ("g, token", "g, k", "causal and c", True),
        ("token", "k", "causal and c and q - k < 300", True),
        ("g, token", "g, k", "not c and causal", False),
        ("g, token", "g, k", "causal and c and (q + k) % 3 > 0", False),
        ("h, token", "h, k", "causal and c", False),  # heads that share keys keep different ones
    ],
)
def test_keys_are_gathered_where_each_keeps_an_interval(axes: str, index: str, keep: str, gathers: bool) -> None:
    made = plan_of(TEXT.format(axes=axes, index=index, keep=keep, most=20), 4, 2)
    assert (made.dkdv.marked is not None) == gathers
    assert made.forward.marked is None


@given(
    n=st.integers(1, 300),
    most=st.integers(1, 120),
    missing=st.sampled_from([0, 0, 7, 90]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=15, deadline=None)
def test_tiles_walk_what_their_keys_keep(n: int, most: int, missing: int, seed: int) -> None:
    nq = max(1, n - missing)
    made = plan_of(TEXT.format(axes="g, token", index="g, k", keep="causal and c", most=most), 4, 2, "offset")
    generator = torch.Generator().manual_seed(seed)
    value = torch.randint(0, 50, (2, 2, n), generator=generator).float()
    until, alive = lives(value, most)
    q, k = torch.zeros(2, 4, nq, 16), torch.zeros(2, 2, n, 16)
    tables = {"x": value, "stage_0_until": until, "stage_0_alive": alive}
    call = call_of(made, (), q, k, k, {table.name: tables[table.name] for table in made.tables})
    call = lists_for(call, ("dkdv",))
    found, walked = spanned_keys(call, made.dkdv), spanned_tiles(call, made.dkdv)
    at, block, size = torch.arange(n - nq, n), made.dkdv.block_k, made.dkdv.block_q
    total = 0
    for sequence in range(2):
        for group in range(2):
            rows = found.rows[sequence, group].tolist()
            assert sorted(rows) == [*range(n), *[n] * (-n % block)]
            lengths = []
            for tile, every in enumerate(rows[i : i + block] for i in range(0, n, block)):
                keys = [key for key in every if key < n]
                kept = torch.stack([(at >= key) & (at < until[sequence, group, key]) for key in keys])
                some = {i for i in range(-(-nq // size)) if kept[:, i * size : (i + 1) * size].any()}
                first, whole, edge, last = walked[sequence, group, tile].tolist()
                assert some <= set(range(first, last))
                assert not some or {first, last - 1} <= some
                assert all(kept[:, i * size : (i + 1) * size].all() for i in range(whole, edge))
                assert len(keys) == block or whole >= edge
                total += max(0, last - first)
                lengths.append(
                    int(found.intervals[sequence, group, tile, 3] - found.intervals[sequence, group, tile, 0])
                )
            assert lengths == sorted(lengths, reverse=True)
    assert visits(call, made.dkdv).touched == 2 * total
    states = tile_states(call, made.dkdv, head=3, batch=1)
    first, whole, edge, last = walked[1, 1].unbind(-1)
    assert int((states != EMPTY).sum()) == int((last - first).clamp(min=0).sum())
    assert int((states == FULL).sum()) == int((edge - whole).clamp(min=0).sum())
    assert sorted(tile_rows(call, made.dkdv, "k").flatten().tolist())[-n:] == list(range(n))


def test_tiles_are_nearly_full() -> None:
    """Of random lifetimes a quarter more is walked than kept, where neighbours would walk three times as much."""
    until, _ = lives(torch.randn(1, 16384, generator=torch.Generator().manual_seed(0)), 1024)
    start, end = torch.arange(16384)[None], until.long()
    kept = int((end - start).clamp(min=0).sum())

    def walked(order: torch.Tensor) -> int:
        first, last = (each.gather(1, order).view(-1, 64) for each in (start, end))
        there = first < last
        first, last = first.masked_fill(~there, 1 << 30).amin(1), last.masked_fill(~there, 0).amax(1)
        return 64 * int((last - first).clamp(min=0).sum())

    assert walked(order_of(start, end, 64)) < 1.45 * kept
    assert walked(start) > 2.5 * kept
