"""Kernels of which several programs share a row, and the lists of keys that heads share, in Triton's interpreter.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os

import pytest
import torch

from spdsl.codegen.chains.parts import ABSENT
from spdsl.runtime import cut_marks, row_sums, share_kernels, shared_keys

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


def test_keys_of_each_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the keys from each position on stand, and the keys; the kernel's as those of torch."""
    found = torch.rand(2, 3, 100, generator=torch.Generator().manual_seed(0)) < 0.2
    found[1, 2] = False
    before, keys = shared_keys.listed_keys(found)
    for row, (marks, ends) in enumerate(zip(found.flatten(0, 1), before.flatten(0, 1), strict=True)):
        assert ends[0] == row * 100
        for at in (0, 1, 50, 100):
            assert torch.equal(keys[ends[0] : ends[at]], marks[:at].nonzero()[:, 0].int())
    others = torch.zeros_like(before), torch.zeros_like(keys)
    monkeypatch.setattr(shared_keys, "WIDTH", 16)
    shared_keys.list_by_kernels(found, *others)
    assert torch.equal(others[0], before)
    numbers = torch.zeros_like(before)
    shared_keys.list_by_kernels(found, numbers, None)
    assert torch.equal(numbers, shared_keys.numbers_before(found))
    assert torch.equal(numbers, before - before[..., :1])
    for ends in before.flatten(0, 1):
        some = slice(int(ends[0]), int(ends[-1]))
        assert torch.equal(others[1][some], keys[some])


@pytest.mark.parametrize("by", ["count", "mass"])
@pytest.mark.parametrize("least", [False, True])
def test_keys_up_to_cuts(by: str, least: bool) -> None:
    """All keys beyond the cut, and the first ones at it; of two cuts the lower one decides."""
    chance = torch.Generator().manual_seed(1)
    keys = torch.randint(-2, 6, (3, 2000), generator=chance, dtype=torch.int32)
    keys[0, ::7] = ABSENT if by == "count" else 0
    cuts = torch.tensor([[4, 30], [5, 0], [2, 100]], dtype=torch.int32)
    others = torch.tensor([[4, 60], [3, 7], [5, 3]], dtype=torch.int32) if least else None
    found = cut_marks.up_to_cuts(keys, cuts, others, by, 1990)

    def chosen(row: torch.Tensor, last: int, ties: int) -> torch.Tensor:
        forced = (row < 0) & (by == "mass")
        return (row > last) | forced | ((row == last) & ((row == last).cumsum(0) <= ties))

    for row in range(3):
        expected = chosen(keys[row, :1990], *cuts[row].tolist())
        if others is not None:
            expected = expected | chosen(keys[row, :1990], *others[row].tolist())
        assert torch.equal(found[row], expected), row


def test_sums_of_parts() -> None:
    """Finite numbers add up; infinite ones alone count beside others, and rows without entries say so."""
    whole = row_sums.empty_sums((1, 2, 300, 2), torch.device("cpu"), whole=False)
    parts = torch.empty(3, 2, 128, 2)
    parts[..., 0] = torch.randn(3, 2, 128, generator=torch.Generator().manual_seed(2)) * 9
    parts[..., 1] = torch.inf
    parts[1, 0, 5] = torch.tensor([row_sums.INFINITE, -1.0])  # two infinite entries
    parts[2, 0, 5] = torch.tensor([row_sums.INFINITE, 0.0])  # and one more
    parts[:2, 1, 7, 0] = row_sums.INFINITE
    parts[:, 1, 8, 0] = row_sums.INFINITE
    row_sums.join_sums(parts, whole, 128)
    logs = torch.where(parts[..., 0] < row_sums.INFINITE, parts[..., 0], -torch.inf)
    expected = torch.logsumexp(logs.double() * 0.6931471805599453, 0) / 0.6931471805599453
    expected[1, 8], expected[0, 5] = row_sums.INFINITE, row_sums.INFINITE
    torch.testing.assert_close(whole[0, :, 128:256, 0], expected.float())
    assert whole[0, 0, 133, 1] == -torch.log2(torch.tensor(3.0))
    assert torch.isinf(whole[0, :, :, 1]).sum() == 599
    assert (whole[0, :, :128, 0] == row_sums.INFINITE).all()


@pytest.mark.parametrize("columns", [1, 40, 1500])
def test_shares_of_scores(columns: int) -> None:
    """A NaN is absent, infinite scores share all there is, and a row without entries has zeros."""
    score = torch.randn(2, 4, columns, generator=torch.Generator().manual_seed(columns)) * 9
    score[0, 1], score[0, 2], score[0, 3, ::2] = -torch.inf, torch.nan, -torch.inf
    score[1, 0, ::3], score[1, 1, -1], score[1, 2] = torch.inf, torch.nan, -3e38
    found = share_kernels.shares_of(score)
    clean = score.double().nan_to_num(-torch.inf, torch.inf, -torch.inf)
    clean[1, 0] = torch.where(clean[1, 0] == torch.inf, 0.0, -torch.inf)
    torch.testing.assert_close(found, clean.softmax(-1).nan_to_num(0.0).float())
