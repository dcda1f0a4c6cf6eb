"""`@spdsl.pattern` and `.spat` text give the same tree, and the same canonical text."""

from __future__ import annotations

import itertools
import linecache
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from torch import Tensor

import spdsl
from spdsl import language
from spdsl.decorator import program_of
from spdsl.grammar import nodes
from spdsl.grammar.parse import parse
from spdsl.grammar.print import to_spat
from spdsl.language import attend, axis, bias, grid, keep, mean, only, score, top
from tests.decorator import written

_numbers = itertools.count()
LIMIT = 7


def defined(text: str) -> dict[str, Any]:
    """What a cell of a notebook defines."""
    name = f"<cell {next(_numbers)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    names: dict[str, Any] = {"Annotated": Annotated, "Within": spdsl.Within, "spdsl": spdsl}
    exec(compile(text, name, "exec"), names)  # noqa: S102
    return names


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@settings(max_examples=100, deadline=None)
@given(written.PATTERNS)
def test_every_pattern_that_both_can_write(pattern: nodes.Pattern) -> None:
    program = nodes.Program(items=(pattern,))
    assert parse(to_spat(program)) == program
    assert program_of(defined(written.function(pattern))["mine"]) == program


# ---------------------------------------------------------------- by hand


def centre(x, window, extent):
    return max(min(x, extent - 1 - window // 2), window // 2)


@spdsl.pattern
def streaming(q, k, causal, window: Annotated[int, spdsl.Within(1)] = 1024, sinks: Annotated[int, spdsl.Within(0)] = 4):
    """A window that follows the query, plus the first tokens."""
    return causal and (q - k < window or k < sinks)


@spdsl.pattern
def packed(q, k, causal, doc: Annotated[Tensor, spdsl.Input("int[token] sorted")]):
    return causal and doc[q] == doc[k] and q - k < LIMIT


@spdsl.pattern
def picked(q, k, Q, K, token, causal, block: int = 512, picks: Annotated[int, spdsl.Within(1)] = 3):
    blk = axis(token, by=block)  # noqa: F841  # used as `k.blk`
    chosen = score(Q, mean(K, per=k.blk)) | only(k.blk < q.blk) | top(picks - 1)
    return causal and (chosen or k.blk == q.blk)


@spdsl.pattern
def near(q, k, height: int, width: int, window: int = 13):
    grid(y=height, x=width)
    keep(abs(k.y - centre(q.y, window, height)) <= window // 2)
    keep(abs(k.x - centre(q.x, window, width)) <= window // 2)


@spdsl.pattern
def gated(q, k, token, Q, K, V, causal, gate: spdsl.Input("float[2, h, q]"), open: spdsl.Input("bool[q.blk, k.blk]")):
    blk = axis(token, by=16)  # noqa: F841  # used as `k.blk`
    coarse = attend(Q, mean(K, per=k.blk), mean(V, per=k.blk), keep(k.blk.last < q and open))
    fine = attend(keep(streaming(window=16)), bias(-0.5 * (q - k)))
    return gate[0] * coarse + gate[1] * fine


@spdsl.pattern(use="gna.spat")
def by_text(q, k, causal, layer, wide: bool = False, extents: tuple[int, int] = (4, 8)):
    return causal and (q - k < extents[0] if layer in (0, 1) or wide else k == 0)


TEXTS = {
    streaming: """pattern streaming(window: int in 1.. = 1024, sinks: int in 0.. = 4) {
      keep causal and (q - k < window or k < sinks) }""",
    packed: "pattern packed() { input doc: int[token] sorted  keep causal and doc[q] == doc[k] and q - k < 7 }",
    picked: """pattern picked(block: int = 512, picks: int in 1.. = 3) {
      axis blk = token by block
      let chosen = score(Q, mean(K, per = k.blk)) |> only(k.blk < q.blk) |> top(picks - 1)
      keep causal and (chosen or k.blk == q.blk) }""",
    near: """def centre(x, window, extent) = max(min(x, extent - 1 - window // 2), window // 2)
      pattern near(height: int, width: int, window: int = 13) {
        grid (y: height, x: width)
        keep abs(k.y - centre(q.y, window, height)) <= window // 2
        keep abs(k.x - centre(q.x, window, width)) <= window // 2 }""",
    gated: """use "streaming.spat"
      pattern gated() {
        input gate: float[2, h, q]
        axis blk = token by 16
        input open: bool[q.blk, k.blk]
        let coarse = attend(Q, mean(K, per = k.blk), mean(V, per = k.blk)) { keep k.blk.last < q and open }
        let fine = attend { keep streaming(window = 16)  bias -0.5 * (q - k) }
        return gate[0] * coarse + gate[1] * fine }""",
    by_text: """pattern by_text(wide: bool = false, extents: int[2] = (4, 8)) {
      keep causal and (if layer in (0, 1) or wide then q - k < extents[0] else k == 0) }""",
}


@pytest.mark.parametrize("pattern", TEXTS, ids=lambda pattern: pattern.name)
def test_by_hand(pattern: spdsl.Pattern) -> None:
    assert pattern.to_spat() == spdsl.loads(TEXTS[pattern]).to_spat()


def test_numbers_from_outside_are_those_of_the_definition() -> None:
    def made(window: int) -> spdsl.Pattern:
        @spdsl.pattern
        def local(q, k, causal):
            return causal and q - k < window

        return local

    assert [made(size).mask(9, 9).sum().item() for size in (1, 2)] == [9, 17]


def test_a_definition_of_a_library_file() -> None:
    names = defined('@spdsl.pattern(use="gna.spat")\ndef mine(q, k):\n    return beside(q, k, 64, 7, 1, 1)\n')
    text = 'use "gna.spat" pattern mine() { keep beside(q, k, 64, 7, 1, 1) }'
    assert names["mine"].to_spat() == spdsl.loads(text).to_spat()


def test_it_attends() -> None:
    import torch

    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 40, 16)
    attention = spdsl.compile(streaming, window=5, sinks=1)
    torch.testing.assert_close(attention(q, k, v), spdsl.compile("streaming", window=5, sinks=1)(q, k, v))


def test_words_are_read_and_not_called() -> None:
    assert {"axis", "attend", "score", "causal", "top", "clamp"} <= set(dir(language))
    with pytest.raises(spdsl.SpatError) as caught:
        axis(3, by=4)
    assert caught.value.code == "SP110"
    with pytest.raises(ImportError):
        from spdsl.language import nothing  # noqa: F401
