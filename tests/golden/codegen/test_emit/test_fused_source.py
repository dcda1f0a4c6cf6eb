"""The fused backward kernel of the pattern `streaming` for Hopper, written by spdsl.

A program owns 128 keys and walks the tiles of queries.  One warp copies tiles into a ring in shared memory; two
groups of four warps compute, each for half of the keys.  dK and dV stay in registers; dQ is added up in fp32 in memory
by the copy engine, so that the order of the sums, and with it the last bits, vary from run to run.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton._C.libtriton import ir
from triton.experimental.gluon.language._core import builtin

BLOCK_Q = gl.constexpr(64)
BLOCK_K = gl.constexpr(128)
HEAD_DIM = gl.constexpr(128)
VALUE_DIM = gl.constexpr(128)
HEADS = gl.constexpr(4)
GROUPS = gl.constexpr(2)
ROWS = gl.constexpr(64)
COLUMNS = gl.constexpr(64)
RING = gl.constexpr(2)
NUMBERS = gl.constexpr(2)
SCORES = gl.constexpr(gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16]))
SUMS = gl.constexpr(gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16]))
QUERIES = gl.constexpr(gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16]))
LEFT = gl.constexpr(gl.DotOperandLayout(operand_index=0, parent=SUMS.value, k_width=2))
ONE = gl.constexpr(gl.BlockedLayout([1], [32], [1], [0]))
SAME = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
NUMBER = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
SWIZZLED = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))
OUTPUT = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))
ACROSS = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))
BARRIER = gl.constexpr(mbarrier.MBarrierLayout())


@builtin
def add_to_memory(descriptor, at, tile, _semantic=None):
    """Add a tile in shared memory to a tensor, by the copy engine."""
    at = _semantic._convert_to_ir_values(at, require_i64=False)
    _semantic.builder.create_async_tma_reduce(ir.DESCRIPTOR_REDUCE_KIND.ADD, descriptor.handle, at, tile.handle)



@gluon.jit
def tell(numbers, at, value):
    """The copying warp writes a number for those that compute."""
    numbers.index(at).store(gl.full([1], value, gl.int32, ONE))


@gluon.jit
def told(numbers, at, layout: gl.constexpr = SAME):
    """A number that the copying warp has written, for warps with this layout."""
    return gl.max(numbers.index(at).load(layout), 0)
@gluon.jit
def fetch(
    k_halves, v_halves, q_ring, do_ring, lse_ring, delta_ring, numbers, own_ready, filled, freed,
    Q, K, V, dO, LSE2, Delta, dQ, dK, dV, nq, n, items, parts, long_rows, other_rows, first_long, Part_dk, Part_dv, p_window, p_sinks,
):
    """Load the program's keys and values, then tile after tile of the queries that it meets."""
    item = gl.program_id(0)
    is_part = item < items  # the parts of long rows come first
    shares = gl.where(is_part, parts, 1)
    part = gl.where(is_part, item % parts, 0)
    row = gl.where(is_part, item // parts, item - items)  # among those of all heads and sequences
    rows = gl.where(is_part, long_rows, other_rows)
    g = row % 2  # key head
    b = row // 2 // rows  # sequence
    row = row // 2 % rows
    other = row
    j = gl.where(is_part, first_long + row, other + gl.where(other >= first_long, long_rows, 0))  # tile of keys
    mbarrier.expect(own_ready, 2 * GROUPS * ROWS * HEAD_DIM * 2)
    for group in gl.static_range(GROUPS):
        tma.async_copy_global_to_shared(K, [b, g, j * BLOCK_K + group * ROWS, 0], own_ready, k_halves.index(group))
        tma.async_copy_global_to_shared(V, [b, g, j * BLOCK_K + group * ROWS, 0], own_ready, v_halves.index(group))
    sent = j * 0  # tiles of queries so far, and words that there are no more
    lo = 2 * j  # touched tiles
    hi = gl.where(p_sinks >= 128 * j + 1, (n + 63) >> 6, gl.minimum((n + 63) >> 6, 2 * j + ((p_window + 190) >> 6)))
    full_lo = gl.minimum(gl.maximum(2 * j + 2, lo), hi)  # full tiles
    full_hi = gl.maximum(gl.maximum((p_sinks + p_window) >> 6, 2 * j + (p_window >> 6)), gl.where(p_sinks >= 128 * j + 128, (n + 63) >> 6, -268435456))
    full_hi = gl.maximum(gl.where((j + 1) * 128 > n, full_lo, gl.minimum(gl.minimum(full_hi, hi), nq >> 6)), full_lo)
    # heads of the group
    for r in range(0, 2):
        h = g * 2 + r  # query head
        row_base = (b * HEADS + h) * ((nq + 3) // 4 * 4)  # rows are copied from multiples of 16 bytes on
        turns = (gl.maximum(hi - lo, 0) + shares - 1) // shares  # of this part
        first = lo + part * turns
        last = gl.minimum(first + turns, hi)
        # masked where the tile is not full
        for i in range(first, last):
            masked = (i < full_lo) | (i >= full_hi)
            place = sent % RING
            mbarrier.wait(freed.index(place), sent // RING & 1 ^ 1)
            tell(numbers, place * NUMBERS, i)
            tell(numbers, place * NUMBERS + 1, masked)
            gl.thread_barrier()
            mbarrier.expect(filled.index(place), 2 * BLOCK_Q * HEAD_DIM * 2 + 2 * BLOCK_Q * 4)
            tma.async_copy_global_to_shared(Q, [b, h, i * BLOCK_Q, 0], filled.index(place), q_ring.index(place))
            tma.async_copy_global_to_shared(LSE2, [row_base + i * BLOCK_Q], filled.index(place), lse_ring.index(place))
            tma.async_copy_global_to_shared(dO, [b, h, i * BLOCK_Q, 0], filled.index(place), do_ring.index(place))
            tma.async_copy_global_to_shared(Delta, [row_base + i * BLOCK_Q], filled.index(place), delta_ring.index(place))
            sent += 1
        place = sent % RING
        mbarrier.wait(freed.index(place), sent // RING & 1 ^ 1)
        tell(numbers, place * NUMBERS, -1)
        gl.thread_barrier()
        mbarrier.arrive(filled.index(place), count=1)
        sent += 1


@gluon.jit
def compute(
    k_halves, v_halves, q_ring, do_ring, lse_ring, delta_ring, ds_halves, dq_halves,
    numbers, own_ready, filled, freed, ds_ready, done,
    Q, K, V, dO, LSE2, Delta, dQ, dK, dV, nq, n, items, parts, long_rows, other_rows, first_long, Part_dk, Part_dv, p_window, p_sinks,
    group: gl.constexpr,
):
    """Half of the program's keys: their dK and dV, and half of dQ of every tile of queries."""
    k_places = group * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))
    q_places = gl.arange(0, BLOCK_Q, gl.SliceLayout(0, SCORES))
    k_quarters = k_halves._reinterpret(gl.bfloat16, [4, ROWS, COLUMNS], SWIZZLED)  # by half of the keys, half of the columns
    item = gl.program_id(0)
    is_part = item < items  # the parts of long rows come first
    shares = gl.where(is_part, parts, 1)
    part = gl.where(is_part, item % parts, 0)
    row = gl.where(is_part, item // parts, item - items)  # among those of all heads and sequences
    rows = gl.where(is_part, long_rows, other_rows)
    g = row % 2  # key head
    b = row // 2 // rows  # sequence
    row = row // 2 % rows
    other = row
    j = gl.where(is_part, first_long + row, other + gl.where(other >= first_long, long_rows, 0))  # tile of keys
    k_rows = j * BLOCK_K + k_places
    k = k_rows[:, None]  # positions, [BLOCK_K, 1]
    k_part = gl.where(k < n, nq, 0)
    k_tile = k_halves.index(group).reshape([ROWS, HEAD_DIM])
    v_tile = v_halves.index(group).reshape([ROWS, HEAD_DIM])
    dk = gl.zeros([ROWS, HEAD_DIM], gl.float32, SUMS)
    dv = gl.zeros([ROWS, HEAD_DIM], gl.float32, SUMS)
    mbarrier.wait(own_ready, 0)
    taken = j * 0  # tiles of queries so far, and words that there are no more
    turn = j * 0  # tiles of queries so far
    # heads of the group
    for r in range(0, 2):
        h = g * 2 + r  # query head
        i = j * 0
        while i >= 0:
            place = taken % RING
            mbarrier.wait(filled.index(place), taken // RING & 1)
            i = told(numbers, place * NUMBERS)
            if i >= 0:
                masked = told(numbers, place * NUMBERS + 1) != 0
                q_rows = i * BLOCK_Q + q_places
                q = q_rows[None, :]  # positions, [1, BLOCK_Q]
                q_tile = q_ring.index(place).reshape([BLOCK_Q, HEAD_DIM])
                do_tile = do_ring.index(place).reshape([BLOCK_Q, HEAD_DIM])
                nothing = gl.zeros([ROWS, BLOCK_Q], gl.float32, SCORES)
                lse = lse_ring.index(place).load(gl.SliceLayout(0, SCORES))[None, :]
                scores = warpgroup_mma(k_tile, q_tile.permute((1, 0)), nothing - lse * 7.842065147748378, is_async=True)  # [ROWS, BLOCK_Q]
                delta = delta_ring.index(place).load(gl.SliceLayout(0, SCORES))[None, :]
                dp = warpgroup_mma(v_tile, do_tile.permute((1, 0)), nothing - delta, is_async=True)  # [ROWS, BLOCK_Q]
                scores = warpgroup_mma_wait(1, deps=(scores,))
                p = gl.exp2(scores * 0.12751743082459868)
                if masked:
                    p = gl.where((q >= k) & (q < k_part) & ((q < k + p_window) | (k < p_sinks)), p, 0.0)  # streaming.spat:3
                weights = gl.convert_layout(p.to(gl.bfloat16), LEFT)
                dp = warpgroup_mma_wait(0, deps=(dp,))
                dv = warpgroup_mma(weights, do_tile, dv, is_async=True)  # [ROWS, HEAD_DIM]
                ds = (p * dp).to(gl.bfloat16)  # gradient of the logits
                ds_halves.index((turn & 1) * GROUPS + group).store(ds)
                fence_async_shared()
                gl.thread_barrier()
                mbarrier.arrive(ds_ready, count=1)
                ds_left = gl.convert_layout(ds, LEFT)
                mbarrier.wait(ds_ready, turn & 1)
                # Half of the columns of dQ, over the keys of both halves.
                ds_one, ds_two = ds_halves.index((turn & 1) * 2), ds_halves.index((turn & 1) * 2 + 1)
                k_one, k_two = k_quarters.index(group), k_quarters.index(2 + group)
                dq = gl.zeros([ROWS, COLUMNS], gl.float32, QUERIES)
                dq = warpgroup_mma(ds_one.permute((1, 0)), k_one, dq, use_acc=False, is_async=True)
                dq = warpgroup_mma(ds_two.permute((1, 0)), k_two, dq, is_async=True)
                dk = warpgroup_mma(ds_left, q_tile, dk, is_async=True)  # [ROWS, HEAD_DIM]
                dq, dv, weights = warpgroup_mma_wait(1, deps=(dq, dv, weights))
                tma.store_wait(0)
                gl.thread_barrier()
                dq_halves.index(group).reshape([ROWS, COLUMNS]).store(dq)
                fence_async_shared()
                gl.thread_barrier()
                add_to_memory(dQ, [b, h, i * BLOCK_Q, group * COLUMNS], dq_halves.index(group))
                dk, ds_left = warpgroup_mma_wait(0, deps=(dk, ds_left))
                gl.thread_barrier()
                mbarrier.arrive(freed.index(place), count=1)
                turn += 1
            else:
                gl.thread_barrier()
                mbarrier.arrive(freed.index(place), count=1)
            taken += 1
    if shares > 1:
        part_rows = group * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, SUMS))
        part_columns = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, SUMS))
        part_at = item.to(gl.int64) * (BLOCK_K * HEAD_DIM) + (part_rows[:, None] * HEAD_DIM + part_columns[None, :])
        gl.store(Part_dk + part_at, dk)
        tma.store_wait(0)  # what the copy engine adds or writes is read from shared memory
        part_rows = group * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, SUMS))
        part_columns = gl.arange(0, VALUE_DIM, gl.SliceLayout(0, SUMS))
        part_at = item.to(gl.int64) * (BLOCK_K * VALUE_DIM) + (part_rows[:, None] * VALUE_DIM + part_columns[None, :])
        gl.store(Part_dv + part_at, dv)
        tma.store_wait(0)  # what the copy engine adds or writes is read from shared memory
    else:
        # Both halves read all of K for dQ: it is overwritten when both are done.
        gl.thread_barrier()
        mbarrier.arrive(done, count=1)
        v_tile.store(dv.to(gl.bfloat16))
        mbarrier.wait(done, 0)
        k_tile.store((dk * 0.08838834764831843).to(gl.bfloat16))
        fence_async_shared()
        gl.thread_barrier()
        tma.async_copy_shared_to_global(dK, [b, g, j * BLOCK_K + group * ROWS, 0], k_halves.index(group))
        tma.async_copy_shared_to_global(dV, [b, g, j * BLOCK_K + group * ROWS, 0], v_halves.index(group))
        tma.store_wait(0)


