"""The cost model: its formulas against its times, its counts against brute force, its growth laws, its table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import pytest
import sympy
import torch

import spdsl
from benchmarks.study import read
from spdsl.analysis.cost import COPY, PROBE, estimate, rate_for
from spdsl.analysis.device import DATA_SHEETS, DeviceProfile, profile_for, shipped
from spdsl.analysis.plans import Tiles
from spdsl.analysis.sharing import as_cut
from spdsl.analysis.work import Before, Work
from spdsl.cli.main import run
from spdsl.costs import is_causal, predict, verdict_of, work
from spdsl.diagnostics import SpatError
from spdsl.explain import call_like
from spdsl.runtime import split
from spdsl.runtime.calls import Call
from spdsl.runtime.triton_engine import _quadruples
from spdsl.whatif import growth, table

H200 = profile_for("NVIDIA H200", "sm_90")


def call(name: str, n: int = 4096, heads: int = 2, dim: int = 128, **parameters: int) -> Call:
    q = torch.zeros((), dtype=torch.bfloat16).expand(1, heads, n, dim)
    return call_like(spdsl.compile(name, **parameters)._key, q, q, q, {}, "sm_90")


def some_work(**changes: object) -> Work:
    tiles = Tiles(block_q=128, block_k=128, warps=8, stages=3)
    given = {
        "kind": "forward",
        "tiles": tiles,
        "head_dim": 128,
        "value_dim": 128,
        "dtype": "bf16",
        "descriptors": True,
        "programs": 1000,
        "full": 5000,
        "masked": 700,
        "longest": 40,
        "operations": 4,
        "loads": 0,
        "extra": 0,
        "listed": False,
        "rows": 128_000,
        "heads": 8,
    }
    return Work(**{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", ["causal", "sliding_window"])
def test_work_is_counted(pattern: str) -> None:
    """Against tiles counted one by one from the dense mask."""
    found = call(pattern, n=1000, heads=3, **({"window": 150} if pattern == "sliding_window" else {}))
    kernel = found.plan.forward
    counted = work(found, kernel)
    q, k = torch.arange(1000)[:, None], torch.arange(1000)[None, :]
    kept = (q >= k) & ((q - k < 150) if pattern == "sliding_window" else (q >= 0))
    touched = full = longest = 0
    for i in range(0, 1000, kernel.block_q):
        row = 0
        for j in range(0, 1000, kernel.block_k):
            tile = kept[i : i + kernel.block_q, j : j + kernel.block_k]
            row += bool(tile.any())
            full += bool(tile.all()) and j + kernel.block_k <= 1000
        touched += row
        longest = max(longest, row)
    assert (counted.touched, counted.full, counted.longest) == (3 * touched, 3 * full, longest)
    assert counted.programs == 3 * -(-1000 // kernel.block_q)
    assert counted.operations > 0


def test_the_formula_is_the_time() -> None:
    done = some_work()
    found = estimate(done, H200)
    counts = {sympy.Symbol("P"): 1000, sympy.Symbol("F"): 5000, sympy.Symbol("M"): 700}
    assert float(found.formula.subs(counts)) == pytest.approx(found.seconds, rel=1e-9)
    rate, near = rate_for(done, H200)
    assert not near
    masked = rate.masked + 4 * rate.operation
    spread = (1000 * rate.program + 5000 * rate.full + 700 * masked) / 132
    share = 700 / 5700
    end = rate.tail * (rate.program + 40 * ((1 - share) * rate.full + share * masked))
    assert found.seconds == pytest.approx(H200.launch + spread + end, rel=1e-9)


def test_more_work_takes_longer() -> None:
    base = estimate(some_work(), H200).seconds
    for name, value in {"full": 9000, "masked": 900, "programs": 3000, "operations": 20, "longest": 400}.items():
        assert estimate(some_work(**{name: value}), H200).seconds > base, name
    for name, value in {"extra": 5, "listed": True, "loads": 1}.items():
        assert estimate(some_work(**{name: value}), H200).seconds > base, name


def test_neighbours_are_scaled() -> None:
    known = some_work()
    other = replace(known, tiles=Tiles(block_q=256, block_k=128, warps=8, stages=3))
    rate, near = rate_for(other, H200)
    assert near
    assert rate.full == pytest.approx(2 * rate_for(known, H200)[0].full)
    assert rate_for(replace(known, head_dim=32, value_dim=32), H200)[1]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_target_has_a_profile(target: str) -> None:
    found = profile_for(None, target)
    assert found.target == target
    assert found.origin == ("shipped" if target == "sm_90" else "data sheet")
    assert 0 < predict(call("causal"), found).forward < 1


def test_profiles_survive_json() -> None:
    for each in shipped():
        assert DeviceProfile.of(json.loads(json.dumps(each.as_dict()))) == each


def test_a_data_sheet_scales_by_its_rate() -> None:
    found = profile_for("NVIDIA A100-SXM4-80GB", "sm_80")
    sheet = next(each for each in DATA_SHEETS if each.target == "sm_80")
    paper = next(each for each in DATA_SHEETS if each.name == "NVIDIA H200")
    factor = (paper.matrix_rate / 132) / (sheet.matrix_rate / 108)
    assert found.rates[0].full == pytest.approx(H200.rates[0].full * factor)


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(SpatError, match="SP520"):
        profile_for(None, "sm_70")


def test_measured_times_are_met() -> None:
    """On an H200, at 16 heads, 32,768 tokens and head dim 128, at which nothing was fitted: what is counted now, by the
    shipped costs, against the mean of what was measured."""
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    runs = [read(path)["rows"] for path in results.glob("h200-2026-11-29-model*.jsonl")]
    errors = {}
    for case, pattern, parameters in (
        ("causal", "causal", {}),
        ("swa1024", "sliding_window", {"window": 1024}),
        ("sink64_window1024", "streaming", {"window": 1024, "sinks": 64}),
        ("dilated4096x4", "dilated", {}),
        ("power128", "power", {}),
    ):
        made = call(pattern, n=32768, heads=16, **parameters)
        found = predict(made, H200)
        for kind, seconds in (("forward", found.forward), ("fused", found.backward)):
            measured = [
                row["seconds"]
                for rows in runs
                for row in rows
                if (row["subject"], row.get("kind"), row.get("default")) == (case, kind, True)
            ]
            assert len(measured) == len(runs) > 0
            errors[case, kind] = abs(seconds / mean(measured) - 1)
    assert median(errors.values()) < 0.06, errors
    assert max(errors.values()) < 0.12, errors


def test_dense_attention_beside_it() -> None:
    causal = predict(call("causal", n=8192, heads=16), H200)
    assert causal.against == "causal"
    # cuDNN took 0.50 ms for this on an H200.
    assert causal.dense_forward == pytest.approx(0.5005e-3, rel=0.05)
    # Measured: 0.480 and 0.414 ms.
    assert causal.dense_forward / causal.forward == pytest.approx(0.480 / 0.414, rel=0.08)
    window = predict(call("sliding_window", n=8192, heads=16, window=256), H200)
    assert window.dense_forward / window.forward > 4
    assert causal.verdict == {"forward": "faster", "backward": "faster"}
    assert is_causal(call("streaming").plan.problem.pattern)
    assert not is_causal(call("full").plan.problem.pattern)


def test_what_runs_before_a_kernel_counts() -> None:
    base = estimate(some_work(), H200)
    cuts = replace(H200, rates=tuple(replace(each, cut=1e-6) for each in H200.rates))
    searched = [estimate(some_work(before=Before(searched=1 << 13)), each).seconds for each in (H200, cuts)]
    assert searched[0] > base.seconds + 10 * PROBE
    assert searched[1] > searched[0]
    copied = estimate(some_work(before=Before(copies=3, bytes=1 << 30)), H200)
    assert copied.start == pytest.approx(base.start + 3 * COPY * H200.launch + (1 << 30) / H200.copy_rate)
    whole, short = (call("dilated", n=n) for n in (4096, 4093))
    assert work(whole, whole.plan.forward).before == Before()
    assert work(short, short.plan.forward).before == Before(copies=3, bytes=3 * 2 * 2 * 2 * 4093 * 128)


@pytest.mark.parametrize(("n", "window"), [(16384, 64), (3000, 100), (1024, 64)])
def test_parts_of_long_rows_are_programs(n: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a launch on such a GPU starts, and what they leave is read again."""
    monkeypatch.setattr(split, "multiprocessors", lambda device: H200.multiprocessors)
    found = call("streaming", n=n, heads=4, window=window, sinks=4)
    kernel = found.plan.fused
    assert kernel is not None
    done = work(found, kernel)
    launched = split.split_of(found, kernel, -(-n // kernel.block_k), 4)
    assert as_cut(done, H200.multiprocessors).programs == 4 * (launched.long * launched.parts + launched.others)
    assert (launched.parts > 1) == (n > 1024)
    whole = estimate(replace(done, long=0), H200)
    assert (estimate(done, H200).start > whole.start) == (launched.parts > 1)


@pytest.mark.parametrize("n", [1024, 1026])
def test_lists_that_are_filled_up_count(n: int) -> None:
    found = call("causal", n=n)
    assert found.plan.fused is not None
    rows = torch.zeros(1, 2, n)
    copied = _quadruples(found, rows, 1, None) is not rows
    assert work(found, found.plan.fused).before.filled == (2 if copied else 0)


def test_a_queue_is_cleared_before() -> None:
    """Where there are so many programs that they do several rows each."""
    for programs, starts in ((264, 0), (265, 1)):
        done = some_work(programs=programs)
        gained = estimate(replace(done, queued=True), H200).start - estimate(done, H200).start
        assert gained == pytest.approx(starts * H200.launch)


def test_the_verdict_names_what_is_close() -> None:
    assert [verdict_of(times) for times in (2.0, 1.08, 1.06, 0.94, 0.92)] == [
        "faster",
        "faster",
        "about as fast",
        "about as fast",
        "slower",
    ]
    found = predict(call("sliding_window", n=8192, heads=16, window=256), H200)
    assert "dense attention with" not in "\n".join(found.lines())
    close = replace(found, dense_forward=found.forward * 1.01, dense_backward=found.backward * 0.5)
    lines = "\n".join(close.lines())
    assert "is expected to be about as fast forward" in lines
    assert "is expected to be faster backward" in lines
    assert close.as_dict()["dense"]["verdict"] == {"forward": "about as fast", "backward": "slower"}


@pytest.mark.parametrize(("name", "law"), [("sliding_window", "grows like n"), ("causal", "grows like n²")])
def test_growth(name: str, law: str) -> None:
    found = growth(lambda n: call(name, n=n), H200, beyond=4 * 1024)
    assert found is not None
    assert found.law == law
    far = call(name, n=found.step * 16)
    n = sympy.Symbol("n")
    assert found.tiles.subs(n, found.step * 16) == work(far, far.plan.forward).touched
    predicted = predict(far, H200).forward
    assert float(found.seconds.subs(n, found.step * 16)) == pytest.approx(predicted, rel=0.02)


def test_the_table() -> None:
    rows = table(lambda values: call("sliding_window", **values), {"n": [8192, 65536], "window": [64, 512]}, H200)
    assert [row.values for row in rows] == [
        {"n": 8192, "window": 64},
        {"n": 8192, "window": 512},
        {"n": 65536, "window": 64},
        {"n": 65536, "window": 512},
    ]
    times = [row.prediction.forward for row in rows]
    assert times[0] < times[1] < times[3]
    assert times[0] < times[2] < times[3]
    with pytest.raises(SpatError, match="SP618"):
        table(lambda values: call("causal", **values), {"n": list(range(1, 100))}, H200)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "sliding_window", "-n", "8192", "--head-dim", "128", "--gpu", "NVIDIA H200"]) == 0
    out = capsys.readouterr().out
    assert "predicted for NVIDIA H200, costs as shipped: forward" in out
    assert "seconds = " in out
    assert "the forward pass grows like n: " in out
    words = ["explain", "sliding_window", "--over", "n=2048,4096", "--over", "window=64,128"]
    assert run([*words, "--json", "--plot", str(tmp_path / "t.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["n"], row["window"]) for row in found["rows"]] == [(2048, 64), (2048, 128), (4096, 64), (4096, 128)]
    assert all(row["verdict"]["forward"] in ("faster", "about as fast", "slower") for row in found["rows"])
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"
    assert run(["explain", "causal", "--over", "heads=4,8", "-n", "2048", "--head-dim", "128"]) == 0
    assert "milliseconds for 2,048 tokens, head dim 128, bf16, predicted for" in capsys.readouterr().out
    assert run(["explain", "causal", "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)["cost"]
    assert cost["forward"] == pytest.approx(sum(k["seconds"] for k in cost["kernels"] if k["kind"] == "forward"))
    assert run(["explain", "causal", "--over", "n"]) == 2
    assert run(["explain", "causal", "-n", "2048", "--head-dim", "128", "--candidates"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("the plan's own") == 3
    assert "128×128, 4 warps, 2 stages, Gluon" in listed
    assert run(["explain", "causal", "--candidates", "--target", "cpu"]) == 2


@pytest.mark.parametrize(("name", "parameters", "ms"), [("full", {}, 0.507), ("dilated", {"span": 16_384}, 0.072)])
def test_few_queries_take_the_time_of_reading(name: str, parameters: dict[str, int], ms: float) -> None:
    """Against what was measured on an H200 (`benchmarks/results`); rows that lie apart are read half as fast."""
    one = torch.zeros((), dtype=torch.bfloat16)
    q, k = one.expand(8, 32, 1, 128), one.expand(8, 8, 65_536, 128)
    found = predict(call_like(spdsl.compile(name, **parameters)._key, q, k, k, {}, "sm_90"), H200)
    keys = 65_536 if name == "full" else parameters["span"] // 4
    assert found.kernels[0].work.reads == 8 * 8 * keys * 2 * 128 * 2
    assert 0.45 * ms <= found.forward * 1e3 <= 1.15 * ms
