"""Kernels of what queries have picked on a GPU: against dense float64 attention, twice, on memory full of NaN."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl import prepare
from spdsl.pipeline import bound, key_of, opened, read, softmax_key
from spdsl.runtime import graphs, operator, picks, requests
from spdsl.runtime.ranking import FAR
from spdsl.runtime.tape import Tape
from tests.library.compare import TOLERANCE, relative_error
from tests.runtime.test_picks import lists

pytestmark = pytest.mark.gpu

requests.install(prepare.prepare)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A selection of ``picks`` random blocks for each run of ``rows`` queries, by group or by head, and a window."""

    heads: int
    groups: int
    n: int
    block: int = 64
    picks: int = 5
    rows: int = 1
    by_head: bool = False
    window: int = 0
    batch: int = 1
    dim: int = 128
    dtype: torch.dtype = torch.bfloat16

    @property
    def lists(self) -> int:
        return self.heads if self.by_head else self.groups


CASES = {
    "16 heads": Case(heads=32, groups=2, n=1000),
    "16 heads and a window": Case(heads=32, groups=2, n=1000, window=200),
    "5 heads": Case(heads=10, groups=2, n=777, batch=2),
    "8 heads": Case(heads=8, groups=1, n=1030, block=32),
    "64 heads": Case(heads=64, groups=1, n=500),
    "128 heads": Case(heads=128, groups=1, n=300),
    "4 heads": Case(heads=8, groups=2, n=901, batch=2),
    "1 head": Case(heads=3, groups=3, n=1500, block=256, by_head=True, batch=2),
    "1 head, and its block": Case(heads=4, groups=4, n=2100, block=512, picks=3, by_head=True, window=300),
    "1 head, keys shared": Case(heads=4, groups=2, n=600, by_head=True),
    "runs": Case(heads=8, groups=2, n=1000, rows=64),
    "runs by head": Case(heads=4, groups=4, n=1000, rows=64, by_head=True),
    "single keys": Case(heads=64, groups=1, n=600, block=1, picks=90),
    "single keys, 128 heads": Case(heads=128, groups=1, n=300, block=1, picks=70),
    "single keys, 4 heads, many": Case(heads=8, groups=2, n=900, block=1, picks=200, batch=2),
    "single keys, 2 heads, narrow": Case(heads=4, groups=2, n=700, block=1, picks=120, dim=64),
    "single keys, 1 head, many": Case(heads=4, groups=4, n=700, block=1, picks=150, by_head=True),
    "few keys and a window": Case(heads=32, groups=2, n=500, block=4, picks=20, window=50, batch=2),
    "8 heads, long blocks": Case(heads=16, groups=2, n=1100, block=128, picks=3, batch=2),
    "16 heads, narrow": Case(heads=32, groups=2, n=700, dim=64, dtype=torch.float16),
    "8 heads, narrow": Case(heads=16, groups=2, n=701, dim=32),
    "4 heads of 96 numbers": Case(heads=8, groups=2, n=650, dim=96, dtype=torch.float16),
    "runs of 16 heads": Case(heads=32, groups=2, n=1000, rows=64),
    "short runs of 16 heads and a window": Case(heads=32, groups=2, n=900, rows=32, window=100),
    "a block that all have picked": Case(heads=64, groups=4, n=3000, picks=2),
    "single": Case(heads=8, groups=1, n=400, dtype=torch.float32),
    # A warp copies blocks; of those that do not fill a tile several make one.
    "blocks of 8 copied": Case(heads=4, groups=2, n=2001, rows=64, block=8, picks=37, by_head=True, batch=2),
    "blocks of 16 copied, narrow": Case(heads=2, groups=2, n=1000, rows=256, block=16, picks=9, by_head=True, dim=64),
    "blocks of 32 copied, and a window": Case(
        heads=4, groups=1, n=1111, rows=128, block=32, picks=7, by_head=True, window=150, dtype=torch.float16
    ),
    "blocks of 64 copied, and a window": Case(heads=4, groups=2, n=1500, rows=128, window=70, by_head=True, dim=64),
    "blocks of 128 copied": Case(heads=3, groups=3, n=1290, rows=64, block=128, picks=3, by_head=True),
    "blocks of 128 copied for 128 queries": Case(
        heads=4, groups=2, n=1290, rows=128, block=128, picks=3, by_head=True, dim=64
    ),
}


