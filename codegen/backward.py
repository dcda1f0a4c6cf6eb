"""The kernels of the backward: delta and sinks, dQ by query, dK and dV by key.

dQ and dK/dV each compute the weights again from the LSE, so that every sum has one owner and a fixed order.  Gradients
of tables leave the kernels as sums for every row or key, which the run time adds up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from spdsl.analysis.plans import Plan, TableGradient
from spdsl.analysis.tiles import ListWalk, depends_on_head
from spdsl.codegen import split
from spdsl.codegen.arguments import length_arguments, list_arguments, parameter_arguments, table_arguments
from spdsl.codegen.arith import add, index, mul, number
from spdsl.codegen.blocks import (
    Argument,
    Block,
    ClearSums,
    Define,
    Dot,
    Kernel,
    Logits,
    Loop,
    Mask,
    Part,
    Probabilities,
    RowProducts,
    Scale,
    ScoreGradient,
    SinkGradient,
    Statistics,
    StorePairs,
    StoreRows,
    SumRows,
    Zeros,
)
from spdsl.codegen.expressions import truncated
from spdsl.codegen.frame import Frame
from spdsl.codegen.gathered import dq_entries, entry_arguments, entry_sizes, is_gathered
from spdsl.codegen.picked_parts import picked_arguments, picked_end, picked_sizes
from spdsl.codegen.programs import masked, positions, program
from spdsl.codegen.results import (
    Partial,
    dkdv_end,
    dkdv_sums,
    dq_end,
    dq_sums,
    partials,
    result_arguments,
    zeros,
)
from spdsl.codegen.tensors import addresses, load_tile, plain_tensor, read_tensor
from spdsl.codegen.walks import Mode, Walker, lower_walk
from spdsl.semantics.nodes import Expr, Side

CLEARED = (
    Argument(name="Sums", type="*fp32", note="[batch, heads, sums_rows, width], of the fused kernel"),
    Argument(name="sums_rows", type="i32", note="nq at least, or 0: another computes dQ"),
)

STATISTICS = (
    Argument(name="LSE2", type="*fp32", note="[batch, heads, nq], in powers of two, +inf for rows that keep nothing"),
    Argument(name="Delta", type="*fp32", note="[batch, heads, nq]"),
)


def lower_delta(plan: Plan) -> Kernel | None:
    """Row sums of dO * O, and the gradients of sinks; of a union once, for all its parts."""
    if plan.place:
        return None
    kernel = replace(plan.dq, block_q=64, warps=4, stages=1, residues=None, boxes=None, marked=None, splits=False)
    kernel = replace(kernel, picks=None, descriptors=False)
    frame = Frame(plan=plan, kernel=kernel, by="query")
    sinks = partials(frame, "sink_logit", ("none", "query"))
    tail: list[Block] = []
    arguments: list[Argument] = []
    if sinks:
        assert plan.sink_logit is not None
        tail.append(SinkGradient(sink=frame.hoist.place(truncated(plan.sink_logit), 1)))
        for position, gradient in sinks:
            partial = Partial(
                number=position, gradient=gradient, factor=frame.hoist.place(truncated(gradient.factor), 1)
            )
            tail += [
                Zeros(name=partial.name, shape=("BLOCK_Q",)),
                SumRows(name=partial.name, factor=partial.factor),
                StoreRows(value=partial.name, pointer=partial.pointer, side="q"),
            ]
            arguments.append(partial.argument)
    problem = plan.problem
    body: tuple[Block, ...] = (
        *program(frame, reverse=False),
        positions(frame, "q", "own"),
        *frame.hoist.take(0),
        *frame.hoist.take(1),
        *_tile(frame, "O", "q", "VALUE_DIM"),
        *_tile(frame, "dO", "q", "VALUE_DIM"),
        frame.row_base(),
        RowProducts(),
        StoreRows(value="lse2", pointer="LSE2", side="q"),
        StoreRows(value="delta", pointer="Delta", side="q"),
        *(() if plan.fused is None else (ClearSums(padded=frame.is_padded("HEAD_DIM")),)),
        *tail,
    )
    return Kernel(
        name="delta",
        doc="Delta: the row sums of dO * O minus dLSE."
        + ("" if plan.fused is None else "  And zeros to which the fused kernel adds dQ."),
        arguments=(
            *plain_tensor(frame, "O", "q", problem.value_dim),
            *plain_tensor(frame, "dO", "q", problem.value_dim),
            Argument(name="LSE", type="*fp32", note="[batch, heads, nq], natural logarithm"),
            Argument(name="dLSE", type="*fp32", note="[batch, heads, nq]"),
            Argument(name="dlse_rows", type="i32", note="nq, or 0: LSE has no gradient"),
            *STATISTICS,
            *(() if plan.fused is None else CLEARED),
            *arguments,
            *length_arguments(frame),
            *parameter_arguments(frame, body),
            *table_arguments(frame, body),
        ),
        constants=frame.constants(),
        body=body,
        block=frame.kernel.block_q,
        warps=frame.kernel.warps,
        stages=frame.kernel.stages,
    )


def lower_dq(plan: Plan) -> Kernel:
    """dQ, and the sums of table gradients by query, by nothing, and by pair."""
    frame = Frame(plan=plan, kernel=plan.dq, by="query")
    found = partials(frame, "bias", ("none", "query", "pair"))
    step = Step.of(frame, found)
    capped = "dsc" if plan.softcap is not None else "ds"

    def body(mode: Mode) -> tuple[Block, ...]:
        guarded = mode != "full"
        needed = guarded or step.uses_positions or bool(step.sums)
        return (
            *((positions(frame, "k", "walked"),) if needed else ()),
            load_tile(frame, "K", "k", "HEAD_DIM", guarded=guarded),
            load_tile(frame, "V", "k", "VALUE_DIM", guarded=guarded),
            step.dot("scores", "q_tile", "k_tile", transpose=True),
            step.dot("dp", "do_tile", "v_tile", transpose=True),
            *step.weights(mode, "own"),
            ScoreGradient(part="own", capped=plan.softcap is not None),
            *step.table_sums(),
            step.dot("dq", capped, "k_tile", accumulate=True),
        )

    setup, loops = lower_walk(plan.dq.walk, step.walker(body))
    rows = tuple(each for each in step.sums if each.gradient.by != "pair")
    blocks: tuple[Block, ...] = (
        *program(frame, reverse=True),
        positions(frame, "q", "own"),
        *frame.hoist.take(0),
        *frame.hoist.take(1),
        *_tile(frame, "Q", "q", "HEAD_DIM"),
        *_tile(frame, "dO", "q", "VALUE_DIM"),
        frame.row_base(),
        Statistics(part="own"),
        *addresses(frame, "K", "k", "HEAD_DIM"),
        *addresses(frame, "V", "k", "VALUE_DIM"),
        Zeros(name="dq", shape=("BLOCK_Q", "HEAD_DIM")),
        *zeros(rows),
        *setup,
        *split.share(frame, loops),
        *(dq_entries(frame) if is_gathered(plan.dq) else split.end(frame, dq_sums(rows), dq_end(frame, rows))),
    )
    doc = "dQ: each program owns a tile of queries."
    return step.kernel("dq", doc, ("dQ",), blocks, plan.dq.queries, dq_sums(rows))


def lower_dkdv(plan: Plan) -> Kernel:
    """The gradients of K and V, summed over the query heads of a group, and the sums of table gradients by key."""
    frame = Frame(plan=plan, kernel=plan.dkdv, by="key")
    step = Step.of(frame, partials(frame, "bias", ("key",)))
    capped = "dsc" if plan.softcap is not None else "ds"
    listed = isinstance(plan.dkdv.walk, ListWalk)

    def body(mode: Mode) -> tuple[Block, ...]:
        # Full tiles of a list may hold rows past the last query: their LSE is +inf, but they must not be read.
        guarded = mode != "full" or listed
        # Where addresses take registers there is no room for another tile before dV is summed.
        products = (
            step.dot("dp", "v_tile", "do_tile", transpose=True),
            step.dot("dv", "p", "do_tile", accumulate=True),
        )
        return (
            positions(frame, "q", "walked"),
            load_tile(frame, "Q", "q", "HEAD_DIM", guarded=guarded),
            load_tile(frame, "dO", "q", "VALUE_DIM", guarded=guarded),
            Statistics(part="walked"),
            step.dot("scores", "k_tile", "q_tile", transpose=True),
            *step.weights(mode, "walked"),
            *(products if frame.kernel.descriptors else reversed(products)),
            ScoreGradient(part="walked", capped=plan.softcap is not None),
            *step.table_sums(),
            step.dot("dk", capped, "q_tile", accumulate=True),
        )

    setup, loops = lower_walk(plan.dkdv.walk, step.walker(body))
    own_bounds = depends_on_head(plan.dkdv.walk)
    by_head = tuple(StoreRows(value=each.name, pointer=each.pointer, side="k") for each in step.sums)
    last = () if frame.loops_over_heads else by_head
    head: tuple[Block, ...] = (
        *(frame.hoist.take(2) if frame.loops_over_heads else ()),
        *addresses(frame, "Q", "q", "HEAD_DIM"),
        *addresses(frame, "dO", "q", "VALUE_DIM"),
        frame.row_base(),
        *zeros(step.sums),
        *(setup if own_bounds else ()),
        *split.share(frame, loops),
        *(by_head if frame.loops_over_heads else ()),
    )
    if frame.loops_over_heads:
        name = Define(name="h", value=add(mul(index("g"), number(frame.ratio)), index("r")), note="query head")
        head = (
            Loop(variable="r", low=number(0), high=number(frame.ratio), body=(name, *head), note="heads of the group"),
        )
    blocks: tuple[Block, ...] = (
        *program(frame, reverse=False),
        positions(frame, "k", "own"),
        *frame.hoist.take(0),
        *frame.hoist.take(1),
        *_tile(frame, "K", "k", "HEAD_DIM"),
        *_tile(frame, "V", "k", "VALUE_DIM"),
        Zeros(name="dk", shape=("BLOCK_K", "HEAD_DIM")),
        Zeros(name="dv", shape=("BLOCK_K", "VALUE_DIM")),
        *(() if own_bounds else setup),
        *head,
        *_end(frame, dkdv_sums(step.sums), dkdv_end(frame, last)),
    )
    doc = (
        "dK and dV: each program owns a tile of keys and walks the tiles of queries, for every query head of its group."
    )
    return step.kernel("dkdv", doc, ("dK", "dV"), blocks, plan.dkdv.block_k, dkdv_sums(step.sums))


def _end(frame: Frame, sums: split.Sums, blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """The end of a program by key, which may have done a part only."""
    return split.end(frame, sums, blocks) if frame.kernel.picks is None else picked_end(sums, blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What dQ and dK/dV do with a tile: logits, weights, mask, and sums for tables."""

    frame: Frame
    bias: Expr | None
    keep: Expr
    bias_blocks: tuple[Block, ...]
    sum_blocks: tuple[Block, ...]
    keep_blocks: tuple[Block, ...]
    sums: tuple[Partial, ...]

    @classmethod
    def of(cls, frame: Frame, found: tuple[tuple[int, TableGradient], ...]) -> Step:
        """Place the expressions of a tile."""
        keep, bias = frame.keep(), frame.bias
        factors = [truncated(gradient.factor) for _, gradient in found]
        frame.hoist.share((keep, *factors) if bias is None else (bias, keep, *factors))
        bias_blocks, bias = ((), None) if bias is None else frame.place_tile(bias)
        sums: list[Partial] = []
        sum_blocks: tuple[Block, ...] = ()
        for (position, gradient), factor in zip(found, factors, strict=True):
            blocks, placed = frame.place_tile(factor)
            sum_blocks += blocks
            sums.append(Partial(number=position, gradient=gradient, factor=placed))
        keep_blocks, keep = frame.place_keep(keep)
        return cls(
            frame=frame,
            bias=bias,
            keep=keep,
            bias_blocks=bias_blocks,
            sum_blocks=sum_blocks,
            keep_blocks=keep_blocks,
            sums=tuple(sums),
        )

    @property
    def uses_positions(self) -> bool:
        """Whether a full tile needs positions too."""
        return self.bias is not None

    def weights(self, mode: Mode, part: Part) -> tuple[Block, ...]:
        """From products to ``p``."""
        plan, frame = self.frame.plan, self.frame
        logits = Logits(
            scale=plan.scale,
            softcap=plan.softcap,
            bias=self.bias,
            folded=frame.folded,
            keep_slope=plan.softcap is not None,
        )
        mask = Mask(target="p", keep=self.keep, span=plan.keep.span)
        return (
            *self.bias_blocks,
            *(() if frame.folded else (logits,)),
            Probabilities(factor=frame.factor, part=part),
            *masked(mode, self.keep_blocks, mask),
        )

    def table_sums(self) -> tuple[Block, ...]:
        """Add to the sums for tables; a gradient by pair is written at once."""
        found: list[Block] = list(self.sum_blocks)
        for each in self.sums:
            if each.gradient.by == "pair":
                found += [Scale(name=each.name, factor=each.factor), StorePairs(value=each.name, pointer=each.pointer)]
            else:
                found.append(SumRows(name=each.name, factor=each.factor))
        return tuple(found)

    def dot(self, name: str, left: str, right: str, *, transpose: bool = False, accumulate: bool = False) -> Dot:
        """A product of tiles; the left side of an accumulation is computed and must be rounded first."""
        own, walked = ("BLOCK_Q", "BLOCK_K") if self.frame.by == "query" else ("BLOCK_K", "BLOCK_Q")
        dtype = self.frame.plan.problem.dtype
        return Dot(
            name=name,
            left=left,
            right=right,
            transpose=transpose,
            accumulate=accumulate,
            cast=dtype if accumulate else None,
            exact=dtype == "fp32",
            shape=(own, walked) if transpose else (own, "VALUE_DIM" if name == "dv" else "HEAD_DIM"),
        )

    def walker(self, body: object) -> Walker:
        """The walker of the kernel; dK/dV is faster as one flat loop."""
        frame, kernel = self.frame, self.frame.kernel
        scope = 2 if frame.loops_over_heads and depends_on_head(kernel.walk) else 0
        return Walker(
            by=frame.by,
            shape=frame.plan.problem.shape,
            # What is gathered by key is bounded by queries, not by tiles of them.
            spans=kernel.spans if kernel.picks is None or frame.by == "query" else (1, kernel.block_k),
            separate=frame.separate(2 if frame.by == "query" else 1),
            place=lambda expr: frame.hoist.place(expr, scope),
            place_tile=frame.place_tile,
            body=body,  # type: ignore[arg-type]
            boxes=kernel.boxes,
            picks=kernel.picks,
        )

    def kernel(
        self,
        name: str,
        doc: str,
        results: tuple[str, ...],
        body: tuple[Block, ...],
        block: int,
        sums: split.Sums = split.NO_SUMS,
    ) -> Kernel:
        """The kernel with its arguments; ``sums`` are the accumulators in which the parts of a long row differ."""
        frame = self.frame
        picks = frame.kernel.picks
        packed, gathered = picks is not None and frame.by == "key", is_gathered(frame.kernel)
        parts = picked_sizes(frame, sums) if packed else split.part_sizes(frame, sums)
        return Kernel(
            name=name,
            doc=doc,
            arguments=(
                *read_tensor(frame, "Q", "q", "HEAD_DIM"),
                *read_tensor(frame, "K", "k", "HEAD_DIM"),
                *read_tensor(frame, "V", "k", "VALUE_DIM"),
                *read_tensor(frame, "dO", "q", "VALUE_DIM"),
                *STATISTICS,
                *(entry_arguments(frame) if gathered else result_arguments(frame, results, self.sums)),
                *length_arguments(frame),
                *parameter_arguments(frame, body),
                *list_arguments(frame),
                *(
                    picked_arguments(picks, sums)
                    if picks is not None and packed
                    else split.split_arguments(frame, sums)
                ),
                *table_arguments(frame, body),
            ),
            constants=frame.constants(),
            body=body,
            block=block,
            warps=frame.kernel.warps,
            stages=frame.kernel.stages,
            classes=frame.classes,
            boxes=frame.boxes,
            after=frame.after,
            parts=entry_sizes(frame) if gathered else parts,
            heads_first=frame.spans,
        )


def _tile(frame: Frame, tensor: str, side: Side, columns: str) -> tuple[Block, ...]:
    return (*addresses(frame, tensor, side, columns), load_tile(frame, tensor, side, columns, guarded=True))
