"""The forward kernel: from a plan to the blocks that compute O and LSE, walking by query."""

from __future__ import annotations

from dataclasses import replace

from spdsl.analysis.plans import Plan
from spdsl.codegen import split
from spdsl.codegen.arguments import length_arguments, list_arguments, parameter_arguments, table_arguments
from spdsl.codegen.blocks import (
    Argument,
    Block,
    Dot,
    Kernel,
    Logits,
    Mask,
    OnlineSoftmax,
    SoftmaxEnd,
    SoftmaxResumed,
    SoftmaxState,
    StoreRows,
)
from spdsl.codegen.expressions import truncated
from spdsl.codegen.frame import Frame
from spdsl.codegen.gathered import entry_arguments, entry_sizes, forward_entries, is_gathered
from spdsl.codegen.programs import masked, positions, program
from spdsl.codegen.tensors import addresses, load_tile, page_of, plain_tensor, pointers, read_tensor, store_tile
from spdsl.codegen.walks import Mode, Walker, lower_walk
from spdsl.semantics.nodes import Expr

SUMS = split.Sums(
    accumulators=(("acc", ("BLOCK_Q", "VALUE_DIM")), ("m", ("BLOCK_Q",)), ("l", ("BLOCK_Q",))), softmax=True
)


def lower_forward(plan: Plan) -> Kernel:
    """The blocks of the forward kernel."""
    frame = Frame(plan=plan, kernel=plan.forward, by="query")
    problem = plan.problem
    keep, bias = frame.keep(), frame.bias
    frame.hoist.share((keep,) if bias is None else (keep, bias))
    gathered = is_gathered(plan.forward)
    sink = None if plan.sink_logit is None or gathered else frame.hoist.place(truncated(plan.sink_logit), 1)
    bias_blocks, bias = ((), None) if bias is None else frame.place_tile(bias)
    keep_blocks, keep = frame.place_keep(keep)
    logits = Logits(scale=plan.scale, softcap=plan.softcap, bias=bias, folded=frame.folded, keep_slope=False)
    mask = Mask(target="scores", keep=keep, span=plan.keep.span)
    exact = problem.dtype == "fp32"

    def body(mode: Mode) -> tuple[Block, ...]:
        guarded = mode != "full"
        return (
            *((positions(frame, "k", "walked"),) if guarded or bias is not None or problem.page else ()),
            *page_of(frame),
            load_tile(frame, "K", "k", "HEAD_DIM", guarded=guarded),
            Dot(
                name="scores", left="q_tile", right="k_tile", transpose=True, exact=exact, shape=("BLOCK_Q", "BLOCK_K")
            ),
            *bias_blocks,
            *(() if frame.folded else (logits,)),
            *masked(mode, keep_blocks, mask),
            OnlineSoftmax(factor=frame.factor, guarded=guarded or bias is not None),
            load_tile(frame, "V", "k", "VALUE_DIM", guarded=guarded),
            Dot(
                name="acc",
                left="p",
                right="v_tile",
                accumulate=True,
                cast=problem.dtype,
                exact=exact,
                shape=("BLOCK_Q", "VALUE_DIM"),
            ),
        )

    walker = Walker(
        by="query",
        shape=problem.shape,
        spans=plan.forward.spans,
        separate=frame.separate(2),
        place=lambda expr: frame.hoist.place(expr, 0),
        place_tile=frame.place_tile,
        body=body,
        boxes=plan.forward.boxes,
        picks=plan.forward.picks,
    )
    setup, loops = lower_walk(plan.forward.walk, walker)
    blocks: tuple[Block, ...] = (
        *program(frame, reverse=True),
        positions(frame, "q", "own"),
        *frame.hoist.take(0),
        *frame.hoist.take(1),
        *addresses(frame, "Q", "q", "HEAD_DIM"),
        load_tile(frame, "Q", "q", "HEAD_DIM", guarded=True),
        *addresses(frame, "K", "k", "HEAD_DIM"),
        *addresses(frame, "V", "k", "VALUE_DIM"),
        *((SoftmaxState(sink=None),) if gathered else softmax_state(frame, sink)),
        *setup,
        *split.share(frame, loops),
        *(forward_entries(frame) if gathered else split.end(frame, SUMS, forward_end(frame))),
    )
    return Kernel(
        name="forward",
        doc="Output and LSE: each program owns a tile of queries and walks the tiles of keys that its rows touch.",
        arguments=(
            *read_tensor(frame, "Q", "q", "HEAD_DIM"),
            *read_tensor(frame, "K", "k", "HEAD_DIM"),
            *read_tensor(frame, "V", "k", "VALUE_DIM"),
            *(entry_arguments(frame) if gathered else forward_results(frame)),
            *length_arguments(frame),
            *parameter_arguments(frame, blocks),
            *list_arguments(frame),
            *split.split_arguments(frame, SUMS),
            *table_arguments(frame, blocks),
        ),
        constants=frame.constants(),
        body=blocks,
        block=plan.forward.queries,
        warps=plan.forward.warps,
        stages=plan.forward.stages,
        classes=frame.classes,
        boxes=frame.boxes,
        after=frame.after,
        parts=entry_sizes(frame) if gathered else split.part_sizes(frame, SUMS),
    )


def softmax_state(frame: Frame, sink: Expr | None) -> tuple[Block, ...]:
    """What the softmax begins with."""
    if not frame.plan.place:
        return (SoftmaxState(sink=split.once(frame, sink)),)
    return (
        pointers(frame, "O", "q", "VALUE_DIM"),
        replace(load_tile(frame, "O", "q", "VALUE_DIM", guarded=True), descriptor=False, heads=None),
        frame.row_base(),
        SoftmaxResumed(first=split.first(frame)),
    )


def forward_results(frame: Frame) -> tuple[Argument, ...]:
    """The arguments for what the kernel writes."""
    return (
        *plain_tensor(frame, "O", "q", frame.plan.problem.value_dim),
        Argument(name="LSE", type="*fp32", note="[batch, heads, nq], natural logarithm"),
    )


def forward_end(frame: Frame) -> tuple[Block, ...]:
    """From the state of the softmax to output and LSE."""
    return (
        SoftmaxEnd(),
        pointers(frame, "O", "q", "VALUE_DIM"),
        store_tile(frame, "acc", "O", "q", "VALUE_DIM"),
        frame.row_base(),
        StoreRows(value="lse", pointer="LSE", side="q"),
    )