def lists_of(case: Case) -> Tensor:
    """Ascending numbers of random blocks of the past; early queries have fewer."""
    generator = torch.Generator().manual_seed(case.n)
    runs, blocks = -(-case.n // case.rows), -(-case.n // case.block)
    score = torch.rand(case.batch, case.lists, runs, blocks, generator=generator)
    last = (torch.arange(runs) * case.rows + case.rows - 1) // case.block
    score = score.masked_fill(torch.arange(blocks) > last[:, None], -1.0)
    best = score.topk(min(case.picks, blocks))
    return torch.where(best.values >= 0, best.indices.int(), FAR).sort(-1).values.int()


def dense(case: Case, q: Tensor, k: Tensor, v: Tensor, lists: Tensor) -> tuple[Tensor, Tensor]:
    """Output and LSE in float64."""
    q, k, v = q.double(), *(x.double().repeat_interleave(case.heads // case.groups, 1) for x in (k, v))
    at, blocks = torch.arange(case.n, device=q.device), -(-case.n // case.block)
    chosen = torch.zeros(*lists.shape[:3], blocks + 1, dtype=torch.bool, device=q.device)
    chosen = chosen.scatter_(-1, lists.clamp(max=blocks).long(), value=True)
    keep = chosen[:, :, at // case.rows][..., at // case.block].repeat_interleave(case.heads // case.lists, 1)
    keep = (keep | (at[:, None] - at < case.window)) & (at <= at[:, None])
    logits = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~keep, -torch.inf)
    lse = torch.logsumexp(logits, -1)
    return torch.exp(logits - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]) @ v, lse


MORE = (
    "16 heads",
    "8 heads",
    "8 heads, narrow",
    "4 heads of 96 numbers",
    "128 heads",
    "1 head",
    "runs by head",
    "single keys, 128 heads",
)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in MORE else ()) for name in CASES])
def test_random_blocks(name: str) -> None:
    case = CASES[name]
    text = (
        f"pattern program() {{\n  axis blk = token by {case.block}\n  axis run = token by {max(case.rows, 2)}\n"
        f"  input s: float[{'h' if case.by_head else 'g'}, {'q' if case.rows == 1 else 'q.run'}, k.blk]\n"
        f"  let chosen = s |> top({case.picks})\n"
        f"  keep causal and ({f'q - k < {case.window} or ' if case.window else ''}chosen)\n}}"
    )
    checked = read(text)
    assert checked.graph is not None
    # Where lists are turned into those of tiles, the fused kernel adds to dQ in no order of its own.
    whole = key_of(checked, {}, None, None, deterministic="copied" in name)
    key, _ = opened(softmax_key(whole, checked.graph.attentions[0].name))
    (table,) = bound(key, case.heads, case.groups, case.dim).tables
    assert table.listed
    generator = torch.Generator().manual_seed(0)
    q, d_out = torch.randn(2, case.batch, case.heads, case.n, case.dim, generator=generator)
    k, v = torch.randn(2, case.batch, case.groups, case.n, case.dim, generator=generator)
    leaves = [x.to("cuda", case.dtype).requires_grad_() for x in (q, k, v)]
    lists, d_out = lists_of(case).cuda(), d_out.to("cuda", case.dtype)
    d_lse = torch.randn(d_out.shape[:3], generator=generator).cuda()
    expected = dense(case, *leaves, lists)
    kept = expected[1] > -torch.inf
    wanted = torch.autograd.grad((expected[0], expected[1][kept]), leaves, (d_out.double(), d_lse.double()[kept]))
    results = []
    for _ in range(2):
        torch.full((1 << 28,), float("nan"), device="cuda")  # memory that kernels take next
        out, lse = operator.attend(*leaves, [lists], None, key, "square", 0, ())
        found = torch.autograd.grad((out, lse), leaves, (d_out, d_lse))
        results.append((out, lse, *found))
        assert relative_error(out, expected[0]) <= TOLERANCE[case.dtype]
        torch.testing.assert_close(lse.double(), expected[1], rtol=1e-3, atol=5e-3)
        for gradient, other in zip(found, wanted, strict=True):
            assert relative_error(gradient, other) <= 2 * TOLERANCE[case.dtype]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


