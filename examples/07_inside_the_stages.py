"""Inside the compiler: one pattern from its text to a kernel, a stage at a time, each looked at.

    python examples/07_inside_the_stages.py [PATTERN]

docs/architecture.md tells what the stages do; `spdsl show PATTERN --emit STAGE` prints each in full.
"""

import sys
from pathlib import Path

import torch

import spdsl
from spdsl import walks
from spdsl.analysis.plans import Problem
from spdsl.codegen.emit import emit
from spdsl.codegen.lower import lower
from spdsl.explain import call_like
from spdsl.grammar.parse import parse
from spdsl.grammar.show import dump
from spdsl.library import resolver
from spdsl.picture import count_tiles
from spdsl.pipeline import key_of
from spdsl.planning import choose
from spdsl.semantics.bind import bind
from spdsl.semantics.check import check
from spdsl.semantics.show import dump as dump_pattern
from spdsl.states import tile_states

LENGTH = 1024


def show(stage: str, text: str, lines: int = 12) -> None:
    """The first lines of what a stage makes."""
    rows = text.splitlines()
    more = f"\n    … {len(rows) - lines} lines more" if len(rows) > lines else ""
    print(f"\n{stage}\n" + "\n".join(f"    {row}"[:120] for row in rows[:lines]) + more)


def main() -> None:
    """Every stage of a pattern whose parameters have defaults and that has no inputs."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("local.spat")

    program = parse(path.read_text(encoding="utf-8"), str(path))
    show("parse: text → Program, a tree in which every node knows its place", dump(program))

    checked = check(program, None, resolve=resolver(path.parent))
    show("check: → CheckedPattern, names resolved and expressions typed", dump_pattern(checked))

    bound = bind(checked, {}, layer=None, heads=4, groups=2, head_dim=64)
    show("bind: → BoundPattern, parameters and head counts put in", dump_pattern(bound))

    def problem(pattern: object) -> Problem:
        return Problem(pattern=pattern, dtype="fp16", value_dim=64, shape="square")

    key = key_of(checked, {}, None, None, False)
    chosen = choose(key, (4, 2, 64), problem, "sm_80")
    forward = chosen.plan.forward
    rows = torch.zeros((), dtype=torch.float16).expand(1, 4, LENGTH, 64)
    call = call_like(key, rows, rows[:, :2], rows[:, :2], {}, "sm_80")
    what = f"tiles of {forward.block_q} queries × {forward.block_k} keys; at run time {chosen.variables}"
    show("plan: → Plan, here its forward kernel", "\n".join([what, *walks.describe(forward, chosen.plan, call)]))

    graph = lower(chosen.plan)
    show("lower: → BlockGraph", "\n".join(f"kernel {each.name}: {len(each.body)} blocks" for each in graph.kernels))

    source = emit(graph)
    show(f"emit: → KernelSource {source.digest}, a real file", source.text[source.text.index("@triton.jit") :], 16)

    # The walk, asked for all its tiles, beside the mask that the reference evaluates pair by pair.
    walked = tile_states(call, call.plan.forward, head=0)
    mask = spdsl.load(path).mask(LENGTH, LENGTH, heads=4, groups=2)[0].numpy()
    truth = torch.from_numpy(count_tiles(mask, forward.block_q, forward.block_k).state)
    assert torch.equal(walked > 0, truth > 0), "a tile that is touched in vain, or missed"
    assert not (walked == 2)[truth < 2].any(), "a tile that is not full is taken for full"
    touched, full = int((walked > 0).sum()), int((walked == 2).sum())
    print(f"\nof {walked.numel()} tiles the kernel visits {touched}, {full} of them without a mask: those of the mask")


if __name__ == "__main__":
    main()
