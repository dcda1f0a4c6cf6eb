"""Counts of calls that nobody makes: sets drawn at random, and short calls carried on to long ones."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import spdsl
from spdsl.drawn_sets import drawn
from spdsl.explain import Report
from spdsl.extrapolation import Longer
from spdsl.foretold import Foretelling
from spdsl.pipeline import key_of
from spdsl.runtime.ranking import FAR
from spdsl.samples import Sizes, sample_inputs
from spdsl.samples import drawn as tensors
from spdsl.selecting import explain_stages


def telling(name: str, sizes: Sizes, **parameters: int | tuple[int, ...]) -> Foretelling:
    """What is asked of calls of a pattern of the library on a GPU."""
    checked = spdsl.load(name).checked
    return Foretelling(
        key=key_of(checked, parameters, None, None, False),
        sizes=sizes,
        value_dim=sizes.head_dim,
        dtype=torch.bfloat16,
        inputs=lambda own: sample_inputs(checked, parameters, own),
        target="sm_90",
        gpu=None,
        seed=0,
        fixed=False,
    )


def test_lists_have_what_is_forced_and_different_keys_of_those_there_are() -> None:
    draw = torch.Generator().manual_seed(1)
    only, forced = torch.rand(200, 40, generator=draw) < 0.3, torch.rand(200, 40, generator=draw) < 0.05
    only[:20] = torch.arange(40) < torch.arange(20)[:, None]
    forced[-1] = True
    for given in (forced, None):
        lists = drawn(only, given, 4, draw).tolist()
        for row, (may, must) in enumerate(zip(only, forced if given is not None else forced & False, strict=True)):
            real = [each for each in lists[row] if each != FAR]
            assert real == sorted(set(real))
            assert len(real) == min(4, int((may | must).sum()))
            assert lists[row][len(real) :] == [FAR] * (4 - len(real))
            needed = must.nonzero()[:, 0].tolist()
            assert set(needed[:4]) <= set(real) <= set((may | must).nonzero()[:, 0].tolist())


def test_every_key_is_drawn_as_often() -> None:
    lists = drawn(torch.ones(4000, 12, dtype=torch.bool), None, 3, torch.Generator().manual_seed(2))
    assert (lists.flatten().bincount(minlength=12) - 1000).abs().max() < 150


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("nsa", {"picks": 4, "window": 64, "block": 32}), ("moba", {"block": 64}), ("quest", {"budget": 128})],
)
def test_sets_are_as_large_as_random_scores_make_them(name: str, parameters: dict[str, int]) -> None:
    """What is drawn is compared with what is selected of random queries and keys, as it stands."""
    sizes = Sizes(batch=1, heads=4, groups=2, nq=1024, n=1024, head_dim=16)
    told = telling(name, sizes, **parameters)
    random = explain_stages(told.key, *tensors(sizes, 16, torch.bfloat16, 3), told.inputs(sizes), "sm_90")
    found = told.report()
    assert [title for title, _ in found.softmaxes] == [title for title, _ in random.softmaxes]
    for (_, one), (_, other) in zip(found.softmaxes, random.softmaxes, strict=True):
        assert one.pairs == pytest.approx(other.pairs, rel=0.06)
        for mine, real in zip(one.kernels, other.kernels, strict=True):
            assert (mine.kind, mine.block_q, mine.block_k) == (real.kind, real.block_q, real.block_k)
            assert mine.touched == pytest.approx(real.touched, rel=0.06)
    assert found.stages == random.stages


def test_long_calls_are_told_from_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for few picks, two shorter calls of one group's heads stand for all."""
    sizes = Sizes(batch=1, heads=4, groups=2, nq=8192, n=8192, head_dim=16)
    told = telling("moba", sizes, block=64, picks=3)
    whole = told.report()
    monkeypatch.setattr("spdsl.foretold.PICKS", 1 << 14)
    short = told.report()
    assert "1,024 and 2,048 tokens" in short.estimated[0]
    (_, one), (_, other) = short.softmaxes[0], whole.softmaxes[0]
    assert (one.n, one.nq, one.heads) == (8192, 8192, 4)
    assert one.pairs == pytest.approx(other.pairs, rel=0.02)
    for mine, real in zip(one.kernels, other.kernels, strict=True):
        assert mine.touched == pytest.approx(real.touched, rel=0.08)  # few queries of each block fill tiles worse
    assert one.cost is not None
    assert other.cost is not None
    assert one.cost.forward == pytest.approx(other.cost.forward, rel=0.05)
    assert one.cost.dense_forward == other.cost.dense_forward


def test_counts_go_on_along_a_line_or_a_power() -> None:
    longer = Longer(n=16384, nq=16384, times=3)
    # 5 tiles for each of n / 64 rows, less 40.
    assert longer.of_one(5 * 32 - 40, 5 * 64 - 40, 4096) == 5 * 256 - 40
    assert longer.of_one(1000, 4000, 4096) == 64000
    assert longer.of_one(7, 7, 4096) == 7
    assert longer.count(0, 0, 4096) == 0
    assert longer.count(10, 20, 4096) == 3 * 80


def test_thresholds_are_told_from_short_calls() -> None:
    sizes = Sizes(batch=1, heads=4, groups=2, nq=32768, n=32768, head_dim=16)
    found = telling("seer_attention", sizes).report()
    assert "depends on scores" in found.estimated[0]
    report: Report = found.softmaxes[0][1]
    assert 0 < report.pairs <= 4 * 32768 * 32769 // 2


def test_a_search_at_full_length_is_told_in_a_moment() -> None:
    """What took more than ten minutes: no score is computed."""
    sizes = Sizes(batch=1, heads=1, groups=1, nq=131072, n=131072, head_dim=64)
    told = telling("hip", sizes)
    assert not told.is_short()
    assert telling("hip", replace(sizes, n=512, nq=512)).is_short()
    report = told.report().softmaxes[0][1]
    # A window of 1,024, 256 sinks, and up to 2,048 keys of blocks, of which some are in the window.
    assert 1280 * 0.98 < report.pairs / 131072 < 1280 + 2048


def test_heads_that_differ_are_all_counted() -> None:
    text = """
pattern apart() {
  axis blk = token by 64
  let chosen = score(Q, mean(K, per = k.blk)) |> only(k.blk < q.blk) |> top(4)
  keep causal and (if h < 2 then chosen else q - k < 128)
}
"""
    checked = spdsl.loads(text).checked
    sizes = Sizes(batch=1, heads=4, groups=4, nq=512, n=512, head_dim=16)
    told = replace(telling("moba", sizes), key=key_of(checked, {}, None, None, False))
    assert told._of_group(sizes) == (sizes, 1)
    assert telling("moba", sizes)._of_group(sizes) == (replace(sizes, heads=1, groups=1), 4)
    assert json.loads(told.key)["text"]
