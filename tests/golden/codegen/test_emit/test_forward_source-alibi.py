"""The forward kernel of the pattern `alibi` for Hopper, written by spdsl.

A program owns 128 queries, 64 for each group of four warps.  One warp walks the tiles of keys and copies them into a
ring in shared memory, with numbers that say which they are; the groups compute on what comes.
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

BLOCK_Q = gl.constexpr(128)
BLOCK_K = gl.constexpr(128)
HEAD_DIM = gl.constexpr(64)
VALUE_DIM = gl.constexpr(64)
HEADS = gl.constexpr(4)
GROUPS = gl.constexpr(2)
ROWS = gl.constexpr(64)
RING = gl.constexpr(4)
NUMBERS = gl.constexpr(2)
SCORES = gl.constexpr(gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16]))
SUMS = gl.constexpr(gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16]))
LEFT = gl.constexpr(gl.DotOperandLayout(operand_index=0, parent=SUMS.value, k_width=2))
ONE = gl.constexpr(gl.BlockedLayout([1], [32], [1], [0]))
SAME = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
NUMBER = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
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
def next_item(item, queue, queued):
    """What this program does after ``item``: the next that nobody has, or every so many-th where all take as long."""
    if queued != 0:
        following = gl.num_programs(0) + gl.atomic_add(queue, 1, sem="relaxed")
    else:
        following = item + gl.num_programs(0)
    return following


@gluon.jit
def fetch(
    q_groups, k_ring, v_ring, numbers, q_filled, q_freed, k_filled, k_freed, v_filled, v_freed,
    Q, K, V, O, LSE, nq, n, tiles, together, all_items, queue, queued, t_slope, stride_slope_b, stride_slope_0, size_slope_0,
):
    """Load the program's queries, then tile after tile of the keys that they meet."""
    rounds = gl.program_id(0) * 0  # tiles of queries so far
    sent = gl.program_id(0) * 0  # tiles of keys so far
    values_sent = gl.program_id(0) * 0
    item = gl.program_id(0)
    while item < all_items:
        step = item % (tiles * together)
        i = tiles - 1 - step // together  # tile of its own, the last first: their rows are the longest
        head = item // (tiles * together) * together + step % together  # of all sequences
        h = head % HEADS
        b = head // HEADS  # sequence
        g = h // 2  # key head
        lo = 0  # touched tiles
        hi = i + 1
        full_hi = gl.maximum(gl.minimum(gl.minimum(i, hi), n >> 7), lo)  # full tiles
        mbarrier.wait(q_freed, rounds & 1 ^ 1)
        rounds += 1
        tell(numbers, RING * NUMBERS, item)
        gl.thread_barrier()
        mbarrier.expect(q_filled, BLOCK_Q * HEAD_DIM * 2)
        for group in gl.static_range(GROUPS):
            tma.async_copy_global_to_shared(Q, [b, h, i * BLOCK_Q + group * ROWS, 0], q_filled, q_groups.index(group))
        # masked where the tile is not full
        for j in range(lo, hi):
            masked = (j < lo) | (j >= full_hi)
            place = sent % RING
            mbarrier.wait(k_freed.index(place), sent // RING & 1 ^ 1)
            tell(numbers, place * NUMBERS, j)
            tell(numbers, place * NUMBERS + 1, masked)
            gl.thread_barrier()
            mbarrier.expect(k_filled.index(place), BLOCK_K * HEAD_DIM * 2)
            tma.async_copy_global_to_shared(K, [b, g, j * BLOCK_K, 0], k_filled.index(place), k_ring.index(place))
            sent += 1
            place = values_sent % RING
            mbarrier.wait(v_freed.index(place), values_sent // RING & 1 ^ 1)
            mbarrier.expect(v_filled.index(place), BLOCK_K * VALUE_DIM * 2)
            tma.async_copy_global_to_shared(V, [b, g, j * BLOCK_K, 0], v_filled.index(place), v_ring.index(place))
            values_sent += 1
        place = sent % RING
        mbarrier.wait(k_freed.index(place), sent // RING & 1 ^ 1)
        tell(numbers, place * NUMBERS, -1)
        gl.thread_barrier()
        mbarrier.arrive(k_filled.index(place), count=1)
        sent += 1
        item = next_item(item, queue, queued)
    mbarrier.wait(q_freed, rounds & 1 ^ 1)
    tell(numbers, RING * NUMBERS, -1)
    gl.thread_barrier()
    mbarrier.arrive(q_filled, count=1)


@gluon.jit
def compute(
    q_groups, o_groups, k_ring, v_ring, numbers, q_filled, q_freed, k_filled, k_freed, v_filled, v_freed,
    Q, K, V, O, LSE, nq, n, tiles, together, all_items, queue, queued, t_slope, stride_slope_b, stride_slope_0, size_slope_0,
    group: gl.constexpr,
):
    """The rows of a group: the online softmax over the tiles that are sent, the products of one running beside the next."""
    q_places = group * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))
    k_places = gl.arange(0, BLOCK_K, gl.SliceLayout(0, SCORES))
    rounds = gl.program_id(0) * 0  # tiles of queries so far
    taken = gl.program_id(0) * 0  # tiles of keys so far
    met = gl.program_id(0) * 0  # tiles of values so far
    mbarrier.wait(q_filled, 0)
    item = told(numbers, RING * NUMBERS)
    while item >= 0:
        step = item % (tiles * together)
        i = tiles - 1 - step // together  # tile of its own, the last first: their rows are the longest
        head = item // (tiles * together) * together + step % together  # of all sequences
        h = head % HEADS
        b = head // HEADS  # sequence
        g = h // 2  # key head
        q_rows = i * BLOCK_Q + q_places
        q = q_rows[:, None]  # positions, [BLOCK_Q, 1]
        slope_at_h = gl.load(t_slope + b.to(gl.int64) * stride_slope_b + h * stride_slope_0).to(gl.float32)
        q_part = gl.minimum(q + 1, n)
        m = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, SCORES))  # running maximum of the logits
        l = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, SCORES))  # running sum of the weights
        acc = gl.zeros([ROWS, VALUE_DIM], gl.float32, SUMS)
        nothing = gl.zeros([ROWS, BLOCK_K], gl.float32, SCORES)
        q_tile = q_groups.index(group).reshape([ROWS, HEAD_DIM])
        place = taken % RING
        mbarrier.wait(k_filled.index(place), taken // RING & 1)
        j = told(numbers, place * NUMBERS)
        if j >= 0:
            scores = warpgroup_mma(q_tile, k_ring.index(place).reshape([BLOCK_K, HEAD_DIM]).permute((1, 0)), nothing, use_acc=False, is_async=True)
            masked = told(numbers, place * NUMBERS + 1) != 0
            scores = warpgroup_mma_wait(0, deps=(scores,))  # [ROWS, BLOCK_K]
            gl.thread_barrier()
            mbarrier.arrive(k_freed.index(place), count=1)
            taken += 1
            k_rows = j * BLOCK_K + k_places
            k = k_rows[None, :]  # positions, [1, BLOCK_K]
            scores = scores * 0.18033688011112042 + (-slope_at_h * gl.cast(q - k, gl.float32)) * 1.4426950408889634  # logits in powers of two
            if masked:
                scores = gl.where(k < q_part, scores, float("-inf"))  # alibi.spat:4
            m_new = gl.maximum(m, gl.max(scores, 1))
            shift = gl.where(m_new == float("-inf"), 0.0, m_new)  # a row may have nothing yet
            p = gl.exp2(scores - shift[:, None])
            alpha = gl.exp2(m - shift)
            l = l * alpha + gl.sum(p, 1)
            m = m_new
            weights = gl.convert_layout(p.to(gl.bfloat16), LEFT)
            place = taken % RING
            mbarrier.wait(k_filled.index(place), taken // RING & 1)
            j = told(numbers, place * NUMBERS)
            while j >= 0:
                scores = warpgroup_mma(q_tile, k_ring.index(place).reshape([BLOCK_K, HEAD_DIM]).permute((1, 0)), nothing, use_acc=False, is_async=True)
                masked = told(numbers, place * NUMBERS + 1) != 0
                behind = met % RING
                mbarrier.wait(v_filled.index(behind), met // RING & 1)
                acc = warpgroup_mma(weights, v_ring.index(behind).reshape([BLOCK_K, VALUE_DIM]), acc, is_async=True)
                scores = warpgroup_mma_wait(1, deps=(scores,))  # [ROWS, BLOCK_K]
                gl.thread_barrier()
                mbarrier.arrive(k_freed.index(place), count=1)
                taken += 1
                k_rows = j * BLOCK_K + k_places
                k = k_rows[None, :]  # positions, [1, BLOCK_K]
                scores = scores * 0.18033688011112042 + (-slope_at_h * gl.cast(q - k, gl.float32)) * 1.4426950408889634  # logits in powers of two
                if masked:
                    scores = gl.where(k < q_part, scores, float("-inf"))  # alibi.spat:4
                m_new = gl.maximum(m, gl.max(scores, 1))
                shift = gl.where(m_new == float("-inf"), 0.0, m_new)  # a row may have nothing yet
                p = gl.exp2(scores - shift[:, None])
                alpha = gl.exp2(m - shift)
                l = l * alpha + gl.sum(p, 1)
                m = m_new
                acc, weights = warpgroup_mma_wait(0, deps=(acc, weights))  # [ROWS, VALUE_DIM]
                gl.thread_barrier()
                mbarrier.arrive(v_freed.index(behind), count=1)
                met += 1
                acc = acc * gl.convert_layout(alpha, gl.SliceLayout(1, SUMS))[:, None]
                weights = gl.convert_layout(p.to(gl.bfloat16), LEFT)
                place = taken % RING
                mbarrier.wait(k_filled.index(place), taken // RING & 1)
                j = told(numbers, place * NUMBERS)
            gl.thread_barrier()
            mbarrier.arrive(q_freed, count=1)
            mbarrier.arrive(k_freed.index(place), count=1)
            behind = met % RING
            mbarrier.wait(v_filled.index(behind), met // RING & 1)
            acc = warpgroup_mma(weights, v_ring.index(behind).reshape([BLOCK_K, VALUE_DIM]), acc, is_async=True)
            acc, weights = warpgroup_mma_wait(0, deps=(acc, weights))
            gl.thread_barrier()
            mbarrier.arrive(v_freed.index(behind), count=1)
            met += 1
        else:
            gl.thread_barrier()
            mbarrier.arrive(q_freed, count=1)
            mbarrier.arrive(k_freed.index(place), count=1)
        taken += 1
        norm = gl.where(l == 0.0, 1.0, l)  # rows that keep nothing give zeros
        acc = acc * gl.convert_layout(1.0 / norm, gl.SliceLayout(1, SUMS))[:, None]
        lse = (m + gl.log2(norm)) * 0.6931471805599453
        tma.store_wait(0)  # of the rows before
        gl.thread_barrier()  # queries may lie where the output goes: they have been read
        o_groups.index(group).reshape([ROWS, VALUE_DIM]).store(acc.to(gl.bfloat16))
        fence_async_shared()
        gl.thread_barrier()
        tma.async_copy_shared_to_global(O, [b, h, i * BLOCK_Q + group * ROWS, 0], o_groups.index(group))
        row_base = (b * HEADS + h).to(gl.int64) * nq
        gl.store(LSE + row_base + q_rows, lse, mask=q_rows < nq)
        rounds += 1
        mbarrier.wait(q_filled, rounds & 1)
        item = told(numbers, RING * NUMBERS)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["nq", "n", "tiles", "together", "all_items", "queued", "stride_slope_b", "size_slope_0"])
def forward(
    Q,  # [batch, heads, nq, 64]
    K,  # [batch, groups, n, 64]
    V,  # [batch, groups, n, 64]
    O,  # [batch, heads, nq, 64]
    LSE,  # [batch, heads, nq], natural logarithm
    nq,  # query rows
    n,  # keys
    tiles,  # tiles of queries of a head
    together,  # heads that take turns, tile by tile
    all_items,  # tiles of all heads and sequences, or their parts
    queue,  # [1], items that were taken, beside the first of each program
    queued,  # whether items are taken from there, or every so many-th
    t_slope,  # table slope[h]
    stride_slope_b, stride_slope_0, size_slope_0,
):
    """Output and LSE: each program owns a tile of queries and walks the tiles of keys that its rows touch."""
    q_groups = gl.allocate_shared_memory(gl.bfloat16, [GROUPS, 1, 1, 64, 64], Q.layout)
    o_groups = gl.allocate_shared_memory(gl.bfloat16, [GROUPS, 1, 1, 64, 64], O.layout)
    k_ring = gl.allocate_shared_memory(gl.bfloat16, [RING, 1, 1, 128, 64], K.layout)
    v_ring = gl.allocate_shared_memory(gl.bfloat16, [RING, 1, 1, 128, 64], V.layout)
    numbers = gl.allocate_shared_memory(gl.int32, [RING * NUMBERS + 1, 1], NUMBER)
    q_filled = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    q_freed = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    k_filled = gl.allocate_shared_memory(gl.int64, [RING, 1], BARRIER)
    k_freed = gl.allocate_shared_memory(gl.int64, [RING, 1], BARRIER)
    v_filled = gl.allocate_shared_memory(gl.int64, [RING, 1], BARRIER)
    v_freed = gl.allocate_shared_memory(gl.int64, [RING, 1], BARRIER)
    mbarrier.init(q_filled, count=1)
    mbarrier.init(q_freed, count=GROUPS)
    for place in gl.static_range(RING):
        mbarrier.init(k_filled.index(place), count=1)
        mbarrier.init(v_filled.index(place), count=1)
        mbarrier.init(k_freed.index(place), count=GROUPS)
        mbarrier.init(v_freed.index(place), count=GROUPS)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                compute,
                (
                    q_groups, o_groups, k_ring, v_ring, numbers, q_filled, q_freed, k_filled, k_freed, v_filled, v_freed,
                    Q, K, V, O, LSE, nq, n, tiles, together, all_items, queue, queued, t_slope, stride_slope_b, stride_slope_0, size_slope_0, 0,
                ),
            ),
            (
                compute,
                (
                    q_groups, o_groups, k_ring, v_ring, numbers, q_filled, q_freed, k_filled, k_freed, v_filled, v_freed,
                    Q, K, V, O, LSE, nq, n, tiles, together, all_items, queue, queued, t_slope, stride_slope_b, stride_slope_0, size_slope_0, 1,
                ),
            ),
            (
                fetch,
                (
                    q_groups, k_ring, v_ring, numbers, q_filled, q_freed, k_filled, k_freed, v_filled, v_freed,
                    Q, K, V, O, LSE, nq, n, tiles, together, all_items, queue, queued, t_slope, stride_slope_b, stride_slope_0, size_slope_0,
                ),
            ),
        ],
        [4, 1],
        [232, 40],
    )
