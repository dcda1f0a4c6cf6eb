"""Selections by numbers of keys alone: until when each key is among the best of its past, against loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import spdsl
from spdsl.pipeline import lives_of
from spdsl.runtime.lives import lives
from spdsl.runtime.ranking import FAR
from spdsl.semantics.lifetimes import RUN
from tests.library.compare import relative_error

PATTERN = """pattern lasting() {{
  input x: float[{axes}]
  let c = {value} |> only({past}) |> top({most})
  keep {keep}
}}"""


def text(
    axes: str = "g, token", value: str = "x[g, k]", past: str = "causal", most: str = "5", keep: str = "causal and c"
) -> str:
    return PATTERN.format(axes=axes, value=value, past=past, most=most, keep=keep)


@given(
    n=st.sampled_from([1, 5, RUN, RUN + 1, 150, 260]),
    most=st.sampled_from([1, 3, RUN, RUN + 1, 100, 200]),
    kinds=st.sampled_from([2, 7, 1000]),
    rising=st.sampled_from([0, 0, 1, -1]),
    seed=st.integers(0, 1000),
)
@example(n=260, most=200, kinds=2, rising=1, seed=0)
@settings(max_examples=25, deadline=None)
def test_the_best_of_every_prefix(n: int, most: int, kinds: int, rising: int, seed: int) -> None:
    """Ties go to the smaller index, NaN is absent, infinities are ordinary."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.randint(0, kinds, (2, n), generator=generator).float() + 1000.0 * rising * torch.arange(n)
    for corner in (math.nan, -math.inf, math.inf) if not rising else ():
        value[torch.rand(2, n, generator=generator) < 0.07] = corner
    until, lists = lives(value[None], most)
    for row in range(2):
        numbers, ends = value[row].tolist(), until[0, row].tolist()
        kept = []
        for q in range(n):
            past = [k for k in range(q + 1) if not math.isnan(numbers[k])]
            kept.append(set(sorted(past, key=lambda k: (-numbers[k], k))[:most]))
            assert {k for k in range(q + 1) if q < ends[k]} == kept[-1]
        for run in range(-(-n // RUN)):
            found = [k for k in lists[0, row, run].tolist() if k != FAR]
            assert found == sorted(set().union(*kept[run * RUN : (run + 1) * RUN]))


@pytest.mark.parametrize("n", [0, 1])
def test_no_tokens(n: int) -> None:
    until, lists = lives(torch.zeros(2, 3, n), 4)
    assert until.shape == (2, 3, n)
    assert lists.shape == (2, 3, n, 4 + RUN)


@pytest.mark.parametrize(
    "changed",
    [
        {"past": "k < q"},
        {"most": "0"},
        {"axes": "h, q", "value": "x[h, q] * k"},
        {"value": "x[g, k] + q"},
        {"keep": "causal and c and score(Q, K) > 0"},
    ],
)
def test_what_depends_on_queries_has_no_lifetimes(changed: dict[str, str]) -> None:
    assert lives_of(spdsl.compile(spdsl.loads(text(**changed)))._open_key, 2, 2, 8) is None


@pytest.mark.parametrize(
    ("axes", "value", "keep"),
    [
        ("g, token", "x[g, k]", "causal and c"),
        ("h, token", "-x[h, k]", "causal and (c or q - k < 3)"),
        ("token", "2 * x[k] + 1", "not c and causal"),
    ],
)
@pytest.mark.parametrize("nq", [150, 20])
def test_results_are_those_of_the_reference(axes: str, value: str, keep: str, nq: int) -> None:
    attn = spdsl.compile(spdsl.loads(text(axes=axes, value=value, keep=keep)), backend="cpu")
    assert lives_of(attn._open_key, 4, 2, 8) is not None
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, n, 8, generator=generator) for h, n in ((4, nq), (2, 150), (2, 150)))
    shape = {"g, token": (2, 2, 150), "h, token": (4, 150), "token": (150,)}[axes]
    x = torch.randint(0, 40, shape, generator=generator).float()
    leaves = [each.requires_grad_() for each in (q, k, v)]
    out, expected = attn(*leaves, x=x), attn.reference(*leaves, x=x)
    assert isinstance(out, Tensor)
    assert isinstance(expected, Tensor)
    d_out = torch.randn(out.shape, generator=generator)
    found = (out, *torch.autograd.grad(out, leaves, d_out))
    wanted = (expected, *torch.autograd.grad(expected, leaves, d_out.double()))
    for one, two in zip(found, wanted, strict=True):
        assert relative_error(one, two) <= 1e-5
