"""docs/coverage.md: its figures are those of today's plans, and blocks are counted as the masks themselves say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import spdsl
from benchmarks.cases import CASES, Case
from benchmarks.coverage import BLOCK, PAGE, blocks_of_row, coverage, on_axes
from spdsl.explain import call_like

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("name", ["causal", "longformer256_g64", "bigbird64", "dilated4096x4", "na2d_192_k25"])
def test_the_page_is_of_today(name: str) -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert coverage(BY_NAME[name]).line() in lines, "run `python -m benchmarks.coverage`"


def test_the_page_has_every_mask() -> None:
    named = [line.split("|")[1].strip() for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    assert named == ["mask", *BY_NAME]


@pytest.mark.parametrize("name", ["causal", "sink64_window1024", "dilated4096x4", "power128", "s2_strided"])
def test_blocks_of_the_mask(name: str) -> None:
    """At 4,096 tokens, every pair."""
    case = replace(BY_NAME[name], n=4096)
    kept, blocks = by_mask(case, range(0, case.n, BLOCK))
    found = coverage(case)
    assert (found.kept, found.blocks) == (kept, blocks * BLOCK**2)


@pytest.mark.parametrize("name", ["na2d_192_k25", "na3d_30x48x80_k19x25x25"])
def test_blocks_on_grids(name: str) -> None:
    """Some rows of blocks, every pair of them."""
    case = BY_NAME[name]
    rows = torch.zeros((), dtype=case.dtype).expand(1, 1, case.n, case.dim)
    call = call_like(spdsl.compile(case.pattern, **case.parameters)._key, rows, rows, rows, {}, "sm_90")
    boxes = call.plan.forward.boxes
    assert boxes is not None
    starts = range(0, case.n, 97 * BLOCK)
    axes = on_axes(boxes)
    assert sum(blocks_of_row(axes, boxes, start) for start in starts) == by_mask(case, starts)[1]


def by_mask(case: Case, starts: range) -> tuple[int, int]:
    """Kept pairs and touched blocks of the rows of blocks that begin at ``starts``, from FlexAttention's mask."""
    mod = case.mask_mod(torch.device("cpu"))
    heads = case.heads if case.per_head else 1
    keys, kept, blocks = torch.arange(case.n), 0, 0
    for head in range(heads):
        for start in starts:
            queries = torch.arange(start, start + BLOCK)[:, None]
            mask = mod(torch.tensor(0), torch.tensor(head), queries, keys).expand(BLOCK, case.n)
            kept += int(mask.sum())
            blocks += int(mask.any(0).view(-1, BLOCK).any(1).sum())
    return kept, blocks
