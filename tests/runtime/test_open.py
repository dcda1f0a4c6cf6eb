"""Free parameters: one plan for all their values, against the reference; and what explain says of them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import spdsl
from spdsl import prepare
from spdsl.explain import explain
from spdsl.semantics.free import LARGEST
from tests.library.compare import poisoned, relative_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A pattern's text and the ranges of its free parameters; ``weighed`` where kernels for a value may be better."""

    text: str
    ranges: dict[str, tuple[int, int]]
    weighed: bool = False

    @property
    def values(self) -> st.SearchStrategy[dict[str, int]]:
        """Values, some at the ends and around multiples of tiles."""
        return st.fixed_dictionaries(
            {
                name: st.sampled_from([low, high, *(x for x in (31, 32, 33, 64, 65) if low <= x <= high)])
                | st.integers(low, high)
                for name, (low, high) in self.ranges.items()
            }
        )


PATTERNS = {
    "window": Open(text="keep 0 <= q - k < size", ranges={"size": (1, 300)}),
    "sinks": Open(text="keep causal and (q - k < size or k < first)", ranges={"size": (1, 200), "first": (0, 150)}),
    "half": Open(text="keep abs(q - k) <= size // 2", ranges={"size": (0, 300)}),
    "both": Open(text="keep -ahead <= q - k <= size", ranges={"size": (-20, 200), "ahead": (-20, 100)}),
    "prefix": Open(text="keep causal or k < first", ranges={"first": (-5, 200)}),
    "hole": Open(text="keep causal and (k < first or k >= last)", ranges={"first": (0, 200), "last": (0, 200)}),
    "heads": Open(text="keep causal and q - k < size * (h + 1)", ranges={"size": (-1, 100)}),
    "lattice": Open(text="keep causal and (q - k < size or k % 64 == 0)", ranges={"size": (0, 100)}, weighed=True),
    "dilated": Open(text="keep 0 <= q - k < size and (q - k) % 3 == 0", ranges={"size": (1, 300)}),
    "choice": Open(text="keep if first > 10 then causal else q - k >= size",
                   ranges={"size": (-90, 90), "first": (0, 20)}),
    "bias": Open(text="keep causal  bias if q - k < size then 0.5 else -1.0", ranges={"size": (0, 200)}),
    "sink": Open(text="keep q - k >= size  sink_logit if q < first then 1.0 else 0.0",
                 ranges={"size": (0, 99), "first": (0, 99)}),
    "table": Open(text="input t: int[token]  keep causal and (t[k] > 2 or q - k < size)", ranges={"size": (0, 99)}),
    "segments": Open(text="input t: int[token] sorted  keep causal and t[q] == t[k] and q - k < size",
                     ranges={"size": (0, 99)}),
    "distances": Open(text="keep causal and (is_pow2(q - k) or q - k < size)", ranges={"size": (0, 99)}),
    "tiles": Open(text="axis blk = token by 16  keep causal and (is_pow2(q.blk - k.blk) or q.blk - k.blk <= size)",
                  ranges={"size": (0, 9)}),
    "stage": Open(text="input t: int[token]  axis blk = token by 8  keep causal and (max(t[k], per = k.blk) > size "
                  "or q - k < 3)", ranges={"size": (0, 5)}),
    "block": Open(text="axis blk = token by 32  keep causal and k.blk.last >= q - size", ranges={"size": (0, 200)}),
}  # fmt: skip

LENGTHS = st.sampled_from([(1, 1), (64, 64), (130, 130), (40, 131), (3, 200)])


def compiled(pattern: Open, values: dict[str, int], backend: str) -> spdsl.Attention:
    declared = ", ".join(f"{name}: int in {low}.." for name, (low, _) in pattern.ranges.items())
    return spdsl.compile(spdsl.loads(f"pattern opened({declared}) {{ {pattern.text} }}"), backend=backend, **values)


