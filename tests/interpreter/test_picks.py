"""Kernels that walk what queries have picked, in Triton's interpreter, against the float64 reference.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import DrawFn, booleans, composite, integers, sampled_from

import spdsl
from spdsl.runtime import picks
from tests.library.compare import TOLERANCE, relative_error

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


@dataclass(frozen=True, kw_only=True)
class Program:
    """Clauses of a pattern with the blocks ``chosen`` by scores that are given, and the sizes of a call.

    ``of`` is the rows of the scores, ``trained`` are further inputs that get gradients, with their axes.
    """

    keep: str = "causal and chosen"
    more: str = ""
    of: str = "g, q"
    block: int = 16
    picks: int = 2
    heads: int = 4
    groups: int = 1
    nq: int = 50
    n: int = 50
    batch: int = 1
    trained: tuple[tuple[str, str], ...] = ()
    dtype: torch.dtype = torch.float16

    @property
    def text(self) -> str:
        inputs = "".join(f"  input {name}: float[{axes}]\n" for name, axes in self.trained)
        return (
            f"pattern program() {{\n  axis blk = token by {self.block}\n  axis run = token by 64\n"
            f"  input s: float[{self.of}, k.blk]\n{inputs}"
            f"  let chosen = s |> only(k.blk.first <= {'q' if ' q.' not in self.of else 'q.run.last'}) "
            f"|> top({self.picks})\n  keep {self.keep}  {self.more}\n}}"
        )


PROGRAMS = {
    "16 heads": Program(heads=16),
    "3 heads": Program(heads=6, groups=2, batch=2, nq=37, n=37),
    "2 heads, and blocks of tiles": Program(heads=2, block=128, nq=150, n=150, picks=1),
    "64 heads": Program(heads=64, nq=9, n=40),
    "fewer queries": Program(nq=21, n=70),
    "runs of queries": Program(of="h, q.run", heads=2, groups=2, nq=130, n=130, picks=3),
    "runs of queries, heads share keys": Program(of="h, q.run", groups=2, block=32, nq=130, n=130, picks=3),
    "runs of queries, several tiles of a block": Program(
        of="h, q.run", heads=2, batch=2, block=128, nq=200, n=200, more="softcap 6.0"
    ),
    "runs of queries, shared": Program(of="g, q.run", heads=4, groups=2, nq=70, n=70),
    "runs of queries, fewer": Program(of="g, q.run", heads=4, nq=40, n=100),
    "window or chosen": Program(keep="causal and (q - k < 9 or chosen)", heads=8, groups=2, more="softcap 8.0"),
    "sinks and bias": Program(
        heads=6,
        groups=2,
        keep="causal and q - k < 40 and chosen",
        more="bias lean[h] * (k - q)  sink_logit rest[h]",
        trained=(("lean", "h"), ("rest", "h")),
    ),
    "bias by key": Program(heads=4, more="bias lean[h, k]", trained=(("lean", "h, token"),)),
    "one head": Program(of="h, q", heads=2, groups=2, batch=2, picks=3),
    "one head, fewer queries": Program(of="h, q", heads=2, groups=2, nq=20, n=70, block=32),
    "one head, heads share keys": Program(of="h, q", heads=4, groups=2, block=32),
    "one head, blocks of tiles": Program(of="h, q", heads=1, nq=200, n=200, block=128),
    "one head, more than are kept at once": Program(of="h, q", heads=1, nq=40, n=330, picks=17),
    "own block or chosen": Program(
        of="h, q",
        heads=2,
        groups=2,
        keep="causal and (k.blk == q.blk or chosen)",
        more="sink_logit rest[h]",
        trained=(("rest", "h"),),
    ),
    "sink": Program(of="g, q", heads=6, groups=2, more="sink_logit rest[h]  softcap 5.0", trained=(("rest", "h"),)),
    "fine, 16 heads": Program(heads=16, block=4, picks=7),
    "fine, 64 heads": Program(heads=64, block=1, picks=21, nq=30, n=80),
    "fine, 4 heads": Program(heads=8, groups=2, block=1, picks=11, nq=33, n=60),
    "fine, and a window": Program(
        heads=16,
        block=1,
        picks=9,
        keep="causal and (q - k < 7 or chosen)",
        more="bias lean[h] * (k - q)",
        trained=(("lean", "h"),),
    ),
    "bias by key, one head": Program(
        of="h, q", heads=2, groups=2, nq=20, n=40, more="bias lean[h, k]", trained=(("lean", "h, token"),)
    ),
    "single": Program(heads=4, dtype=torch.float32),
}


@pytest.fixture(autouse=True, scope="module")
def many_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picks, "LEAST", 16)  # blocks are cut
        yield


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str) -> None:
    check(PROGRAMS[name], seed=len(name))


@composite
def programs(draw: DrawFn) -> Program:
    """A program of some shape; blocks, runs and lengths fit each other or do not."""
    by = draw(sampled_from(("g, q", "h, q", "g, q.run", "h, q.run")))
    groups = draw(integers(1, 2))
    n = draw(integers(20, 140))
    clauses = ("causal and chosen", "chosen", "causal and (q - k < 11 or chosen)", "causal and q - k < 33 and chosen")
    trained = draw(booleans())
    return Program(
        keep=draw(sampled_from((*clauses, "causal and (k.blk == q.blk or chosen)", "causal and (k < 3 or chosen)"))),
        more="sink_logit rest[h]" if trained else draw(sampled_from(("", "softcap 6.0", "bias 0.05 * (k - q)"))),
        of=by,
        block=draw(sampled_from((1, 4, 8, 16, 32, 48, 64))),
        picks=draw(integers(1, 6)),
        heads=groups * draw(sampled_from((1, 2, 3, 4, 8, 16))),
        groups=groups,
        nq=draw(integers(1, n)),
        n=n,
        batch=draw(integers(1, 2)),
        trained=(("rest", "h"),) if trained else (),
        dtype=draw(sampled_from((torch.float16, torch.float32))),
    )


EXAMPLES = int(os.environ.get("SPDSL_EXAMPLES", "3"))


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(programs())
def test_random_program(program: Program) -> None:
    check(program, seed=1)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_many_random_programs(program: Program) -> None:
    check(program, seed=2)


def check(program: Program, seed: int) -> None:
    """Compare output, LSE and all gradients with the reference."""
    generator = torch.Generator().manual_seed(seed)
    attn = spdsl.compile(spdsl.loads(program.text), backend="triton")
    q = torch.randn(program.batch, program.heads, program.nq, 8, generator=generator)
    k, v = torch.randn(2, program.batch, program.groups, program.n, 8, generator=generator)
    sizes = {"h": program.heads, "g": program.groups, "q": program.nq, "q.run": -(-program.n // 64)}
    blocks = -(-program.n // program.block)
    shape = [sizes[axis.strip()] for axis in program.of.split(",")]
    inputs = {"s": torch.randn(*shape, blocks, generator=generator)}
    leaves = [x.to(program.dtype).requires_grad_() for x in (q, k, v)]
    for each, axes in program.trained:
        lengths = [{"h": program.heads, "token": program.n}[axis.strip()] for axis in axes.split(",")]
        inputs[each] = (torch.randn(*lengths, generator=generator) / 9).requires_grad_()
        leaves.append(inputs[each])
    out, lse = attn(*leaves[:3], return_lse=True, **inputs)
    expected, expected_lse = attn.reference(*leaves[:3], return_lse=True, **inputs)
    assert relative_error(out, expected) <= TOLERANCE[program.dtype]
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-3, atol=2e-3)
    d_out, d_lse = torch.randn(out.shape, generator=generator), torch.randn(lse.shape, generator=generator)
    found = torch.autograd.grad((out, lse), leaves, (d_out.to(out.dtype), d_lse))
    wanted = torch.autograd.grad((expected, expected_lse), leaves, (d_out.to(out.dtype).double(), d_lse.double()))
    for leaf, (gradient, other) in enumerate(zip(found, wanted, strict=True)):
        assert relative_error(gradient, other) <= 2 * TOLERANCE[program.dtype], f"gradient {leaf}"


def test_queries_that_keys_have_chosen() -> None:
    """A query may be among those of more keys than each key chooses queries."""
    text = "pattern program() { let c = score(Q, K) |> only(causal) |> top(2, over = q)\n keep causal and c }"
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 20, 16, generator=generator) for heads in (2, 1, 1))
    attn = spdsl.compile(spdsl.loads(text), backend="triton")
    assert torch.allclose(attn(q, k, v), attn.reference(q, k, v).float(), atol=1e-5)


def test_heads_that_pairs_have_chosen() -> None:
    """A pair has the one head whose score is the largest; a head may have any number of keys, or none."""
    text = "pattern program() { let c = score(Q, K) |> only(causal) |> top(1, over = h)\n keep causal and c }"
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 20, 16, generator=generator) for heads in (2, 1, 1))
    attn = spdsl.compile(spdsl.loads(text), backend="triton")
    assert torch.allclose(attn(q, k, v), attn.reference(q, k, v).float(), atol=1e-5)
