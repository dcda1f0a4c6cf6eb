"""The kernel of dK and dV of picked blocks of the pattern `nsa_stage_9` for Hopper, written by spdsl.

A program owns 64 keys and walks the queries that have picked their block.  One warp copies these, with all heads of a
list, from wherever they stand into a ring in shared memory; four warps compute.

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
from triton.experimental.gluon.language.nvidia.ampere import async_copy

BLOCK_Q = gl.constexpr(64)
BLOCK_K = gl.constexpr(64)
HEAD_DIM = gl.constexpr(128)
VALUE_DIM = gl.constexpr(128)
HEADS = gl.constexpr(32)
ROWS = gl.constexpr(64)
POSITIONS = gl.constexpr(4)
OF_LIST = gl.constexpr(16)
COLUMNS = gl.constexpr(64)
HALVES = gl.constexpr(2)
RING = gl.constexpr(2)
NUMBERS = gl.constexpr(2)
SCORES = gl.constexpr(gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16]))
SUMS = gl.constexpr(gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16]))
LEFT = gl.constexpr(gl.DotOperandLayout(operand_index=0, parent=SUMS.value, k_width=2))
ONE = gl.constexpr(gl.BlockedLayout([1], [32], [1], [0]))
SAME = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
NUMBER = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
TILE = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))
OUTPUT = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))
ACROSS = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))
BARRIER = gl.constexpr(mbarrier.MBarrierLayout())



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
    k_own, v_own, q_ring, do_ring, lse_ring, delta_ring, rows_ring, numbers, own_ready, filled, freed,
    Q, K, V, dO, LSE2, Delta, dK, dV, nq, n, item_rows, item_first, item_last, item_slots, list_tiles, blocks, Part_dk, Part_dv,
):
    """Load the program's keys and values, then tile after tile of the queries that have picked them."""
    turn = gl.program_id(0)
    row = gl.load(item_rows + turn)  # block of keys, among those of all heads and sequences
    first = gl.load(item_first + turn)  # its queries, or those of a part
    last = gl.load(item_last + turn)
    slot = gl.load(item_slots + turn)
    owner = row // blocks % 2
    b = row // blocks // 2  # sequence
    first_head = owner * 16
    g = owner  # key head
    j = row % blocks  # tile of keys
    item = slot
    lo = 64 * j  # touched tiles
    hi = n
    full_lo = gl.minimum(gl.maximum(64 * j + 63, lo), hi)  # full tiles
    full_hi = gl.maximum(gl.minimum(gl.minimum(n, hi), nq), full_lo)
    turns = gl.where(lo < hi, (last - first + 3) >> 2, 0)
    mbarrier.expect(own_ready, 2 * BLOCK_K * HEAD_DIM * 2)
    tma.async_copy_global_to_shared(K, [b, g, j * BLOCK_K, 0], own_ready, k_own)
    tma.async_copy_global_to_shared(V, [b, g, j * BLOCK_K, 0], own_ready, v_own)
    of_tile = gl.arange(0, BLOCK_Q, ONE)
    row_base = (b * HEADS + first_head + of_tile % OF_LIST).to(gl.int64) * nq
    for t in range(0, turns):
        q_listed = gl.load(list_tiles + gl.minimum(first + t * POSITIONS + of_tile // OF_LIST, last - 1))
        row_0 = gl.load(list_tiles + gl.minimum(first + t * POSITIONS, last - 1))
        row_1 = gl.load(list_tiles + gl.minimum(first + t * POSITIONS + 1, last - 1))
        row_2 = gl.load(list_tiles + gl.minimum(first + t * POSITIONS + 2, last - 1))
        row_3 = gl.load(list_tiles + gl.minimum(first + t * POSITIONS + 3, last - 1))
        place = t % RING
        mbarrier.wait(freed.index(place), t // RING & 1 ^ 1)
        tell(numbers, place * NUMBERS, row_0)
        tell(numbers, place * NUMBERS + 1, row_3)
        exist = (first + t * POSITIONS + of_tile // OF_LIST < last) & (q_listed < nq)
        q_listed = gl.where(exist, q_listed, nq)
        async_copy.async_copy_global_to_shared(lse_ring.index(place), LSE2 + (row_base + q_listed), mask=exist)
        async_copy.async_copy_global_to_shared(delta_ring.index(place), Delta + (row_base + q_listed), mask=exist)
        async_copy.mbarrier_arrive(filled.index(place), increment_count=False)
        rows_ring.index(place).store(q_listed)
        gl.thread_barrier()
        mbarrier.expect(filled.index(place), 2 * BLOCK_Q * HEAD_DIM * 2)
        tma.async_copy_global_to_shared(Q, [b, first_head, row_0, 0 * COLUMNS], filled.index(place), q_ring.index((place * HALVES + 0) * POSITIONS + 0))
        tma.async_copy_global_to_shared(dO, [b, first_head, row_0, 0 * COLUMNS], filled.index(place), do_ring.index((place * HALVES + 0) * POSITIONS + 0))
        tma.async_copy_global_to_shared(Q, [b, first_head, row_0, 1 * COLUMNS], filled.index(place), q_ring.index((place * HALVES + 1) * POSITIONS + 0))
        tma.async_copy_global_to_shared(dO, [b, first_head, row_0, 1 * COLUMNS], filled.index(place), do_ring.index((place * HALVES + 1) * POSITIONS + 0))
        row_1 = gl.where(first + t * POSITIONS + 1 < last, row_1, nq)  # zeros
        tma.async_copy_global_to_shared(Q, [b, first_head, row_1, 0 * COLUMNS], filled.index(place), q_ring.index((place * HALVES + 0) * POSITIONS + 1))
        tma.async_copy_global_to_shared(dO, [b, first_head, row_1, 0 * COLUMNS], filled.index(place), do_ring.index((place * HALVES + 0) * POSITIONS + 1))
        tma.async_copy_global_to_shared(Q, [b, first_head, row_1, 1 * COLUMNS], filled.index(place), q_ring.index((place * HALVES + 1) * POSITIONS + 1))
        tma.async_copy_global_to_shared(dO, [b, first_head, row_1, 1 * COLUMNS], filled.index(place), do_ring.index((place * HALVES + 1) * POSITIONS + 1))
        row_2 = gl.where(first + t * POSITIONS + 2 < last, row_2, nq)  # zeros
        tma.async_copy_global_to_shared(Q, [b, first_head, row_2, 0 * COLUMNS], filled.index(place), q_ring.index((place * HALVES + 0) * POSITIONS + 2))
        tma.async_copy_global_to_shared(dO, [b, first_head, row_2, 0 * COLUMNS], filled.index(place), do_ring.index((place * HALVES + 0) * POSITIONS + 2))
        tma.async_copy_global_to_shared(Q, [b, first_head, row_2, 1 * COLUMNS], filled.index(place), q_ring.index((place * HALVES + 1) * POSITIONS + 2))
        tma.async_copy_global_to_shared(dO, [b, first_head, row_2, 1 * COLUMNS], filled.index(place), do_ring.index((place * HALVES + 1) * POSITIONS + 2))
        row_3 = gl.where(first + t * POSITIONS + 3 < last, row_3, nq)  # zeros
        tma.async_copy_global_to_shared(Q, [b, first_head, row_3, 0 * COLUMNS], filled.index(place), q_ring.index((place * HALVES + 0) * POSITIONS + 3))
        tma.async_copy_global_to_shared(dO, [b, first_head, row_3, 0 * COLUMNS], filled.index(place), do_ring.index((place * HALVES + 0) * POSITIONS + 3))
        tma.async_copy_global_to_shared(Q, [b, first_head, row_3, 1 * COLUMNS], filled.index(place), q_ring.index((place * HALVES + 1) * POSITIONS + 3))
        tma.async_copy_global_to_shared(dO, [b, first_head, row_3, 1 * COLUMNS], filled.index(place), do_ring.index((place * HALVES + 1) * POSITIONS + 3))


@gluon.jit
def compute(
    k_own, v_own, q_ring, do_ring, lse_ring, delta_ring, rows_ring, numbers, own_ready, filled, freed,
    Q, K, V, dO, LSE2, Delta, dK, dV, nq, n, item_rows, item_first, item_last, item_slots, list_tiles, blocks, Part_dk, Part_dv,
    group: gl.constexpr,
):
    """dK and dV of the program's keys."""
    k_places = gl.arange(0, BLOCK_K, gl.SliceLayout(1, SCORES))
    q_tiles = q_ring._reinterpret(gl.bfloat16, [RING, BLOCK_Q, HEAD_DIM], TILE)
    do_tiles = do_ring._reinterpret(gl.bfloat16, [RING, BLOCK_Q, HEAD_DIM], TILE)
    turn = gl.program_id(0)
    row = gl.load(item_rows + turn)  # block of keys, among those of all heads and sequences
    first = gl.load(item_first + turn)  # its queries, or those of a part
    last = gl.load(item_last + turn)
    slot = gl.load(item_slots + turn)
    owner = row // blocks % 2
    b = row // blocks // 2  # sequence
    first_head = owner * 16
    g = owner  # key head
    j = row % blocks  # tile of keys
    item = slot
    k_rows = j * BLOCK_K + k_places
    k = k_rows[:, None]  # positions, [BLOCK_K, 1]
    k_tile = k_own.reshape([BLOCK_K, HEAD_DIM])
    v_tile = v_own.reshape([BLOCK_K, HEAD_DIM])
    dk = gl.zeros([BLOCK_K, HEAD_DIM], gl.float32, SUMS)
    dv = gl.zeros([BLOCK_K, HEAD_DIM], gl.float32, SUMS)
    mbarrier.wait(own_ready, 0)
    lo = 64 * j  # touched tiles
    hi = n
    full_lo = gl.minimum(gl.maximum(64 * j + 63, lo), hi)  # full tiles
    full_hi = gl.maximum(gl.minimum(gl.minimum(n, hi), nq), full_lo)
    turns = gl.where(lo < hi, (last - first + 3) >> 2, 0)
    # queries that have picked the block
    for t in range(0, turns):
        place = t % RING
        mbarrier.wait(filled.index(place), t // RING & 1)
        nearest = told(numbers, place * NUMBERS)
        farthest = told(numbers, place * NUMBERS + 1)
        masked = (nearest < full_lo) | (farthest >= full_hi)
        q_tile = q_tiles.index(place)
        do_tile = do_tiles.index(place)
        nothing = gl.zeros([BLOCK_K, BLOCK_Q], gl.float32, SCORES)
        lse = lse_ring.index(place).load(gl.SliceLayout(0, SCORES))[None, :]
        scores = warpgroup_mma(k_tile, q_tile.permute((1, 0)), nothing - lse * 7.842065147748378, is_async=True)  # [BLOCK_K, BLOCK_Q]
        delta = delta_ring.index(place).load(gl.SliceLayout(0, SCORES))[None, :]
        dp = warpgroup_mma(v_tile, do_tile.permute((1, 0)), nothing - delta, is_async=True)  # [BLOCK_K, BLOCK_Q]
        scores = warpgroup_mma_wait(1, deps=(scores,))
        p = gl.exp2(scores * 0.12751743082459868)
        if masked:
            q_listed = rows_ring.index(place).load(gl.SliceLayout(0, SCORES))
            q_rows = q_listed
            q = q_rows[None, :]  # positions, [1, BLOCK_Q]
            p = gl.where(q >= k, p, 0.0)  # nsa.spat:14
        weights = gl.convert_layout(p.to(gl.bfloat16), LEFT)
        dp = warpgroup_mma_wait(0, deps=(dp,))
        dv = warpgroup_mma(weights, do_tile, dv, is_async=True)  # [BLOCK_K, HEAD_DIM]
        ds = gl.convert_layout((p * dp).to(gl.bfloat16), LEFT)  # gradient of the logits
        dk = warpgroup_mma(ds, q_tile, dk, is_async=True)  # [BLOCK_K, HEAD_DIM]
        dv, weights, dk, ds = warpgroup_mma_wait(0, deps=(dv, weights, dk, ds))
        gl.thread_barrier()
        mbarrier.arrive(freed.index(place), count=1)
    if slot >= 0:
        part_rows = group * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, SUMS))
        part_columns = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, SUMS))
        part_at = item.to(gl.int64) * (BLOCK_K * HEAD_DIM) + (part_rows[:, None] * HEAD_DIM + part_columns[None, :])
        gl.store(Part_dk + part_at, dk)
        part_rows = group * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, SUMS))
        part_columns = gl.arange(0, VALUE_DIM, gl.SliceLayout(0, SUMS))
        part_at = item.to(gl.int64) * (BLOCK_K * VALUE_DIM) + (part_rows[:, None] * VALUE_DIM + part_columns[None, :])
        gl.store(Part_dv + part_at, dv)
    else:
        if slot == -1:
            v_tile.store(dv.to(gl.bfloat16))
            k_tile.store((dk * 0.08838834764831843).to(gl.bfloat16))
            fence_async_shared()
            gl.thread_barrier()
            tma.async_copy_shared_to_global(dK, [b, g, j * BLOCK_K, 0], k_own)
            tma.async_copy_shared_to_global(dV, [b, g, j * BLOCK_K, 0], v_own)
            tma.store_wait(0)


