"""Random well-typed programs, from text to gradients: the CPU back end computes what the reference means.

``SPDSL_EXAMPLES=10000 pytest tests/library/test_programs.py`` is the long run.
"""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st

import spdsl
from spdsl.grammar.parse import parse
from spdsl.grammar.print import to_spat
from tests.library.compare import relative_error
from tests.semantics.strategies import patterns, tables

EXAMPLES = int(os.environ.get("SPDSL_EXAMPLES", "140"))
SETTINGS = settings(
    max_examples=EXAMPLES // 2,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
REFUSALS = {"SP290", "SP403", "SP404"}
"""Reductions that would need a table of tokens times blocks are refused by name."""

LENGTHS = st.tuples(st.integers(1, 200), st.integers(1, 200)).map(lambda pair: (min(pair), max(pair)))


def agree(text: str, nq: int, n: int) -> None:
    """Printing is the identity; output, LSE and gradients are the reference's."""
    program = parse(text)
    assert parse(to_spat(program)) == program
    attn = spdsl.compile(spdsl.loads(text))
    generator = torch.Generator().manual_seed(n)
    arrays = tables(n, 2)
    inputs = {name: torch.from_numpy(arrays[name]) for name in attn.pattern.inputs}
    q = torch.randn(1, 2, nq, 8, generator=generator, requires_grad=True)
    k, v = (torch.randn(1, 1, n, 8, generator=generator, requires_grad=True) for _ in range(2))
    try:
        out, lse = attn(q, k, v, return_lse=True, **inputs)
    except spdsl.SpatError as refused:
        assume(refused.code not in REFUSALS)
        raise
    expected, expected_lse = attn.reference(q, k, v, return_lse=True, **inputs)
    seen = torch.isfinite(expected_lse)
    assert torch.equal(torch.isfinite(lse), seen)
    assert relative_error(out, expected) <= 1e-5
    assert relative_error(lse[seen], expected_lse[seen]) <= 1e-5
    d_out = torch.randn(out.shape, generator=generator)
    d_lse = torch.where(seen, torch.randn(lse.shape, generator=generator), 0.0)
    found = torch.autograd.grad((out, lse), (q, k, v), (d_out, d_lse))
    wanted = torch.autograd.grad((expected, expected_lse), (q, k, v), (d_out.double(), d_lse.double()))
    for gradient, reference in zip(found, wanted, strict=True):
        assert relative_error(gradient, reference) <= 2e-5


@SETTINGS
@given(patterns(affine=True), LENGTHS)
def test_affine(text: str, lengths: tuple[int, int]) -> None:
    agree(text, *lengths)


CHOICE_OF_A_CONSTANT = """pattern choice() {
  input doc: int[token] in 0.. sorted
  keep is_pow2(if n <= n then 15 else doc[q]) or is_pow2(if n <= n then 3 else q - k) or doc[q] == doc[k]
}
"""


@SETTINGS
@example(CHOICE_OF_A_CONSTANT, (22, 135))
@given(patterns(affine=False, reductions=True), LENGTHS)
def test_any(text: str, lengths: tuple[int, int]) -> None:
    agree(text, *lengths)
