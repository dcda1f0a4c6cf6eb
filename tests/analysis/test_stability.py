"""Which selections later tokens change: the warnings, and what prefill and decoding make of them."""

from __future__ import annotations

import pytest
import torch

import spdsl
from spdsl.analysis.stability import unstable
from spdsl.library import text_of
from spdsl.pipeline import read
from spdsl.semantics.bind import bind
from tests.library.definitions import DEFINITIONS

SIZES = {"frames": 2, "height": 4, "width": 4}
EXPECTED = {
    "moba": [],
    "nsa": [],
    "dsa": [],
    "dma": [],
    "vsa": [],  # it keeps later keys, and says so
    "infllm_v2": ["the number of tokens takes part"],
    "quest": ["it may see a part of `k.pg` whose rest comes later"],
    "seer_attention": ["the number of tokens takes part"],
    "xattention": ["its block of queries is pooled"],
    "vertical_slash": ["it is summed over all queries", "the number of tokens takes part"],
}


def reasons(text: str, name: str | None = None) -> set[str]:
    checked = read(text, name=name)
    values = {each.name: SIZES[each.name] for each in checked.parameters if each.default is None}
    found = unstable(bind(checked, values, heads=2, groups=1, head_dim=64))
    return {each.message.partition(": ")[2] for each in found}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_library(name: str) -> None:
    assert reasons(text_of(name), name) >= set(EXPECTED[name])
    assert bool(reasons(text_of(name), name)) == bool(EXPECTED[name])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("routing", "queries compete with each other"),
        ("flexprefill", "queries compete with each other"),
        ("superlinear", None),
        ("sea", "the number of tokens takes part"),
        ("snapkv", None),  # its export is not read by attention
        ("longnet", None),
    ],
)
def test_routers(name: str, reason: str | None) -> None:
    found = reasons(text_of(name).replace("clusters: int in 1..,", "clusters: int in 1.. = 4,"), name)
    assert (reason in found) if reason is not None else not found


@pytest.mark.parametrize(
    ("only", "stable"),
    [
        ("k.blk < q.blk", True),
        ("k.blk.last <= q", True),
        ("k.blk.last < q or k.blk.last == q", True),
        ("k.blk <= q.blk", False),
        ("k.blk.first <= q", False),
    ],
)
def test_summaries(only: str, stable: bool) -> None:
    text = f"""pattern summed() {{
      axis blk = token by 8
      let chosen = score(Q, mean(K, per = k.blk)) |> only({only}) |> top(1)
      keep causal and (chosen or k.blk == q.blk)
    }}"""
    assert (reasons(text) == set()) == stable
    # What the warning says: rows of a prefix against those of the whole.
    q, k, v = torch.randn(3, 1, 1, 45, 8, generator=torch.Generator().manual_seed(3))
    attn = spdsl.compile(spdsl.loads(text))
    whole = attn(q, k, v)
    same = all(
        torch.allclose(attn(q[:, :, :t], k[:, :, :t], v[:, :, :t]), whole[:, :, :t], atol=1e-5) for t in range(1, 45)
    )
    assert same == stable