@gluon.jit(do_not_specialize=["nq", "n", "items", "parts", "long_rows", "other_rows", "first_long", "p_window", "p_sinks"])
def fused(
    Q,  # [batch, heads, nq, 128]
    K,  # [batch, groups, n, 128]
    V,  # [batch, groups, n, 128]
    dO,  # [batch, heads, nq, 128]
    LSE2,  # [batch * heads * nq]
    Delta,  # [batch * heads * nq]
    dQ,  # [batch, heads, nq, 128]
    dK,  # [batch, groups, n, 128]
    dV,  # [batch, groups, n, 128]
    nq,  # query rows
    n,  # keys
    items,  # parts of all long rows
    parts,  # of each long row
    long_rows,  # long rows of a head
    other_rows,
    first_long,  # the first of them
    Part_dk,  # [items, BLOCK_K, HEAD_DIM]
    Part_dv,  # [items, BLOCK_K, VALUE_DIM]
    p_window,  # parameter window
    p_sinks,  # parameter sinks
):
    """dQ, dK and dV: each program owns a tile of keys and walks the tiles of queries."""
    k_halves = gl.allocate_shared_memory(gl.bfloat16, [GROUPS, 1, 1, 64, 128], K.layout)
    v_halves = gl.allocate_shared_memory(gl.bfloat16, [GROUPS, 1, 1, 64, 128], V.layout)
    q_ring = gl.allocate_shared_memory(gl.bfloat16, [RING, 1, 1, 64, 128], Q.layout)
    do_ring = gl.allocate_shared_memory(gl.bfloat16, [RING, 1, 1, 64, 128], dO.layout)
    lse_ring = gl.allocate_shared_memory(gl.float32, [RING, BLOCK_Q], LSE2.layout)
    delta_ring = gl.allocate_shared_memory(gl.float32, [RING, BLOCK_Q], Delta.layout)
    ds_halves = gl.allocate_shared_memory(gl.bfloat16, [2 * GROUPS, ROWS, BLOCK_Q], SWIZZLED)  # twice, by half of the keys
    dq_halves = gl.allocate_shared_memory(gl.float32, [GROUPS, 1, 1, 64, 64], dQ.layout)
    numbers = gl.allocate_shared_memory(gl.int32, [RING * NUMBERS, 1], NUMBER)
    own_ready = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    ds_ready = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    done = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    filled = gl.allocate_shared_memory(gl.int64, [RING, 1], BARRIER)
    freed = gl.allocate_shared_memory(gl.int64, [RING, 1], BARRIER)
    mbarrier.init(own_ready, count=1)
    mbarrier.init(ds_ready, count=GROUPS)
    mbarrier.init(done, count=GROUPS)
    for place in gl.static_range(RING):
        mbarrier.init(filled.index(place), count=1)
        mbarrier.init(freed.index(place), count=GROUPS)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                compute,
                (
                    k_halves, v_halves, q_ring, do_ring, lse_ring, delta_ring, ds_halves, dq_halves,
                    numbers, own_ready, filled, freed, ds_ready, done,
                    Q, K, V, dO, LSE2, Delta, dQ, dK, dV, nq, n, items, parts, long_rows, other_rows, first_long, Part_dk, Part_dv, p_window, p_sinks, 0,
                ),
            ),
            (
                compute,
                (
                    k_halves, v_halves, q_ring, do_ring, lse_ring, delta_ring, ds_halves, dq_halves,
                    numbers, own_ready, filled, freed, ds_ready, done,
                    Q, K, V, dO, LSE2, Delta, dQ, dK, dV, nq, n, items, parts, long_rows, other_rows, first_long, Part_dk, Part_dv, p_window, p_sinks, 1,
                ),
            ),
            (
                fetch,
                (
                    k_halves, v_halves, q_ring, do_ring, lse_ring, delta_ring, numbers, own_ready, filled, freed,
                    Q, K, V, dO, LSE2, Delta, dQ, dK, dV, nq, n, items, parts, long_rows, other_rows, first_long, Part_dk, Part_dv, p_window, p_sinks,
                ),
            ),
        ],
        [4, 1],
        [240, 24],
    )
