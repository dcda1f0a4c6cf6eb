"""What `explain` says: words that people understand, and sums of what runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.analysis.tiles import FAR
from spdsl.explain import Report, _percent, explain


def report(attn: spdsl.Attention, n: int = 4096, dim: int = 64, target: str = "sm_90", **tables: Tensor) -> Report:
    q = torch.zeros((), dtype=torch.bfloat16).expand(1, 4, n, dim)
    return explain(attn._key, q, q, q, tables, target)


WINDOW = torch.full((4, 3), 3, dtype=torch.int32)

SAID = [
    (spdsl.compile("streaming"), {}, "else -∞"),
    (spdsl.compile("prefix_lm"), {"prefix": torch.tensor([100])}, "else ∞"),
    (spdsl.compile("sliding_tile_3d", extents=(4, 32, 32)), {"window": WINDOW}, "min(max(2 * i2 + 2, if"),
    (spdsl.compile("dilated"), {}, "count the tiles of one class of rows (row % 4)"),
    (spdsl.compile("log_sparse"), {}, "at the same distances, in tiles of 64: -64, -32, -16, -8, -4, -2, -1, 0"),
    (spdsl.compile("bigbird"), {}, "window_blocks = 3, global_blocks = 2, random_blocks = 3, seed = 0, because each"),
    (
        spdsl.compile("neighborhood_2d", extents=(64, 64), window=(7, 7), dilation=(1, 2)),
        {},
        "along axis 1 the places of a box are 2 apart; only boxes with the same place % 2 meet",
    ),
]


@pytest.mark.parametrize(("attn", "tables", "words"), SAID, ids=[attn.pattern.name for attn, _, _ in SAID])
def test_words(attn: spdsl.Attention, tables: dict[str, Tensor], words: str) -> None:
    text = report(attn, **tables).text()
    assert words in text
    assert str(FAR) not in text
    assert "False" not in text


def test_walks_are_told_once() -> None:
    text = report(spdsl.compile("streaming"), target="sm_100").text()
    assert "dq: tiles and walks are those of `forward`" in text
    assert text.count("query tile i walks") == 2


def test_the_language_of_a_kernel_and_why() -> None:
    assert "in Gluon: one warp copies tiles, 2 groups of four compute" in report(spdsl.compile("causal")).text()
    assert "in Gluon: one warp copies tiles, a group of four computes" in report(spdsl.compile("log_sparse")).text()
    odd = report(spdsl.compile("causal"), dim=36).text()
    assert "in Triton and not in Gluon: rows of tensors are not multiples of 16 bytes" in odd
    assert "Gluon" not in report(spdsl.compile("causal"), target="sm_80").text()


def test_only_one_way_back_makes_metadata() -> None:
    found = report(spdsl.compile("documents"), dim=128, doc=torch.zeros(4096, dtype=torch.int32))
    sizes = {kernel.kind: kernel.metadata for kernel in found.kernels}
    assert found.is_fused
    assert sizes["dq"] > 0
    assert found.metadata == sizes["forward"] + sizes["fused"]
    assert "gradients come from `fused`" in found.text()


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100%"), (0.99999999, "99.999%"), (0.123, "12.3%"), (0.01, "1.0%"), (0.000291, "0.029%"), (0.0, "0%")],
)
def test_shares(share: float, text: str) -> None:
    assert _percent(share) == text


def test_marked_rows_are_gathered_where_they_stand_apart() -> None:
    near, apart = torch.zeros(4096, dtype=torch.bool), torch.zeros(4096, dtype=torch.bool)
    near[:40], apart[::100] = True, True
    attn = spdsl.compile("longformer")
    assert report(attn, is_global=near).sets == ()
    found = report(attn, is_global=apart)
    assert len(found.sets) == 3
    assert "the keys with `is_global[k]` are listed at run time and gathered into tiles" in found.text()
    mask = attn.pattern.mask(4096, 4096, is_global=apart)
    assert found.pairs == int(mask.sum()) * found.heads
