"""Check and time cases of the suite: ``python -m benchmarks causal swa1024 --out results.json``."""

from __future__ import annotations

import argparse
import json
import traceback
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.measure import as_json, matrix_rate, measure, prepare


def main() -> None:
    """Run the cases named on the command line, or all, and write their measurements after each."""
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"any of: {', '.join(names)} (all by default)")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"), help="the JSON file to write")
    parser.add_argument("--no-peers", action="store_true", help="time only spdsl")
    parser.add_argument(
        "--prepare", action="store_true", help="only compile, so that many cases can do so side by side beforehand"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - set(names)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    if arguments.prepare:
        for case in CASES:
            if not arguments.cases or case.name in arguments.cases:
                prepare(case, peers=not arguments.no_peers)
        return
    rate = matrix_rate()
    print(f"matrix rate {rate * 1e-12:.0f} TFLOP/s")
    results: list[dict[str, object]] = []
    for case in CASES:
        if arguments.cases and case.name not in arguments.cases:
            continue
        try:
            found = measure(case, rate, peers=not arguments.no_peers)
        except Exception:
            traceback.print_exc()
            continue
        results += as_json(found)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        for each in found:
            print(
                f"{each.case:26} {each.direction} {each.impl:6} {each.ms:9.3f} ms {each.tflops_useful:6.0f} TFLOP/s"
                f"  floor {each.floor_ms:8.3f} ms  error {each.error:.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