def check(attn: spdsl.Attention, nq: int, n: int) -> None:
    """Output, LSE and gradients are the reference's."""
    generator = torch.Generator().manual_seed(n + nq)
    q = torch.randn(1, 2, nq, 16, generator=generator, requires_grad=True)
    k, v = (torch.randn(1, 1, n, 16, generator=generator, requires_grad=True) for _ in range(2))
    inputs = {"t": torch.randint(0, 5, (n,), generator=generator).sort().values} if attn.pattern.inputs else {}
    with poisoned():
        out, lse = attn(q, k, v, return_lse=True, **inputs)
        expected, expected_lse = attn.reference(q, k, v, return_lse=True, **inputs)
        seen = torch.isfinite(expected_lse)
        assert torch.equal(torch.isfinite(lse), seen)
        d_out = torch.randn(out.shape, generator=generator)
        found = torch.autograd.grad(out, (q, k, v), d_out)
        wanted = torch.autograd.grad(expected, (q, k, v), d_out.double())
    assert relative_error(out, expected) <= 1e-5
    assert relative_error(lse[seen], expected_lse[seen]) <= 1e-5
    for gradient, reference in zip(found, wanted, strict=True):
        assert _close(gradient, reference)


def _close(found: Tensor, wanted: Tensor) -> bool:
    # Where a query sees one key its gradient is a difference of equal numbers.
    return relative_error(found, wanted) <= 2e-5 or bool((found - wanted).abs().max() < 1e-5)


def check_values(pattern: Open, backend: str, examples: int) -> None:
    """Calls with many values, and few plans: for all positions, for queries that are the last ones, and kernels for few
    of these."""

    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )
    @given(values=pattern.values, lengths=LENGTHS)
    def run(values: dict[str, int], lengths: tuple[int, int]) -> None:
        check(compiled(pattern, values, backend), *lengths)

    prepare._planned.cache_clear()
    run()
    assert pattern.weighed or prepare._planned.cache_info().misses <= (2 if backend == "cpu" else 3)


@pytest.mark.parametrize("name", PATTERNS)
def test_values_that_change(name: str) -> None:
    check_values(PATTERNS[name], "cpu", 25)


def report(attn: spdsl.Attention, n: int = 512) -> str:
    q = torch.zeros(()).expand(1, 2, n, 64)
    return explain(attn._key, q, q, q, {}, "sm_90").text()


def test_explain_says_what_is_open() -> None:
    assert "at run time: window = 77, sinks = 4" in report(spdsl.compile("streaming", window=77))
    text = report(spdsl.compile("dilated", span=100, dilation=2))
    assert "at run time: span = 100" in text
    assert "in the kernels: dilation = 2, because it is a divisor" in text


def test_explain_says_why_several_are_constants() -> None:
    text = "pattern p(low: float = 0.5, top_bias: float = 2.0, size: int = 4) { keep causal and q % size < 3 "
    text = report(spdsl.compile(spdsl.loads(text + "bias low * top_bias }")))
    assert "in the kernels: low = 0.5, top_bias = 2.0, because each is no single int" in text
    moba = spdsl.compile("moba", block=16, picks=2)
    keys = torch.zeros(1, 1, 32, 8)
    assert "block = 16, picks = 2, because selections are computed with them" in moba.explain(keys, keys, keys)


def test_large_values_are_constants() -> None:
    text = report(spdsl.compile("sliding_window", window=LARGEST + 1))
    assert f"in the kernels: window = {LARGEST + 1}, because the value is too large" in text
    wide = spdsl.compile("streaming", window=LARGEST + 1, sinks=LARGEST + 2)
    assert "because each value is too large" in report(wide)
    check(spdsl.compile("sliding_window", window=LARGEST + 1, backend="cpu"), 40, 40)
    check(spdsl.compile("sliding_window", window=LARGEST, backend="cpu"), 40, 40)


def test_values_keep_their_errors() -> None:
    with pytest.raises(spdsl.SpatError, match="`window` is 0, but must be in 1"):
        spdsl.compile("sliding_window", window=0)


def test_a_closed_form_is_worth_a_constant() -> None:
    """Where a kernel for all values masks full tiles that one for the value does not, that one is taken."""
    text = (
        "pattern mixed(size: int in 1.. = 128, first: int in 0.. = 4) { keep causal and (q - k < size or k < first or "
    )
    attn = spdsl.compile(spdsl.loads(text + "(q // 64 - k // 64) % 4 == 0) }"))
    shown = report(attn)
    assert "in the kernels: size = 128, first = 4, because a kernel for all values would do worse" in shown
    check(attn, 150, 150)
