"""How well the cost model predicts: ``python -m benchmarks.study raw.jsonl [again.jsonl …]``.

From the times of `benchmarks.calibrate`.  The costs are fitted on the subjects whose role is `fit`; the random masks
and shapes (`check`) and the suite say how good the model is: its errors, what its first choice costs against the best
of all candidates that were measured, and how often it says rightly whether dense attention is faster.  Candidates are
compared within a run; beside dense attention stand the mean times of all runs, as one kernel takes up to a seventh
longer in some than in others.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

from benchmarks.fit import Row, completed, fit, fit_dense, seconds, written
from spdsl.analysis.cost import dense_seconds
from spdsl.analysis.device import DeviceProfile, profile_for
from spdsl.costs import verdict_of

ROLES = ("fit", "check", "suite")


def study(rows: Sequence[Row], device: DeviceProfile) -> dict[str, Any]:
    """Errors of predicted times, what the model's first choice costs against the best of those measured, and how often
    it says rightly whether dense attention is faster."""
    errors: dict[str, list[float]] = defaultdict(list)
    current = current_of(rows)
    for row in current:
        if "dense" not in row:
            errors[row["kind"]].append(seconds(row, device) / row["seconds"] - 1)
    first, own = regrets(rows, device)
    return {
        "kernels": {kind: _spread(found) for kind, found in errors.items()},
        "all": _spread([each for found in errors.values() for each in found]),
        "first_choice": _regret(first),
        "default_choice": _regret(own),
        "verdict": _verdicts(current, device),
        "verdict_by_run": {
            run: _verdicts([row for row in current if row["run"] == run], device) for run in _runs(current)
        },
    }


def current_of(rows: Sequence[Row]) -> list[Row]:
    """Those that are not ``stale``: times of kernels that have changed since, which stand beside others of their run
    alone."""
    return [row for row in rows if not row.get("stale")]


def _runs(rows: Sequence[Row]) -> list[int]:
    return sorted({row["run"] for row in rows if "dense" in row})


def regrets(rows: Sequence[Row], device: DeviceProfile) -> tuple[list[float], list[float]]:
    """How many times as long as the best of all measured candidates the model's first choice takes, for every kernel
    of every subject; and the plan's own tiles."""
    cases: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if "dense" not in row:  # times of one run are compared with each other
            rows_of = str([each["rows"] for each in row["works"]])
            cases[row.get("run"), row["subject"], row["kind"], rows_of].append(row)
    first, own = [], []
    for members in cases.values():
        if len(members) > 1:
            best = min(row["seconds"] for row in members)
            first.append(min(members, key=lambda row: seconds(row, device))["seconds"] / best)
            own += [row["seconds"] / best for row in members if row["default"]]
    return first, own


NEAR = 0.10
"""Measured times that differ by less than this are about the same."""


def _verdicts(rows: Sequence[Row], device: DeviceProfile) -> dict[str, Any]:
    """What the model says of dense attention against the kernels that run by default, and what was measured.

    ``right``: it says faster or slower of what is, or "about as fast" of times within `NEAR` of each other; else it is
    ``wrong`` or ``undecided``.  ``which``: how often the shorter of two predicted times is that of the shorter of two
    measured ones, of all cases and of those that differ by more than `NEAR`.  ``lost``: the most time that is lost by
    one who follows it.
    """
    dense: dict[str, list[Row]] = defaultdict(list)
    own: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if "dense" in row:
            dense[row["subject"]].append(row)
        elif row["default"]:
            own[row["subject"]][row["kind"]].append(row)
    found = []
    for subject, kernels in own.items():
        backward = ("fused",) if "fused" in kernels else ("dq", "dkdv")
        for direction, kinds in (("forward", ("forward",)), ("backward", backward)):
            if subject in dense and set(kinds) <= set(kernels):
                measured = mean(row[direction] for row in dense[subject]) / sum(
                    mean(row["seconds"] for row in kernels[kind]) for kind in kinds
                )
                predicted = dense_for(kernels[kinds[0]][0], device)[direction == "backward"] / sum(
                    seconds(kernels[kind][0], device) for kind in kinds
                )
                found.append((subject, direction, round(measured, 3), round(predicted, 3)))
    said = [each for each in found if verdict_of(each[3]) != "about as fast"]
    wrong = [each for each in said if (each[2] > 1) != (each[3] > 1)]
    undecided = [each for each in found if each not in said and not _near(each[2])]
    other = [each for each in found if (each[2] > 1) != (each[3] > 1)]
    apart, other_apart = ([each for each in some if not _near(each[2])] for some in (found, other))
    return {
        "count": len(found),
        "right": _share(found, wrong + undecided),
        "said": len(said),
        "wrong": wrong,
        "undecided": undecided,
        "which": _share(found, other),
        "apart": len(apart),
        "which_apart": _share(apart, other_apart),
        "lost": round(max((max(each[2], 1 / each[2]) - 1 for each in other), default=0.0), 3),
    }


