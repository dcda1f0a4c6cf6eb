"""Hierarchies: only candidates are scored, what is chosen is what the reference chooses, and nothing whole is made."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import spdsl
from spdsl import reference
from spdsl.runtime import graphs, inputs, narrowed, sets
from spdsl.runtime.arrays import Arrays
from spdsl.runtime.ranking import as_lists
from tests.runtime.memory import Largest


def arrays_of(attn: spdsl.Attention, tensors: list[Tensor]) -> Arrays:
    q, k, v = tensors
    bound = attn.bind(q.shape[1], k.shape[1], q.shape[3])
    call = graphs.Inputs(q=q, k=k, v=v, tables={}, q_start=k.shape[2] - q.shape[2], kernels=False)
    return inputs.arrays_of(bound, call, grad=False)


@st.composite
def hierarchies(draw: st.DrawFn) -> tuple[str, tuple[int, int, int, int, int]]:
    """Two or three levels, each choosing among the keys of the one above; blocks that are no powers of two."""
    sizes = [draw(st.sampled_from((2, 3, 4, 5)))]
    for _ in range(draw(st.integers(1, 2))):
        sizes.append(sizes[-1] * draw(st.sampled_from((2, 3))))
    rows = draw(st.sampled_from(("q", "q.row")))
    queries = "Q" if rows == "q" else "mean(Q, per = q.row)"
    share = draw(st.sampled_from(("", " |> max(per = g)", " |> mean(over = h)")))
    past = draw(st.sampled_from(("", "{k}.first <= {q}", "{k} != 1", "h % 2 == 0 or {k} > 0")))
    past = "" if "h %" in past and share else past
    lines = [f"axis a{level} = token by {size}" for level, size in enumerate(sizes)]
    lines += [f"axis row = token by {draw(st.sampled_from((3, 4)))}"] * (rows == "q.row")
    above = ""
    for level in reversed(range(len(sizes))):
        axis = f"k.a{level}"
        condition = past.format(k=axis, q="q" if rows == "q" else "q.row.last")
        filters = [f"only({each})" for each in (condition, above) if each]
        search = draw(st.booleans()) and rows == "q"
        value = f"score({queries}, mean(K, per = {axis}))"
        if search:
            filters = [f"only({above})"] if above else []
            value = f"score({queries}, K) |> only(k <= q){share}"
            share_here, after = "", [*filters, f"descend(per = {axis})"]
        else:
            share_here, after = share, filters
        steps = " |> ".join([value + share_here, *after, f"top({draw(st.integers(1, 4))})"])
        lines.append(f"let c{level} = {steps}")
        above = f"c{level}"
    lines += ["keep c0 or k == q", "export chosen = c0"]
    heads, groups = draw(st.sampled_from(((2, 2), (4, 2), (3, 1))))
    n = draw(st.integers(1, 40))
    nq = n if draw(st.booleans()) else draw(st.integers(1, n))
    text = "pattern random() {\n  " + "\n  ".join(lines) + "\n}\n"
    return text, (heads, groups, nq, n, draw(st.integers(1, 2)))


@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(hierarchies(), st.integers(0, 99))
def test_hierarchies(program: tuple[str, tuple[int, int, int, int, int]], seed: int) -> None:
    text, (heads, groups, nq, n, batch) = program
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, nq, 8, generator=generator)
    k, v = torch.randn(2, batch, groups, n, 8, generator=generator)
    attn = spdsl.compile(spdsl.loads(text))
    arrays = arrays_of(attn, [q, k, v])
    wanted = reference.exports(attn.bind(heads, groups, 8), q, k, v, tables={}, q_start=n - nq)["chosen"]
    name = next(stage.name for stage in reversed(list(arrays.stages.values())) if stage.axes[-1] == "k.a0")
    lists = narrowed.chosen_among(arrays, name, graphs.lists)
    assert lists is not None
    expected = as_lists(wanted, lists.shape[-1]).view(wanted.shape[0], *lists.shape[1:-1], lists.shape[-1])
    assert torch.equal(lists.expand(expected.shape), expected)


def test_only_candidates_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """4,096 tokens in 512 blocks: no array of all pairs of blocks is made below the top level."""
    monkeypatch.setitem(inputs._BUDGET, "cpu", 1 << 15)
    q, k, v = torch.randn(3, 1, 1, 4096, 4)
    attn = spdsl.compile("llsa", block=8, picks=(2, 2))
    arrays = arrays_of(attn, [q, k, v])
    for name in ("stage_0", "stage_2", "stage_7"):
        # What pools all tokens, and the top level, are made before.
        graphs.lists(arrays, name) if name == "stage_7" else arrays.whole(name)
    with Largest() as largest:
        lists = graphs.lists(arrays, "stage_9")
    assert lists.shape == (1, 1, 512, 2)
    assert largest.nbytes <= 8 * (1 << 15) < 4 * 512 * 512
    monkeypatch.setattr(sets, "chosen_among", lambda *_: None)
    assert torch.equal(graphs.lists(arrays_of(attn, [q, k, v]), "stage_9"), lists)


def test_what_is_not_covered_is_computed_whole() -> None:
    """A softmax needs whole rows."""
    text = """pattern shares() {
      axis wide = token by 8
      axis narrow = token by 2
      let first = score(Q, mean(K, per = k.wide)) |> top(2)
      let second = score(Q, mean(K, per = k.narrow)) |> softmax |> only(first) |> top(3)
      keep second
      export chosen = second
    }"""
    q, k, v = torch.randn(3, 1, 2, 30, 8)
    attn = spdsl.compile(spdsl.loads(text))
    arrays = arrays_of(attn, [q, k, v])
    name = [stage.name for stage in arrays.stages.values() if stage.axes[-1] == "k.narrow"][-1]
    assert narrowed.chosen_among(arrays, name, graphs.lists) is None
    wanted = reference.exports(attn.bind(2, 2, 8), q, k, v, tables={}, q_start=0)["chosen"]
    assert torch.equal(attn.exports(q, k, v)["chosen"], wanted)
