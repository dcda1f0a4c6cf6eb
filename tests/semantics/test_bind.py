"""Values of parameters: what fits is folded in, what does not fit is told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spdsl.diagnostics import SpatError
from spdsl.grammar.parse import parse
from spdsl.semantics.bind import bind
from spdsl.semantics.check import check
from spdsl.semantics.expand import expand
from spdsl.semantics.nodes import BoundPattern, Extent, Param
from spdsl.semantics.rewrite import walk
from spdsl.semantics.show import dump, print_expr
from tests.semantics.evaluate import Place, value

TEXT = """
pattern p(size: int in 1..64 = 4, share: float = 0.5, sizes: int[2] = (2, 3), past: bool = true, need: int) {
  axis blk = token by size
  keep (past and causal or q.blk == k.blk) and q % sizes[1] < need
  softcap share
}
"""


def bound(text: str = TEXT, *, layer: int | None = None, heads: int = 4, groups: int = 2, **given: Any) -> BoundPattern:
    return bind(check(parse(text, "test.spat")), given, layer=layer, heads=heads, groups=groups, head_dim=64)


def test_everything_is_folded() -> None:
    pattern = bound(need=2, size=8, sizes=[5, 6], past=False, share=30)
    assert dict(pattern.parameters) == {"size": 8, "share": 30.0, "sizes": (5, 6), "past": False, "need": 2}
    assert print_expr(expand(pattern, pattern.attend.keep)) == "q // 8 == k // 8 and q % 6 < 2"
    assert not any(isinstance(node, (Param, Extent)) for node in walk(pattern.attend.keep))
    assert "softcap 30.0" in dump(pattern)


@pytest.mark.parametrize(
    ("code", "given"),
    [
        ("SP331", {}),
        ("SP330", {"need": 1, "siez": 3}),
        ("SP332", {"need": True}),
        ("SP332", {"need": 1.0}),
        ("SP332", {"need": "1"}),
        ("SP332", {"need": 2**63}),
        ("SP332", {"need": 1, "past": 1}),
        ("SP332", {"need": 1, "share": False}),
        ("SP333", {"need": 1, "size": 0}),
        ("SP333", {"need": 1, "size": 65}),
        ("SP334", {"need": 1, "sizes": (1, 2, 3)}),
        ("SP334", {"need": 1, "sizes": 3}),
        ("SP332", {"need": 1, "sizes": (1, 2.0)}),
        ("SP336", {"need": 1, "sizes": (1, 0)}),
        ("SP339", {"need": 1, "share": float("nan")}),
        ("SP339", {"need": 1, "share": float("inf")}),
        ("SP339", {"need": 1, "share": 0}),
    ],
)
def test_mistakes(code: str, given: dict[str, Any]) -> None:
    with pytest.raises(SpatError) as caught:
        bound(**given)
    assert caught.value.code == code
    assert caught.value.help


def test_did_you_mean() -> None:
    with pytest.raises(SpatError, match="did you mean `size`"):
        bound(need=1, siez=3)


def test_numpy_numbers_fit() -> None:
    assert dict(bound(need=np.int64(3)).parameters)["need"] == 3


def test_layer_is_needed_only_where_it_is_used() -> None:
    text = "pattern p() { keep causal and layer in (1, 2) }"
    assert print_expr(bound(text, layer=2).attend.keep) == "k <= q"
    assert print_expr(bound(text, layer=3).attend.keep) == "false"
    with pytest.raises(SpatError) as caught:
        bound(text)
    assert caught.value.code == "SP335"


def test_heads_must_share_groups_evenly() -> None:
    with pytest.raises(SpatError) as caught:
        bound(need=1, heads=4, groups=3)
    assert caught.value.code == "SP338"


def test_sizes_of_axes() -> None:
    text = "pattern p(size: int = 0) { axis blk = token by size  keep q.blk == k.blk }"
    for given in ({}, {"size": -1}):
        with pytest.raises(SpatError) as caught:
            bound(text, **given)
        assert caught.value.code == "SP337"
    with pytest.raises(SpatError) as caught:
        bound("pattern p() { axis blk = token by n  keep q.blk == k.blk }")
    assert caught.value.code == "SP337"


def test_arithmetic_that_is_not_needed_may_fail() -> None:
    text = "pattern p(size: int = 0) { keep if size > 0 then q // size == k // size else causal }"
    assert print_expr(bound(text).attend.keep) == "k <= q"


@pytest.mark.parametrize(
    "expression",
    [
        "2 ** (size * 100)",
        "9223372036854775807 + size",
        "sqrt(-size)",
        "exp(size * 1000)",
        "q // (size - 1)",
        "log(size - 1)",
    ],
)
def test_arithmetic_that_fails(expression: str) -> None:
    with pytest.raises(SpatError) as caught:
        bound(f"pattern p(size: int in 0.. = 1) {{ keep {expression} > k }}")
    assert caught.value.code == "SP336"


@pytest.mark.parametrize(("size", "step"), [(4, 2), (5, 2), (3, 3), (2, 3), (7, 1)])
def test_overlapping_windows(size: int, step: int) -> None:
    """A key is kept if any window that holds it is kept."""
    text = (
        "pattern p(size: int, stride: int) {\n  axis win = token by size step stride\n"
        "  keep k.win.last <= q and k.win % 2 == 0\n}"
    )
    pattern = bound(text, size=size, stride=step)
    keep = expand(pattern, pattern.attend.keep)
    n = 17
    for q in range(n):
        for k in range(n):
            windows = [w for w in range(n) if w * step <= k < w * step + size]
            expected = any(w * step + size - 1 <= q and w % 2 == 0 for w in windows)
            assert bool(value(keep, Place(pattern=pattern, n=n, q=q, k=k))) == expected


def test_dump(golden: Any) -> None:
    golden(dump(check(parse(TEXT, "test.spat"))) + "\n" + dump(bound(need=2)))