def _near(times: float) -> bool:
    return 1 / (1 + NEAR) < times < 1 + NEAR


def _share(found: Sequence[object], wrong: Sequence[object]) -> float:
    return round(1 - len(wrong) / max(1, len(found)), 4)


def dense_for(row: Row, device: DeviceProfile) -> tuple[float, float]:
    """What the model says of dense attention at the shape of a row."""
    batch, heads, _, n, dim, _ = row["shape"]
    sizes = (int(batch) * int(heads), int(n), int(n), int(dim), int(dim))
    return dense_seconds(*sizes, device, causal=row["against"] == "causal")


def _spread(errors: Sequence[float]) -> dict[str, float]:
    sizes = sorted(map(abs, errors))
    return {
        "count": len(sizes),
        "median": round(median(sizes), 4),
        "p90": round(quantiles(sizes, n=10)[-1] if len(sizes) > 1 else sizes[0], 4),
        "worst": round(sizes[-1], 4),
        "bias": round(median(errors), 4),
    }


def _regret(ratios: Sequence[float]) -> dict[str, float]:
    if not ratios:
        return {"count": 0}
    return {
        "count": len(ratios),
        "within_5_percent": round(sum(each <= 1.05 for each in ratios) / len(ratios), 4),
        "median": round(median(ratios), 4),
        "worst": round(max(ratios), 4),
    }


def compact(raw: dict[str, Any]) -> str:
    """What was measured in little space: the counts of every kernel as a list, in the order of ``fields``."""
    names = [name for name in raw["rows"][0]["works"][0] if name not in ("tiles", "before")]
    lines = []
    for row in raw["rows"]:
        if "dense" in row:
            lines.append({**row, **{name: round(row[name], 9) for name in ("forward", "backward")}})
            continue
        works = [
            [[each[name] for name in names], list(each["tiles"].values()), list(each["before"].values())]
            for each in row["works"]
        ]
        lines.append({**row, "works": works, "seconds": round(row["seconds"], 9)})
    kinds = {"fields": names, "tiles": list(raw["rows"][0]["works"][0]["tiles"])}
    kinds["before"] = list(raw["rows"][0]["works"][0]["before"])
    head = {name: each for name, each in raw.items() if name != "rows"} | kinds
    return "\n".join(json.dumps(each, separators=(",", ":")) for each in (head, *lines)) + "\n"


def read(path: Path) -> dict[str, Any]:
    """The machine and the rows, as `benchmarks.calibrate` or `compact` wrote them."""
    about, *rows = (json.loads(line) for line in path.read_text().splitlines())
    if "fields" in about:
        for row in rows:
            row["works"] = [
                dict(zip(about["fields"], counts, strict=True))
                | {"tiles": dict(zip(about["tiles"], tiles, strict=True))}
                | {"before": dict(zip(about["before"], before, strict=True))}
                for counts, tiles, before in row.get("works", ())
            ]
    return {"machine": about["machine"], "rows": rows}


