"""Keys that heads have marked beside blocks that queries have picked, in Triton's interpreter: some are gathered, and
some are met in the tiles of their blocks.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spdsl.runtime import divided
from spdsl.runtime.ranking import FAR
from tests.library.cases import Case, Sizes
from tests.library.compare import check

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

TEXT = """pattern picked() {{
  axis blk = token by 64
  input chosen: bool[h, q.blk, k.blk]
  input column: bool[{head}, token]
  keep {rest} and (chosen or column[{head}, k])
}}
"""


def given(batch: int, heads: int, n: int, *, owners: int = 1) -> tuple[Tensor, Tensor]:
    """Lists of blocks, as they are kept, and marks: many of the first block's keys, of the second's few, of the third's
    none, of the fourth's all of one head."""
    chance = torch.Generator().manual_seed(n)
    rows = -(-n // 64)
    picked = torch.rand(batch, owners, rows, rows, generator=chance) < 0.4
    picked[:, :, :, 1] = False
    share = torch.zeros(heads, n)
    share[:, :64], share[:, 64:128], share[:, 192:] = 0.6, 0.05, 0.05
    share[0, 192:256] = 1.0
    column = torch.rand(batch, heads, n, generator=chance) < share
    return torch.where(picked, torch.arange(rows), FAR).sort(-1).values.int(), column


@pytest.mark.parametrize(("causal", "owners"), [(True, 3), (False, 1)])
def test_shares_by_kernels_are_those_of_torch(causal: bool, owners: int) -> None:
    n, block = 300, 64
    lists, marks = given(2, 3, n, owners=owners)
    run = torch.arange(lists.shape[2], dtype=torch.int32)
    ends = divided.Ends(low=torch.zeros_like(run), high=run + 1 if causal else torch.full_like(run, 5))
    found, wanted = (make(lists, marks, ends, block) for make in (divided.by_kernels, divided.by_torch))
    for one, other in zip(found.tensors, wanted.tensors, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(found.gathered | found.met, marks)
    assert not bool((found.gathered & found.met).any())
    assert bool(found.gathered.any())
    assert bool(found.met.any())
    assert bool((found.more != FAR).any())


@pytest.mark.parametrize(
    ("rest", "head", "sizes"),
    [
        ("causal", "h", (1, 2, 1, 100)),
        pytest.param("causal", "h", (1, 2, 1, 140), marks=pytest.mark.slow),
        pytest.param("causal", "h", (2, 4, 2, 261), marks=pytest.mark.slow),
        pytest.param("causal", "g", (1, 2, 2, 200), marks=pytest.mark.slow),
        pytest.param("abs(q - k) < 150", "h", (1, 2, 1, 261), marks=pytest.mark.slow),
        pytest.param("all", "h", (1, 2, 1, 230), marks=pytest.mark.slow),
    ],
)
def test_both_ways(
    rest: str, head: str, sizes: tuple[int, int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the reference, where there are keys of both kinds, and tiles that are walked for marked keys alone."""
    batch, heads, groups, n = sizes
    made, make = list[divided.Shares](), divided.by_torch

    def noted(*arguments: Any) -> divided.Shares:
        made.append(make(*arguments))
        return made[-1]

    def inputs(_: Sizes, __: torch.Generator) -> dict[str, Tensor]:
        lists, column = given(batch, heads if head == "h" else groups, n, owners=heads)
        return {"chosen": lists, "column": column}

    monkeypatch.setattr(divided, "by_torch", noted)
    path = tmp_path / "picked.spat"
    path.write_text(TEXT.format(rest=rest, head=head))
    shape = Sizes(batch=batch, heads=heads, groups=groups, nq=n, n=n)
    check(Case(name=str(path), inputs=inputs), shape, d=16, dv=16, dtype=torch.float32, backend="triton")
    assert made
    for shares in made:
        assert all(bool(each.any()) for each in (shares.gathered, shares.met, shares.more != FAR))