GIVEN = """pattern given() {
  axis blk = token by 64
  input chosen: bool[g, q, k.blk]
  keep causal and chosen
}
"""


@pytest.mark.parametrize("name", ["given", "moba"])
def test_calls_with_other_picks_repeat_their_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is played from a tape is what a call does that is carried out in full, lists included."""
    case = Case(heads=32, groups=2, n=900) if name == "given" else Case(heads=4, groups=4, n=900)
    generator = torch.Generator().manual_seed(1)
    lists = [lists_of(case).cuda()]
    lists += [torch.where(torch.rand(lists[0].shape, device="cuda") < 0.5, lists[0], FAR).sort(-1).values for _ in "ab"]
    played: list[Tape] = []
    play = Tape.play
    monkeypatch.setattr(Tape, "play", lambda self, *given: (played.append(self), play(self, *given))[1])

    def made() -> spdsl.Attention:
        """One that knows no calls."""
        graphs._direct.cache_clear()
        return spdsl.compile(spdsl.loads(GIVEN)) if name == "given" else spdsl.compile("moba", block=64, picks=4)

    def call(attn: spdsl.Attention, number: int) -> list[Tensor]:
        out = attn(*leaves[number], **({"chosen": lists[number].clone()} if name == "given" else {}))
        assert isinstance(out, Tensor)
        return [out, *torch.autograd.grad(out, leaves[number], d_out)]

    shapes = ((1, case.heads, case.n, 128), *[(1, case.groups, case.n, 128)] * 2)
    leaves = [
        [torch.randn(shape, generator=generator).to("cuda", case.dtype).requires_grad_() for shape in shapes]
        for _ in range(3)
    ]
    d_out = torch.randn(shapes[0], generator=generator).to("cuda", case.dtype)
    repeated = made()
    found = [call(repeated, number) for number in range(3)]
    # Of the third call, forward and backward; with lists given, of each of the two that follow the first.
    assert len(played) >= 2, name
    for number, results in enumerate(found):
        for one, other in zip(call(made(), number), results, strict=True):
            assert torch.equal(one, other)


def test_unions_of_more_lists_than_a_grid_has_columns() -> None:
    table = lists((3, 22_000, 1, 2), 9, 0)
    wanted, found = picks.unions(table, 4, 9), picks.unions(table.cuda(), 4, 9)
    width = wanted.tiles.numel() // wanted.begin.numel()
    assert found.bits is not None
    assert wanted.bits is not None
    for one, two in ((found.tiles, wanted.tiles), (found.bits, wanted.bits)):
        count = (wanted.end - wanted.begin).flatten()
        mine = one.view(count.numel(), -1).cpu()
        here = torch.arange(mine.shape[1]) < count[:, None]
        theirs = two.view(count.numel(), width)[:, : mine.shape[1]]
        assert torch.equal(mine[here], theirs[here])
    assert torch.equal((found.end - found.begin).cpu(), wanted.end - wanted.begin)


@pytest.mark.parametrize(("heads", "runs", "most", "blocks"), [(3, 999, 5, 40), (1, 70, 100, 5000), (2, 1, 1, 3)])
def test_picks_in_the_order_of_their_blocks(heads: int, runs: int, most: int, blocks: int) -> None:
    table = lists((2, heads, runs, most), blocks, 1)
    wanted, found = picks.transposed(table, blocks), picks.transposed(table.cuda(), blocks)
    count = int(wanted.starts[-1])
    assert torch.equal(found.starts.cpu(), wanted.starts)
    assert torch.equal(found.runs[:count].cpu(), wanted.runs[:count])
    assert torch.equal(found.entries.cpu(), wanted.entries)