def together(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows of several runs, each with its number, and the machine of the first."""
    rows = [row | {"run": number} for number, run in enumerate(runs) for row in run["rows"]]
    return {"machine": runs[0]["machine"], "rows": rows}


def main() -> None:
    """Fit, print the study, and write what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("raw", type=Path, nargs="+", help="what was measured in one run or several on GPUs of one kind")
    parser.add_argument("--worst", type=int, default=0, help="print so many rows with the largest errors")
    parser.add_argument("--about", default="", help="what the profile says of its origin")
    parser.add_argument("--profile", type=Path, help="the profile to write")
    parser.add_argument("--plot", type=Path, help="the PNG file to draw")
    parser.add_argument("--compact", type=Path, help="write what the last run measured in little space")
    arguments = parser.parse_args()
    raw = together([read(path) for path in arguments.raw])
    rows = [row for row in raw["rows"] if "dense" in row or any(each["full"] + each["masked"] for each in row["works"])]
    roles = {row["subject"]: row["role"] for row in rows if "role" in row}
    by_role = {role: [row for row in rows if roles.get(row["subject"]) == role] for role in ROLES}
    before, fitted = profile_for(raw["machine"]["name"], "sm_90"), current_of(by_role["fit"])
    device = completed(fit(fitted, raw["machine"]), before)
    device = replace(device, dense=fit_dense(fitted, device) or before.dense, about=arguments.about)
    found = {role: study(some, device) for role, some in by_role.items()}
    found["check and suite"] = study(by_role["check"] + by_role["suite"], device)
    timed = [row for row in current_of(rows) if "works" in row and "dense" not in row]
    for row in sorted(timed, key=lambda row: -abs(seconds(row, device) / row["seconds"] - 1))[: arguments.worst]:
        error, ms = seconds(row, device) / row["seconds"] - 1, row["seconds"] * 1e3
        tiles = " ".join(str(each) for each in row["works"][0]["tiles"].values())
        print(f"{row['role']:5} {row['subject']:26} {row['kind']:8} {tiles:20} {ms:9.3f} ms {error:+.1%}")
    print(json.dumps(found, indent=1))
    if arguments.compact:
        arguments.compact.write_text(compact(read(arguments.raw[-1])))
    if arguments.profile:
        arguments.profile.write_text(written(device))
    if arguments.plot:
        plot(by_role, device, arguments.plot)


def plot(by_role: dict[str, list[Row]], device: DeviceProfile, path: Path) -> None:
    """Predicted over measured times, the errors, and what the first choice costs, each of masks that the fit has seen
    and of others."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    looks = {"fit": ("masks of the fit", "tab:grey", "o"), "check": ("other masks and shapes", "tab:blue", "^")}
    looks["suite"] = ("the suite", "tab:orange", "s")
    for role, (words, colour, marker) in looks.items():
        some = [row for row in current_of(by_role[role]) if "dense" not in row]
        measured = [row["seconds"] * 1e3 for row in some]
        predicted = [seconds(row, device) * 1e3 for row in some]
        left.scatter(measured, predicted, s=9, c=colour, marker=marker, label=words, lw=0)
        errors = sorted(abs(b / a - 1) * 100 for a, b in zip(measured, predicted, strict=True))
        _steps(middle, errors, colour, words)
        _steps(right, sorted((each - 1) * 100 for each in regrets(by_role[role], device)[0]), colour, words)
    ends = [0.005, 60]
    left.plot(ends, ends, c="black", lw=0.8)
    left.fill_between(ends, [0.85 * end for end in ends], [1.15 * end for end in ends], color="black", alpha=0.08)
    left.set(xscale="log", yscale="log", xlabel="measured, ms", ylabel="predicted, ms", title=f"{device.name}, ±15 %")
    middle.set(xlabel="error, %", ylabel="share of the times", ylim=(0, 1), xlim=(0, 30), title="errors")
    right.set(xlabel="slower than the best, %", ylabel="share of the kernels", ylim=(0, 1), xlim=(-0.5, 30))
    right.set(title="the model's first choice")
    for axes in (left, middle, right):
        axes.legend(loc="lower right")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100, format="png")
    plt.close(figure)


def _steps(axes: Any, values: Sequence[float], colour: str, words: str) -> None:
    axes.step(values, [(k + 1) / len(values) for k in range(len(values))], where="post", c=colour, label=words)


if __name__ == "__main__":
    main()