@gluon.jit(do_not_specialize=["nq", "n", "blocks"])
def dkdv(
    Q,  # [batch, heads, nq, 128]
    K,  # [batch, groups, n, 128]
    V,  # [batch, groups, n, 128]
    dO,  # [batch, heads, nq, 128]
    LSE2,  # [batch, heads, nq], in powers of two, +inf for rows that keep nothing
    Delta,  # [batch, heads, nq]
    dK,  # [batch, groups, n, 128]
    dV,  # [batch, groups, n, 128]
    nq,  # query rows
    n,  # keys
    item_rows,  # [items], blocks of keys over heads and sequences
    item_first,  # [items], where its queries begin
    item_last,  # [items], and end
    item_slots,  # [items], where parts are kept; -1: alone, -2: none
    list_tiles,  # runs of queries by the blocks that they have picked
    blocks,  # blocks of keys of a head
    Part_dk,  # [parts, BLOCK_K, HEAD_DIM]
    Part_dv,  # [parts, BLOCK_K, VALUE_DIM]
):
    """dK and dV: each program owns a tile of keys and walks the queries that have picked its block."""
    k_own = gl.allocate_shared_memory(gl.bfloat16, [1, 1, 64, 128], K.layout)
    v_own = gl.allocate_shared_memory(gl.bfloat16, [1, 1, 64, 128], V.layout)
    # Half of the columns after the other, as matrix instructions read them.
    q_ring = gl.allocate_shared_memory(gl.bfloat16, [RING * HALVES * POSITIONS, 1, 16, 1, 64], Q.layout)
    do_ring = gl.allocate_shared_memory(gl.bfloat16, [RING * HALVES * POSITIONS, 1, 16, 1, 64], dO.layout)
    lse_ring = gl.allocate_shared_memory(gl.float32, [RING, BLOCK_Q], NUMBER)
    delta_ring = gl.allocate_shared_memory(gl.float32, [RING, BLOCK_Q], NUMBER)
    rows_ring = gl.allocate_shared_memory(gl.int32, [RING, BLOCK_Q], NUMBER)
    numbers = gl.allocate_shared_memory(gl.int32, [RING * NUMBERS, 1], NUMBER)
    own_ready = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    filled = gl.allocate_shared_memory(gl.int64, [RING, 1], BARRIER)
    freed = gl.allocate_shared_memory(gl.int64, [RING, 1], BARRIER)
    mbarrier.init(own_ready, count=1)
    for place in gl.static_range(RING):
        mbarrier.init(filled.index(place), count=33)  # the copy engine, and each thread that copies numbers
        mbarrier.init(freed.index(place), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                compute,
                (
                    k_own, v_own, q_ring, do_ring, lse_ring, delta_ring, rows_ring, numbers, own_ready, filled, freed,
                    Q, K, V, dO, LSE2, Delta, dK, dV, nq, n, item_rows, item_first, item_last, item_slots, list_tiles, blocks, Part_dk, Part_dv, 0,
                ),
            ),
            (
                fetch,
                (
                    k_own, v_own, q_ring, do_ring, lse_ring, delta_ring, rows_ring, numbers, own_ready, filled, freed,
                    Q, K, V, dO, LSE2, Delta, dK, dV, nq, n, item_rows, item_first, item_last, item_slots, list_tiles, blocks, Part_dk, Part_dv,
                ),
            ),
        ],
        [1],
        [24],
    )
