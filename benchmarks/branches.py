"""Native sparse attention end to end, as its peer measures it: ``python -m benchmarks.branches --out f.json``.

8,192 tokens, 64 query and 4 key heads of 128 in bf16: a compressed and a selected branch behind gates.  The selection
is given (random blocks for every token, as in flash-linear-attention's benchmark; or such of which neighbours share
three quarters), or made from the scores of the compressed branch.  Every case is checked before it is timed: output and
all gradients of one group of heads against float64 attention on the very selection that was walked.  Calls are timed
alone, the device waiting for the host, and in a row; beside them stands how long the host is held.  Results are written
after every case.  ``--prepare`` compiles beforehand.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import spdsl
from benchmarks.selections import host, machine, peak, selection, time
from spdsl.runtime.ranking import FAR

HEADS, GROUPS, DIM = 64, 4, 128
BLOCK, PICKS = 64, 16

GIVEN = """
pattern given(compress: int in 1.. = 64, stride: int in 1.. = 64, block: int in 1.. = 64) {
  axis win = token by compress step stride
  axis blk = token by block
  input gate: float[2, h, q]
  input chosen: bool[g, q, k.blk]
  let coarse = attend(Q, mean(K, per = k.win), mean(V, per = k.win)) { keep k.win.last <= q }
  let fine = attend { keep causal and chosen }
  return gate[0] * coarse + gate[1] * fine
}
"""

ALONE = """
pattern alone(block: int in 1.. = 64) {
  axis blk = token by block
  input chosen: bool[g, q, k.blk]
  keep causal and chosen
}
"""

MADE = """
pattern made(compress: int in 1.. = 64, stride: int in 1.. = 64, block: int in 1.. = 64, picks: int in 0.. = 16) {
  input gate: float[2, h, q]
  axis win = token by compress step stride
  axis blk = token by block
  let CK = mean(K, per = k.win)
  let done = k.win.last <= q
  let chosen = score(Q, CK) |> only(done) |> softmax |> sum(per = k.blk, windows = inside) |> sum(per = g)
               |> force(k.blk == 0 or 0 <= q.blk - k.blk < 2) |> top(picks)
  let coarse = attend(Q, CK, mean(V, per = k.win)) { keep done }
  let fine = attend { keep causal and chosen }
  return gate[0] * coarse + gate[1] * fine
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """``shared``: how many of the picks all queries of a run of 64 have in common; None where scores decide.  With
    ``compress`` 0 there is no compressed branch."""

    name: str
    compress: int
    stride: int
    shared: int | None

    @property
    def attention(self) -> spdsl.Attention:
        """The pattern."""
        if not self.compress:
            return spdsl.compile(spdsl.loads(ALONE))
        text = MADE if self.shared is None else GIVEN
        return spdsl.compile(spdsl.loads(text), compress=self.compress, stride=self.stride)


CASES = (
    Case(name="selected branch alone, random blocks", compress=0, stride=0, shared=0),
    Case(name="selected branch alone, three quarters shared", compress=0, stride=0, shared=12),
    Case(name="random blocks given", compress=64, stride=64, shared=0),
    Case(name="three quarters shared", compress=64, stride=64, shared=12),
    Case(name="blocks chosen by scores", compress=64, stride=64, shared=None),
    Case(name="windows of 32 by 16, random blocks given", compress=32, stride=16, shared=0),
    Case(name="windows of 32 by 16, blocks chosen by scores", compress=32, stride=16, shared=None),
)


def random_blocks(n: int, shared: int) -> Tensor:
    """Ascending blocks of the past of every token, the first and the own among them, int32 ``[groups, n, picks]``."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    blocks, at = -(-n // BLOCK), torch.arange(n, device="cuda")
    score = torch.rand(GROUPS, n, blocks, device="cuda", generator=generator)
    if shared:
        # What the first token of a run may see is what all of its tokens share.
        first = at[::BLOCK] // BLOCK
        common = torch.rand(GROUPS, len(first), blocks, device="cuda", generator=generator)
        common = common.masked_fill(torch.arange(blocks, device="cuda") > first[:, None], -1.0)
        best = common.topk(min(shared, blocks))
        bonus = torch.zeros_like(common).scatter_(-1, best.indices, (best.values >= 0).float())
        score += bonus.repeat_interleave(BLOCK, 1)[:, :n]
    last = at // BLOCK
    score = score.masked_fill(torch.arange(blocks, device="cuda") > last[:, None], -1.0)
    best = score.topk(min(PICKS, blocks))
    return torch.where(best.values >= 0, best.indices.int(), FAR).sort(-1).values.int()


def main() -> None:
    """Check and measure the cases, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.branches", description=__doc__)
    parser.add_argument("cases", nargs="*", help="words of the names of cases; all of them without any")
    parser.add_argument("--out", type=Path, default=Path("branches.json"), help="the JSON file to write")
    parser.add_argument("--prepare", action="store_true", help="run each case once on few tokens, and time nothing")
    parser.add_argument("-n", type=int, default=8192, help="tokens")
    given = parser.parse_args()
    results: list[dict[str, object]] = []
    for case in (each for each in CASES if not given.cases or any(words in each.name for words in given.cases)):
        figures = measured(case, 2048 if given.prepare else given.n, rounds=1 if given.prepare else 20)
        results.append({"case": case.name, **machine(), "n": given.n, **figures})
        print(json.dumps(results[-1]), flush=True)
        if not given.prepare:
            given.out.write_text(json.dumps(results, indent=1) + "\n")


def measured(case: Case, n: int, rounds: int) -> dict[str, float]:
    """Errors of a case, and its milliseconds and GiB."""
    torch.manual_seed(0)
    make = {"device": "cuda", "dtype": torch.bfloat16}
    q, d_out = torch.randn(2, 1, HEADS, n, DIM, **make)  # type: ignore[call-overload]
    k, v = torch.randn(2, 1, GROUPS, n, DIM, **make)  # type: ignore[call-overload]
    gate = torch.rand(2, HEADS, n, device="cuda")
    inputs = {"gate": gate} if case.compress else {}
    leaves = [each.requires_grad_() for each in (q, k, v, *inputs.values())]
    attn = case.attention
    found: dict[str, float] = {}
    if case.shared is not None:
        lists = random_blocks(n, case.shared)
    else:
        with torch.no_grad():
            select = selection(attn, q, k, v, inputs)
            lists = next(iter(select().values()))[0]
            found["selection_ms"] = time(select, rounds)

    def run(turn: int = 0) -> Tensor:
        # Lists that are new in every call, as those of a training step are.
        given = inputs if case.shared is None else {**inputs, "chosen": lists.roll(turn, 0)}
        result = attn(q, k, v, **given)  # type: ignore[arg-type]  # no other argument has these names
        assert isinstance(result, Tensor)
        return result

    for turn in (1, 2):  # what is checked repeats the steps of the second call, of other lists
        torch.autograd.grad(run(turn), leaves, d_out)
    out = run()
    gradients = torch.autograd.grad(out, leaves, d_out, retain_graph=True)
    found |= errors(case, leaves, lists, d_out, out, gradients)
    with torch.no_grad():
        found["forward_ms"] = time(run, rounds)
        found["forward_in_a_row_ms"] = in_a_row(run, rounds)
        found["forward_host_ms"] = host(run)
        found["forward_gib"] = peak(run)
    found["backward_ms"] = time(lambda: torch.autograd.grad(out, leaves, d_out, retain_graph=True), rounds)
    found["backward_gib"] = peak(lambda: torch.autograd.grad(out, leaves, d_out, retain_graph=True))

    def both() -> object:
        return torch.autograd.grad(run(), leaves, d_out)

    found["both_ms"] = time(both, rounds)
    found["both_in_a_row_ms"] = in_a_row(both, rounds)
    found["both_host_ms"] = host(both)
    return found


def in_a_row(run: Callable[[], object], rounds: int) -> float:
    """Milliseconds of a call, of so many one after the other, as in training: the host is ahead of the device where it
    takes less time."""
    run()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(rounds):
        run()
    end.record()
    torch.cuda.synchronize()
    return round(begin.elapsed_time(end) / rounds, 3)


def errors(
    case: Case, leaves: list[Tensor], lists: Tensor, d_out: Tensor, out: Tensor, found: tuple[Tensor, ...]
) -> dict[str, float]:
    """Relative errors of what belongs to the last group of heads.

    Raises:
        RuntimeError: one is larger than the numerics of the design allow.
    """
    ratio, n = HEADS // GROUPS, out.shape[2]
    heads = slice(HEADS - ratio, HEADS)
    q, k, v, *gate = leaves
    own = [
        x.detach().double().requires_grad_() for x in (q[0, heads], k[0, -1], v[0, -1], *(x[:, heads] for x in gate))
    ]
    at, blocks = torch.arange(n, device="cuda"), -(-n // BLOCK)
    chosen = torch.zeros(n, blocks + 1, dtype=torch.bool, device="cuda")
    chosen = chosen.scatter_(-1, lists[-1].clamp(max=blocks).long(), value=True)
    fine = chosen[:, at // BLOCK] & (at <= at[:, None])
    last = torch.arange(case.compress - 1, n, max(1, case.stride), device="cuda")
    sums: list[Tensor | None] = [None] * len(own)
    outs = []
    for head in range(ratio):
        one, keys, values = own[0][head], own[1], own[2]
        result = dense(one, keys, values, fine)
        if case.compress:
            pooled = [x.unfold(0, case.compress, case.stride).mean(-1) for x in (keys, values)]
            gates = own[3][:, head, :, None]
            result = gates[0] * dense(one, pooled[0], pooled[1], last <= at[:, None]) + gates[1] * result
        outs.append(result.detach())
        parts = torch.autograd.grad(result, own, d_out[0, HEADS - ratio + head].double())
        sums = [part if total is None else total + part for total, part in zip(sums, parts, strict=True)]
    ours = [found[0][0, heads], found[1][0, -1], found[2][0, -1], *(x[:, heads] for x in found[3:])]
    names = ("dq", "dk", "dv", "dgate")[: len(ours)]
    pairs = {"out": (out[0, heads], torch.stack(outs)), **dict(zip(names, zip(ours, sums, strict=True), strict=True))}
    differences = {}
    for name, (one, other) in pairs.items():
        assert other is not None
        differences[f"error_{name}"] = float((one.double() - other).norm() / other.norm())
        if not differences[f"error_{name}"] <= (1e-2 if name == "out" else 2e-2):
            raise RuntimeError(f"{case.name}: {name} differs by {differences[f'error_{name}']}")
    return differences


def dense(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Attention of one head in float64; zeros where nothing is kept."""
    empty = ~keep.any(-1, keepdim=True)
    logits = (q @ k.T / math.sqrt(DIM)).masked_fill(~keep, -torch.inf).masked_fill(empty, 0.0)
    return torch.softmax(logits, -1).masked_fill(empty, 0.0) @ v


if __name__ == "__main__":
    main()
