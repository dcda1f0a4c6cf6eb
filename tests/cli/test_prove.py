"""`spdsl prove`: words, exit status, text and JSON."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from spdsl.library import names, resolver, text_of
from spdsl.pipeline import read
from spdsl.prove import Settings, Target, claim, clauses, fewest_layers, kept
from tests.cli.conftest import Answer
from tests.library.cases import CASES
from tests.library.definitions import DEFINITIONS
from tests.library.routed import ROUTED

Spdsl = Callable[..., Answer]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("streaming", "--nonempty", "--causal"), 0),
        (("streaming", "-p", "window=any", "-p", "sinks=any", "--nonempty", "--causal", "--clauses"), 0),
        (("block_local", "--causal"), 1),
        (("causal", "--equals", "alibi"), 0),
        (("causal", "--equals", "streaming"), 1),
        (("streaming(window=8)",), 2),
        (("streaming", "--within", "causal", "--disjoint", "full"), 1),
        (("streaming", "-p", "sinks=0", "--equals", "sliding_window(window = 1024)"), 0),
        (("neighborhood_2d", "-p", "extents=6,7", "-p", "window=3,3", "--within", "full"), 0),
        (("full", "--equals", "neighborhood_2d(extents=(4, 4), window=(4,4))"), 0),
        (("full", "--equals", "neighborhood_2d(extents=(4, 4), window=(4,3))"), 1),
        (("radial", "-p", "frames=2", "-p", "frame_tokens=8", "--nonempty"), 4),
        (("radial", "-p", "frames=2", "-p", "frame_tokens=8", "--nonempty", "--causal"), 1),
        (("block_local",), 0),
        (("nothing",), 2),
        (("streaming", "--equals", "nothing"), 2),
        (("streaming", "--equals", "causal(window=3)"), 2),
        (("streaming", "--equals", "causal(window=3"), 2),
        (("streaming", "-p", "wndow=any"), 2),
        (("streaming", "-p", "window=any", "-p", "window=3"), 2),
        (("block_local", "-p", "block=any"), 2),
        (("streaming", "-p", "window=0"), 2),
        (("streaming", "--heads", "6", "--groups", "4"), 2),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else str(given),
)
def test_exit_status(spdsl: Spdsl, words: tuple[str, ...], status: int) -> None:
    answer = spdsl("prove", *words)
    assert answer.status == status, answer
    if status == 2:
        assert answer.out == ""
        assert answer.err


def test_the_report(spdsl: Spdsl) -> None:
    out = spdsl("prove", "block_local", "-p", "block=24").out
    assert "block_local(block=24): every length n, 8 heads" in out
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "proven" in lines["every query keeps something"]
    assert "refuted" in lines["causal"]
    assert "q = 0, k = 1, n = 2: a later key is kept" in lines["causal"]


def test_parts_that_change_nothing_have_a_line(spdsl: Spdsl, tmp_path: Path) -> None:
    file = tmp_path / "twice.spat"
    file.write_text("pattern twice() {\n  keep causal\n   and q - k < 8\n   and k <= q\n}\n")
    answer = spdsl("prove", file, "--clauses")
    assert answer.status == 1
    assert "this changes nothing: `k <= q` (line 4)" in answer.out
    found = spdsl("prove", file, "--clauses", "--json").json["answers"][0]
    assert found["redundant"] == [{"text": "k <= q", "operand_of": "and", "place": f"{file}:4:8"}]
    warned = spdsl("check", file)
    assert warned.status == 0
    assert "warning[SP411]: `k <= q` changes nothing" in warned.err


def test_json(spdsl: Spdsl) -> None:
    answer = spdsl("prove", "streaming", "-p", "window=8", "--equals", "sliding_window(window=8)", "--causal", "--json")
    assert answer.status == 1
    told = answer.json
    assert told["ok"] is False
    assert told["pattern"] == "streaming(window=8, sinks=4)"
    assert told["scope"] == "every length n, 8 heads"
    causal, equals = told["answers"]
    assert (causal["question"], causal["verdict"], causal["example"]) == ("causal", "proven", None)
    assert equals["verdict"] == "refuted"
    example = equals["example"]
    assert (example["q"], example["k"], example["values"]) == (8, 0, {"n": 9})
    assert example["note"] == "kept by the first, `streaming`, alone"


def test_mistakes_in_json(spdsl: Spdsl, tmp_path: Path) -> None:
    file = tmp_path / "bad.spat"
    file.write_text("pattern bad() { keep causl }")
    answer = spdsl("prove", file, "--json")
    assert answer.status == 2
    assert answer.json["diagnostics"][0]["code"] == "SP201"


def test_what_cannot_be_decided_says_so(spdsl: Spdsl, tmp_path: Path) -> None:
    file = tmp_path / "odd.spat"
    file.write_text("pattern odd() { input x: int[token] in 0..  keep causal and x[k] * x[k] != 3 * x[q] * x[q] + 2 }")
    answer = spdsl("prove", file, "--nonempty")
    assert answer.status == 4
    assert "cannot be decided" in answer.out
    assert "it depends on the input `x`" in answer.out


def test_inputs_of_one_name_must_be_alike(spdsl: Spdsl, tmp_path: Path) -> None:
    file = tmp_path / "mine.spat"
    file.write_text("pattern mine() { input doc: int[token]  keep causal and doc[q] == doc[k] }")
    answer = spdsl("prove", "documents", "--equals", file)
    assert answer.status == 2
    assert "SP413" in answer.err
    file.write_text("pattern mine() { input doc: int[token] sorted  keep k <= q and doc[k] == doc[q] }")
    assert spdsl("prove", "documents", "--equals", file).status == 0


def test_one_pattern_of_a_file(spdsl: Spdsl, tmp_path: Path) -> None:
    file = tmp_path / "two.spat"
    file.write_text(
        "pattern one(w: int in 1.. = 4) { keep 0 <= q - k < w }\n"
        "pattern two(w: int in 1.. = 4) { keep causal and k > q - w }"
    )
    assert spdsl("prove", f"{file}:one", "-p", "w=7", "--equals", f"{file}:two(w=7)").status == 0
    assert spdsl("prove", f"{file}:one", "-p", "w=7", "--equals", f"{file}:two").status == 1


def test_grids_demand_a_length(spdsl: Spdsl) -> None:
    near = "neighborhood_1d(extents={0},window=3)"
    answer = spdsl("prove", "full", "--equals", near.format("3,"))
    assert answer.status == 0
    assert "for n = 3 alone, which a grid demands" in answer.out
    answer = spdsl("prove", "neighborhood_1d", "-p", "extents=4", "-p", "window=3", "--within", near.format(5))
    assert answer.status == 4
    assert "no length suits the grids of both" in answer.out


def test_layers_and_heads(spdsl: Spdsl, tmp_path: Path) -> None:
    file = tmp_path / "layered.spat"
    file.write_text("pattern layered() { keep if layer % 2 == 0 then causal else h < 4 and k == q }")
    assert spdsl("prove", file, "--nonempty").status == 2
    assert spdsl("prove", file, "--nonempty", "--layer", 0).status == 0
    assert spdsl("prove", file, "--nonempty", "--layer", 1, "--heads", 4).status == 0
    answer = spdsl("prove", file, "--nonempty", "--layer", 1)
    assert answer.status == 1
    assert "q = 0, n = 1, h = 4" in answer.out


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("strided", "-p", "local=16", "-p", "stride=16", "--layers", "2"), 0),
        (("strided", "-p", "local=16", "-p", "stride=16", "--layers", "1"), 1),
        (("sliding_window", "--layers", "2", "--then", "causal"), 0),
        (("sliding_window", "--count", "--depth"), 0),
        (("documents", "--layers", "2"), 4),
        (("documents", "--depth"), 4),
        (("documents", "--count"), 0),
        (("sliding_window", "--layers", "0"), 2),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else str(given),
)
def test_counts_and_layers(spdsl: Spdsl, words: tuple[str, ...], status: int) -> None:
    answer = spdsl("prove", *words)
    assert answer.status == status, answer


def test_formulas_are_shown(spdsl: Spdsl) -> None:
    out = spdsl("prove", "causal").out
    assert "about n/2 keys per query  n*(n + 1)/2, a share of (n + 1)/(2*n)" in out
    answers = spdsl("prove", "sliding_window", "-p", "window=8", "--count", "--depth", "--json").json["answers"]
    assert answers[0]["least"] == {"pairs": "8*n - 28", "share": "(8*n - 28)/n**2", "for_n_from": 7, "where": ""}
    assert answers[1]["layers"] == "max(1, ceil((n - 1) / 7))"


def test_layers_are_counted_from_0(spdsl: Spdsl, tmp_path: Path) -> None:
    file = tmp_path / "turns.spat"
    file.write_text("pattern turns() { keep causal and (if layer % 2 == 0 then q - k < 8 else (q - k) % 8 == 0) }")
    assert spdsl("prove", file, "--layers", 1).status == 1
    assert spdsl("prove", file, "--layers", 2, "--layer", 0).status == 1
    assert spdsl("prove", file, "--layers", 2).status == 0
    assert "  2" in spdsl("prove", file, "--depth").out.splitlines()[-1]


def test_every_answer_about_the_library_is_quick() -> None:
    """Half of them within 50 ms, and none over 5 s, with the isl worker warm."""
    seconds: list[float] = []
    settings = Settings(heads=8, groups=2)
    claim("causal", [target("causal")], settings)
    kept(target("causal"), settings)
    for case in CASES:
        here = target(case.name, case.parameters)
        questions: list[Callable[[], object]] = [
            lambda here=here: claim("nonempty", [here], settings),
            lambda here=here: claim("causal", [here], settings),
            lambda here=here: claim("within", [here, target("full")], settings),
            lambda here=here: clauses(here, settings),
            lambda here=here: kept(here, settings),
            lambda here=here: fewest_layers([here], settings),
        ]
        for question in questions:
            start = time.perf_counter()
            question()
            seconds.append(time.perf_counter() - start)
    print(f"median {statistics.median(seconds):.3f} s, most {max(seconds):.2f} s of {len(seconds)}")
    assert statistics.median(seconds) < 0.05
    assert max(seconds) < 5


def test_what_is_causal_in_the_library() -> None:
    found = {
        case.name
        for case in CASES
        if claim("causal", [target(case.name, case.parameters)], Settings()).verdict == "proven"
    }
    assert found == {
        "causal",
        "sliding_window",
        "streaming",
        "documents",
        "dilated",
        "strided",
        "power",
        "log_sparse",
        "s2",
        "blockrank",
        "neighborhood_1d",
        "alibi",
        "softcap",
        "head_modes",
    }


def target(name: str, parameters: Mapping[str, object] | None = None) -> Target:
    checked = read(text_of(name), source=f"{name}.spat", name=name, resolve=resolver(None))
    return Target(checked=checked, values=dict(parameters or {}))  # type: ignore[arg-type]


def _is_proved(name: str) -> bool:
    """Whether the pattern has defaults, and its set is decided before queries and keys are known."""
    return not name.startswith(("neighborhood", "sliding_tile")) and name not in DEFINITIONS and name not in ROUTED


@pytest.mark.parametrize("name", [name for name in names() if _is_proved(name)])
def test_the_report_of_every_pattern_at_its_defaults(spdsl: Spdsl, name: str) -> None:
    given = {"radial": ("frames=4", "frame_tokens=256"), "block_diffusion": ("half=1024",)}.get(name, ())
    answer = spdsl("prove", name, *(word for each in given for word in ("-p", each)))
    assert answer.status == 0, answer
    assert len(answer.out.splitlines()) == 7
