"""show: every stage, as text and as JSON."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cli.conftest import Answer

Spdsl = Callable[..., Answer]
LINES = {
    "ast": "Pattern streaming",
    "text": "keep causal and (q - k < window or k < sinks)",
    "checked": "keep k <= q and (q - k < window or k < sinks)",
    "bound": "keep k <= q and (q - k < 256 or k < 4)",
    "tiles": "dkdv: tiles of 64 queries",
    "plan": "Plan",
    "block": "Kernel",
    "triton": "@triton.jit",
}


@pytest.mark.parametrize("stage", LINES)
def test_every_stage_as_text(spdsl: Spdsl, stage: str) -> None:
    answer = spdsl("show", "streaming", "--emit", stage, "-p", "window=256")
    assert (answer.status, answer.err) == (0, "")
    assert LINES[stage] in answer.out


@pytest.mark.parametrize("stage", LINES)
def test_every_stage_as_json(spdsl: Spdsl, stage: str) -> None:
    answer = spdsl("show", "streaming", "--emit", stage, "--json")
    assert answer.status == 0
    assert answer.json["stage"] == stage
    assert answer.json["result"]


@pytest.mark.parametrize("stage", ["bound", "plan", "triton"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-p", "windw=3"), "`windw`"),
        (("-p", "window=1.5"), "`window`"),
        (("-p", "window=0"), "`window`"),
        (("-p", "window=1,2"), "`window`"),
        (("-p", "window=99999999999999999999"), "`window`"),
    ],
    ids=lambda each: each[-1] if isinstance(each, tuple) else "",
)
def test_wrong_parameters(spdsl: Spdsl, stage: str, words: tuple[str, ...], told: str) -> None:
    answer = spdsl("show", "streaming", "--emit", stage, *words)
    assert answer.status == 1
    assert "error[SP3" in answer.err
    assert told in answer.err


def test_a_parameter_that_is_missing(spdsl: Spdsl) -> None:
    answer = spdsl("show", "block_diffusion", "--emit", "bound")
    assert answer.status == 1
    assert "`half`" in answer.err


def test_a_single_number_for_a_tuple_of_one(spdsl: Spdsl) -> None:
    answer = spdsl("show", "neighborhood_1d", "--emit", "bound", "-p", "extents=64", "-p", "window=5")
    assert answer.status == 0
    assert "extents = (64" in answer.out


def test_a_target_that_is_none(spdsl: Spdsl) -> None:
    answer = spdsl("show", "streaming", "--emit", "plan", "--target", "sm_1")
    assert answer.status == 1
    assert "sm_90" in answer.err


def test_standard_input(spdsl: Spdsl, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    text = b"pattern piped() { keep causal }"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert "pattern piped()" in spdsl("show", "-").out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert spdsl("fmt", "-").out == "pattern piped() {\n  keep causal\n}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"pattern \xff")))
    assert "error[SP108]" in spdsl("check", "-").err


@pytest.mark.parametrize("stage", ["text", "checked", "bound"])
def test_a_parameter_that_does_not_exist(spdsl: Spdsl, stage: str) -> None:
    answer = spdsl("show", "streaming", "--emit", stage, "-p", "windw=4")
    assert answer.status == 1
    assert "did you mean `window`?" in answer.err
