"""Which parameters may stay open, and what a pattern looks like that leaves them so."""

from __future__ import annotations

import pytest

from spdsl.pipeline import bound, closed, key_of, opened, read, reasons
from spdsl.semantics.bind import bind
from spdsl.semantics.free import LARGEST, fits, reasons_to_fix
from spdsl.semantics.nodes import FreeParam
from spdsl.semantics.rewrite import walk
from spdsl.semantics.show import print_expr

FREE = (
    "keep causal and q - k < p",
    "keep abs(q - k) <= p // 2",
    "keep causal and (q - k < p or k % 4 == 0)",
    "keep q - k < p * (h + 1)",
    "keep q - k < 3 * p - 1",
    "keep k < min(p, n)",
    "keep if p > 3 then causal else q - k < p",
    "keep causal  bias if q - k < p then 0.0 else -1.0",
    "keep causal  sink_logit if q < p then 0.0 else 1.0",
)
FIXED = {
    "axis blk = token by p  keep q.blk == k.blk": "the axis",
    "grid area (y: p, x: 4)  keep q.y == k.y": "a grid",
    "grid (y: 4, x: 8)  keep abs(q.y - k.y) <= p": "the boxes",
    "keep (q - k) % p == 0": "a divisor",
    "keep (q - k) // p == 0": "a divisor",
    "keep (q - k) % 4 == p": "a residue class",
    "keep (q - k + p) % 4 == 0": "a residue class",
    "keep q * p >= k": "multiplied",
    "keep q - k < 1000 * p": "multiplied",
    "keep q - k < p * p": "multiplied",
    "keep q - k < 2 ** p": "`pow`",
    "keep causal  bias (q - k) / p": "`float`",
    "keep causal  scale 1.0 / p": "the scale",
    "input t: int[token]  keep causal and t[clamp(q - p, 0, n - 1)] > 0": "an index of `t`",
    "axis blk = token by 4  keep any(q - k < p, per = q.blk) and causal": "a selection or reduction",
}


@pytest.mark.parametrize("body", FREE)
def test_free(body: str) -> None:
    assert reasons_to_fix(read(f"pattern t(p: int in 0.. = 5) {{ {body} }}")) == {}


@pytest.mark.parametrize("body", FIXED)
def test_fixed(body: str) -> None:
    found = reasons_to_fix(read(f"pattern made(p: int in 1.. = 5) {{ {body} }}"))
    assert FIXED[body] in found["p"]


def test_only_single_ints() -> None:
    checked = read("pattern t(a: int[2] = (1, 2), f: float = 1.0, c: bool = true) { keep q - k < a[0] and c }")
    assert set(reasons_to_fix(checked)) == {"a", "f", "c"}


def test_bound_with_open_parameters() -> None:
    checked = read(
        "pattern t(window: int in 1.. = 5, part: int in 0..8 = 2) { keep 0 <= q - k < window and part >= 0 }"
    )
    made = bind(checked, {}, heads=1, groups=1, head_dim=16, free=("window", "part"))
    # What the declared range decides is decided.
    assert print_expr(made.attend.keep) == "0 <= q - k and q - k < window"
    assert FreeParam(name="window", low=1) in set(walk(made.attend.keep))
    assert [each.name for each in made.free] == ["window", "part"]
    assert made.parameters == ()


def test_keys_without_values() -> None:
    checked = read("pattern t(window: int in 1.. = 5, block: int = 4) { axis b_ = token by block keep q - k < window }")
    keys = {opened(key_of(checked, given, None, None, False)) for given in ({}, {"window": 9}, {"block": 4})}
    assert {values for _, values in keys} == {(5,), (9,)}
    assert len({key for key, _ in keys}) == 1
    key, values = opened(key_of(checked, {"window": 9}, None, None, False))
    assert bound(closed(key, values), 1, 1, 16) == bound(key_of(checked, {"window": 9}, None, None, False), 1, 1, 16)
    assert opened(closed(key, values)) == (key, values)


def test_large_values_are_constants() -> None:
    checked = read("pattern t(window: int = 5) { keep q - k < window }")
    key = key_of(checked, {"window": LARGEST + 1}, None, None, False)
    assert not fits(LARGEST + 1)
    assert opened(key)[1] == ()
    assert reasons(key) == {"window": "the value is too large"}
