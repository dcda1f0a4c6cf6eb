"""Check and time cases of the suite, or show results.

python -m benchmarks causal swa1024 --out results.json
python -m benchmarks --prepare --jobs 12
python -m benchmarks chart results.json --out chart.png --table benchmarks/README.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.cases import CASES, SUITE, Case


def main() -> None:
    """Run the cases named on the command line, or all, and write their measurements after each."""
    if sys.argv[1:2] == ["chart"]:
        from benchmarks.chart import main as show

        show(sys.argv[2:])
        return
    names = [case.name for case in SUITE]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = f"any of: {', '.join(names)}; or `masks` (the default), or `all`"
    parser.add_argument("cases", nargs="*", metavar="case", help=words)
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"), help="the JSON file to write")
    parser.add_argument("--no-peers", action="store_true", help="time only spdsl")
    parser.add_argument("--prepare", action="store_true", help="only compile what will be measured")
    parser.add_argument("--jobs", type=int, default=1, help="with --prepare: processes side by side")
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - {*names, "masks", "all"}
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    chosen = _chosen(arguments.cases)
    peers = not arguments.no_peers
    if arguments.prepare:
        _prepare(chosen, peers, arguments.jobs)
    else:
        _measure(chosen, peers, arguments.out)


def _chosen(words: list[str]) -> list[Case]:
    """The cases that words name: ``masks`` those of the table, ``all`` the whole suite; none the masks."""
    wanted = set(words or ["masks"])
    masks = {case.name for case in CASES}
    return [
        case for case in SUITE if case.name in wanted or "all" in wanted or ("masks" in wanted and case.name in masks)
    ]


def _prepare(cases: list[Case], peers: bool, jobs: int) -> None:
    """Compile the cases, each in a process of its own where there are several jobs."""
    if jobs == 1:
        from benchmarks.measure import prepare

        for case in cases:
            prepare(case, peers=peers)
        return

    def one(case: Case) -> None:
        words = [sys.executable, "-m", "benchmarks", case.name, "--prepare", *([] if peers else ["--no-peers"])]
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603  # our own words
        if done.returncode:
            print(f"{case.name} was not prepared: {done.stderr.strip().splitlines()[-1:]}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, cases))


def _measure(cases: list[Case], peers: bool, out: Path) -> None:
    from benchmarks.measure import as_json, matrix_rate, measure

    rate = matrix_rate()
    print(f"matrix rate {rate * 1e-12:.0f} TFLOP/s")
    results: list[dict[str, object]] = []
    for case in cases:
        try:
            found = measure(case, rate, peers=peers)
        except Exception:
            traceback.print_exc()
            continue
        results += as_json(found)
        out.write_text(json.dumps(results, indent=1) + "\n")
        for each in found:
            print(
                f"{each.case:26} {each.direction} {each.impl:10} {each.ms:9.3f} ms {each.tflops_useful:6.0f} TFLOP/s"
                f"  floor {each.floor_ms:8.3f} ms  error {each.error:.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
