"""Random well-typed static patterns, as `.spat` text.

`patterns(affine=True)` stays within what integer sets describe: sums, constant multiples, constant `//` and `%`, `min`,
`max`, `abs`, choices, blocks and a named grid.  Otherwise products, powers of two, roots, tables and reductions take
part.
A pattern that says `input` reads the tables `doc` (sorted, from 0), `flag` and `lean`; `tables` makes them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

Draw = st.DrawFn
Form = Callable[[], str]

_GRID = "  grid room (y: 3, x: 4) from 2\n"
_BLOCKS = ("  axis blk = token by {size}\n", "  axis big = blk by 2\n")
_INPUTS = "  input doc: int[token] in 0.. sorted\n  input flag: bool[token]\n  input lean: int[h] in 0..4\n"


def tables(n: int, heads: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Values for the inputs of any of these patterns."""
    random = np.random.default_rng(seed)
    return {
        "doc": random.integers(0, 2, n).cumsum(),
        "flag": random.random(n) < 0.3,
        "lean": random.integers(0, 5, heads),
    }


class _Writer:
    """Draws expressions of the wanted type from what the pattern has declared."""

    def __init__(self, draw: Draw, *, affine: bool, coordinates: list[str], lets: list[str]) -> None:
        self.draw, self.affine, self.coordinates, self.lets = draw, affine, coordinates, lets

    def pick(self, *options: str) -> str:
        return self.draw(st.sampled_from(options))

    def small(self, low: int = 0, high: int = 9) -> str:
        return str(self.draw(st.integers(low, high)))

    def number(self, depth: int) -> str:
        leaves = ["q", "k", "q - k", "h", "n - 1", "window", *self.coordinates, self.small()]
        if not self.affine:
            leaves += ["doc[q]", "doc[k]", "lean[h]"]
        if depth == 0:
            return self.pick(*leaves)
        down = depth - 1
        forms: list[Form] = [
            lambda: f"({self.number(down)} + {self.number(down)})",
            lambda: f"({self.number(down)} - {self.number(down)})",
            lambda: f"({self.number(down)}) * {self.small(0, 4)}",
            lambda: f"({self.number(down)}) // {self.small(1, 7)}",
            lambda: f"({self.number(down)}) % {self.small(1, 7)}",
            lambda: f"-({self.number(down)})",
            lambda: f"abs({self.number(down)})",
            lambda: f"min({self.number(down)}, {self.number(down)})",
            lambda: f"max({self.number(down)}, {self.small()}, {self.number(down)})",
            lambda: f"clamp({self.number(down)}, {self.small(0, 3)}, {self.small(4, 9)})",
            lambda: f"(if {self.truth(down)} then {self.number(down)} else {self.number(down)})",
        ]
        if not self.affine:
            forms += [
                lambda: f"({self.number(down)}) * ({self.number(down)})",
                lambda: f"isqrt({self.number(down)})",
                lambda: f"bitlen({self.number(down)})",
                lambda: f"floor(({self.number(down)}) / {self.small(1, 7)})",
                lambda: f"2 ** bitlen(min(abs({self.number(down)}), 99))",
                lambda: f"({self.number(down)}) % (1 + abs({self.number(down)}))",
            ]
        return self.draw(st.sampled_from(forms))()

    def truth(self, depth: int) -> str:
        leaves = ["causal", "all", "q - k < window", f"k < {self.small()}", "near(q, k)", "(q in room)", *self.lets]
        leaves += ["flag[q]", "flag[k]", "doc[q] == doc[k]"] if not self.affine else []
        if depth == 0:
            return self.pick(*leaves)
        down = depth - 1
        forms: list[Form] = [
            lambda: f"({self.number(down)} {self.pick('<', '<=', '>', '>=', '==', '!=')} {self.number(down)})",
            lambda: f"({self.small(0, 3)} <= {self.number(down)} < {self.small(4, 12)})",
            lambda: f"({self.number(down)} in ({self.small()}, {self.small()}, {self.small()}))",
            lambda: f"({self.truth(down)} and {self.truth(down)})",
            lambda: f"({self.truth(down)} or {self.truth(down)})",
            lambda: f"not ({self.truth(down)})",
            lambda: f"(if {self.truth(down)} then {self.truth(down)} else {self.truth(down)})",
        ]
        if not self.affine:
            forms += [
                lambda: f"is_pow2({self.number(down)})",
                lambda: f"({self.number(down)}) / 3 < {self.number(down)}",
            ]
        return self.draw(st.sampled_from(forms))()


@st.composite
def patterns(draw: Draw, *, affine: bool = True, depth: int = 3, reductions: bool = False) -> str:
    """The text of a pattern without parameters that need a value."""
    size = draw(st.integers(1, 5))
    coordinates = ["q.blk", "k.blk", "k.blk.first", "q.blk.last", "k.blk.size", "k.big"]
    lets: list[str] = []
    writer = _Writer(draw, affine=affine, coordinates=coordinates, lets=lets)
    text = "def near(x, y) = abs(x - y) <= 2\n"
    text += f"pattern random(window: int in 1.. = {draw(st.integers(1, 12))}) {{\n"
    text += _GRID + _BLOCKS[0].format(size=size) + _BLOCKS[1]
    if not affine:
        text += _INPUTS
    # Outside the grid a comparison of its coordinates is false, so they stand in comparisons of their own.
    lets.append(f"(k.{draw(st.sampled_from('yx'))} <= q.{draw(st.sampled_from('yx'))} + {writer.small(0, 3)})")
    for number in range(draw(st.integers(0, 2))):
        text += f"  let part{number} = {writer.truth(depth - 1)}\n"
        lets.append(f"part{number}")
    if reductions:
        kind = draw(st.sampled_from(("any", "all")))
        side = draw(st.sampled_from("qk"))
        text += f"  let coarse = {kind}({writer.truth(1)}, per = {side}.blk)\n"
        text += f"  let much = 2 * sum({writer.truth(1)}, per = {side}.blk) > {side}.blk.size\n"
        lets += ["coarse", "much"]
    for _ in range(draw(st.integers(1, 2))):
        text += f"  keep {writer.truth(depth)}\n"
    return text + "}\n"
