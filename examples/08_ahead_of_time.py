"""Kernels built where there is no GPU, and carried to where there is one.

    python examples/08_ahead_of_time.py                 # for sm_90; --target sm_80, sm_100 or gfx942

A machine of a build farm compiles; a machine of the fleet starts from the folder and compiles nothing.  Here both are
processes on this machine with caches of their own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def spdsl(*words: str, **settings: str) -> dict[str, object]:
    """Run the command with `--json`, under some environment variables; what it answers, and how long it took."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "spdsl", *words, "--json"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout) | {"seconds": time.perf_counter() - start}


def main() -> None:
    """Build, look, carry over, and build again from what was carried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="sm_90")
    target = parser.parse_args().target

    with tempfile.TemporaryDirectory() as folder:
        farm, fleet = (str(Path(folder) / name) for name in ("cache of the farm", "cache of the fleet"))
        out = Path(folder) / "kernels"
        what = ("compile", "streaming", "--target", target, "--dtype", "bf16", "--head-dim", "64", "--heads", "8")

        built = spdsl(*what, "-o", str(out), SPDSL_CACHE_DIR=farm)
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        print(f"compiled for {target} in {built['seconds']:.1f} s, with Triton {manifest['triton']}:")
        for kernel in manifest["kernels"]:
            size = (out / kernel["binary"]).stat().st_size
            print(f"  {kernel['name']:14} {size:8,} bytes, {kernel['registers']} registers, {kernel['spills']} spilled")

        # Every file is checked against its hash on the way into the other cache.
        taken = spdsl("cache", "import", str(out), SPDSL_CACHE_DIR=fleet)
        listed = spdsl("cache", "ls", SPDSL_CACHE_DIR=fleet)
        print(f"taken over: {taken['entries']} entries, {sum(each['bytes'] for each in listed['entries']):,} bytes")

        # The same kernels again on the other machine: everything is found.  A process with a GPU finds them as well.
        again = spdsl(*what, "-o", str(Path(folder) / "again"), SPDSL_CACHE_DIR=fleet)
        print(f"again from that cache: {again['seconds']:.1f} s")
        after = spdsl("cache", "ls", SPDSL_CACHE_DIR=fleet)
        kinds = [sum(each["kind"] == "kernel" for each in found["entries"]) for found in (listed, after)]
        assert kinds[0] == kinds[1] == len(manifest["kernels"]), "something was compiled again"
        binaries = [(out / each["binary"]).read_bytes() for each in manifest["kernels"]]
        assert binaries == [(Path(folder) / "again" / each["binary"]).read_bytes() for each in manifest["kernels"]]


if __name__ == "__main__":
    main()
