"""Tuned tiles that ship with the package: ``python -m benchmarks.tuned raw.jsonl --out FILE``.

From what `benchmarks.calibrate` measured on a GPU, the calls of library patterns for which some candidate is faster
than the plan's own tiles by more than two runs differ, and whose times depend on no tables.  They are kept as `spdsl
tune` keeps them, under the identity of their kind of call, which names the versions that they hold for.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.calibrate import TARGET, attention_of
from benchmarks.study import read
from benchmarks.subjects import Subject, suite, tuned
from spdsl import __version__
from spdsl.choices import Situation
from spdsl.tuning import situation_of

GAIN = 0.97
"""The share of the time of the plan's own tiles that others must not exceed."""

KINDS = ("forward", "dq", "dkdv")


def situation(subject: Subject, gpu: str) -> Situation:
    """The kind of the calls of a subject on a GPU."""
    groups = subject.groups or subject.heads
    one = torch.zeros((), dtype=subject.dtype)
    q, k = (one.expand(subject.batch, heads, subject.n, subject.dim) for heads in (subject.heads, groups))
    key = attention_of(subject)._key  # noqa: SLF001  # the study looks inside
    return replace(situation_of(key, q, k, k), gpu=gpu, target=TARGET)


def main() -> None:
    """Choose and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuned", description=__doc__)
    parser.add_argument("raw", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpu", help="for this GPU, whose multiprocessors are the same, in place of the one measured")
    arguments = parser.parse_args()
    raw = read(arguments.raw)
    times: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in raw["rows"]:
        if row.get("kind") in KINDS and len(row["works"]) == 1:
            times[row["subject"], row["kind"]].append(row)
    gpu = arguments.gpu or raw["machine"]["name"]
    found: dict[str, dict[str, Any]] = {}
    for subject in (*tuned(), *suite()):
        if "{" in subject.pattern or subject.inputs(64):
            continue
        for kind in KINDS:
            members = times[subject.name, kind]
            own = [row["seconds"] for row in members if row["default"]]
            best = min(members, key=lambda row: row["seconds"], default=None)
            if own and best is not None and best["seconds"] < GAIN * own[0]:
                entry = found.setdefault(situation(subject, gpu).identity, {"for": _words(subject), "tiles": {}})
                entry["tiles"].setdefault(kind, best["works"][0]["tiles"])
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in sorted(found.items()))
    about = {"gpu": gpu, "measured": raw["machine"]["name"], "spdsl": __version__, "triton": version("triton")}
    head = json.dumps(about)[1:-1]
    arguments.out.write_text(f'{{\n {head},\n "calls": {{\n{lines}\n }}\n}}\n')
    print(f"{len(found)} kinds of calls of {len(times)} kernels that were measured")


def _words(subject: Subject) -> str:
    given = ", ".join(f"{name}={value}" for name, value in subject.parameters.items())
    groups = f" in {subject.groups} groups" if subject.groups else ""
    return f"{subject.pattern}({given}), {subject.n} tokens, {subject.heads} heads of {subject.dim}{groups}"


if __name__ == "__main__":
    main()
