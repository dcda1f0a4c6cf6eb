"""Random programs of stages: what the CPU chooses is what the reference chooses, and attention over it agrees."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import spdsl
from spdsl import reference
from spdsl.diagnostics import SpatError
from spdsl.runtime import graphs, inputs, pooled
from spdsl.semantics.graph import Select
from tests.library.compare import relative_error
from tests.runtime.memory import Largest

KEYS = ("token", "token by 4", "token by 8", "token by 6 step 3", "token into 5")
ROWS = ("token", "token by 4", "token by 16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    text: str
    exact: bool
    heads: int
    groups: int
    nq: int
    n: int
    batch: int


@st.composite
def programs(draw: st.DrawFn, *, exact: bool) -> Program:
    """A selection with all kinds of stages; ``exact`` programs compute with numbers that floats hold."""
    key, row = draw(st.sampled_from(KEYS)), draw(st.sampled_from(ROWS))
    pool = draw(st.sampled_from(("sum", "max", "min") if exact else ("mean", "max")))
    q, k = "q" if row == "token" else "q.row", "k" if key == "token" else "k.key"
    queries = "Q" if row == "token" else f"{draw(st.sampled_from(('sum', 'max')))}(Q, per = q.row)"
    keys = "K" if key == "token" else f"{pool}(K, per = k.key)"
    last = {"k": "k", "k.key": "k.key.last"}[k], {"q": "q", "q.row": "q.row.first"}[q]
    only = draw(st.sampled_from(("all", f"{last[0]} <= {last[1]}", f"{last[0]} < {last[1]}", "(h + b) % 2 == 0")))
    stages = [f"score({queries}, {keys}{', scale = 0.25' if exact else ''})", f"only({only})"]
    if not exact and draw(st.booleans()):
        stages.append("softmax")
    coarse = draw(st.sampled_from(("", "group", "block", "both")))
    if coarse in ("group", "both"):
        stages.append(f"{draw(st.sampled_from(('sum', 'max')))}(per = g)")
    if coarse in ("block", "both") and "into" not in key:
        windows = f", windows = {draw(st.sampled_from(('inside', 'touching')))}" if "step" in key else ""
        stages.append(f"{draw(st.sampled_from(('sum', 'max', 'min')))}(per = k.wide{windows})")
        k = "k.wide"
    if draw(st.booleans()):
        stages.append(f"force({k} == 0 or {k} == {draw(st.integers(0, 3))})")
    count = draw(st.sampled_from((0, 1, 2, 3, 5, 1000)))
    stages.append(f"top_p({draw(st.sampled_from((0.0, 0.3, 0.75, 1.0)))})" if draw(st.booleans()) else f"top({count})")
    axes = [f"axis key = {key}"] * (key != "token") + [f"axis row = {row}"] * (row != "token")
    axes += ["axis wide = token by 24"] * (k == "k.wide")
    keep = draw(st.sampled_from(("chosen", "causal and chosen", "causal and not chosen", "chosen or q - k in (0, 1)")))
    lines = [*axes, f"let chosen = {' |> '.join(stages)}", f"keep {keep}", "export chosen = chosen"]
    heads, groups = draw(st.sampled_from(((2, 2), (3, 1), (4, 2), (16, 1))))
    n = draw(st.integers(1, 60))
    nq = n if draw(st.booleans()) else draw(st.integers(1, n))
    text = "pattern random() {\n  " + "\n  ".join(lines) + "\n}\n"
    return Program(text=text, exact=exact, heads=heads, groups=groups, nq=nq, n=n, batch=draw(st.integers(1, 2)))


def tensors(program: Program, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((program.heads, program.nq), (program.groups, program.n), (program.groups, program.n))
    if program.exact:
        found = [torch.randint(-2, 3, (program.batch, *shape, 8), generator=generator).float() for shape in shapes]
    else:
        found = [torch.randn(program.batch, *shape, 8, generator=generator) for shape in shapes]
    return [x.requires_grad_() for x in found]


def compare(program: Program, seed: int) -> None:
    attn = spdsl.compile(spdsl.loads(program.text))
    q, k, v = tensors(program, seed)
    bound = attn.bind(program.heads, program.groups, 8)
    wanted = reference.exports(bound, q, k, v, tables={}, q_start=program.n - program.nq)["chosen"]
    assert torch.equal(attn.exports(q, k, v)["chosen"], wanted)
    out, lse = attn(q, k, v, return_lse=True)
    expected, expected_lse = attn.reference(q, k, v, return_lse=True)
    assert relative_error(out, expected) <= 1e-5
    assert torch.equal(torch.isfinite(lse), torch.isfinite(expected_lse))
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
    gradients = torch.autograd.grad(out, (q, k, v), d_out)
    for found, other in zip(gradients, torch.autograd.grad(expected, (q, k, v), d_out.double()), strict=True):
        assert relative_error(found, other) <= 2e-5


@settings(max_examples=30, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(exact=True), st.integers(0, 99))
def test_exact_programs(program: Program, seed: int) -> None:
    compare(program, seed)


@settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(exact=False), st.integers(0, 99))
def test_programs_of_real_numbers(program: Program, seed: int) -> None:
    compare(program, seed)


# ---------------------------------------------------------------- corners

BY_INPUT = """pattern by_input(picks: int in 0.. = 2) {
  input worth: float[h, token]
  let chosen = worth[h, k] |> only(causal) |> top(picks)
  keep causal and chosen
  export chosen = chosen
}
"""


@pytest.mark.parametrize("picks", [0, 1, 3, 100])
def test_corners_of_the_order(picks: int) -> None:
    inf, nan = float("inf"), float("nan")
    worth = torch.tensor([[1.0, nan, inf, -inf, inf, 1.0, 0.0, nan, -0.0, 2.0], [0.0] * 10])
    q, k, v = torch.randn(3, 1, 2, 10, 4)
    attn = spdsl.compile(spdsl.loads(BY_INPUT), picks=picks)
    found = attn.exports(q, k, v, worth=worth)["chosen"][0]
    order = [2, 4, 9, 0, 5, 6, 8, 3]
    for t in range(10):
        expected = [j for j in order if j <= t][:picks]
        assert found[0, t].nonzero().flatten().tolist() == sorted(expected)
        assert found[1, t].nonzero().flatten().tolist() == list(range(min(picks, t + 1)))
    out = attn(q, k, v, worth=worth)
    assert relative_error(out, attn.reference(q, k, v, worth=worth)) <= 1e-5
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_forced_entries_one_by_one_are_those_together(count: int) -> None:
    """They come by their indices, whatever their scores."""
    best = "score(Q, K) |> only(k < q) |> force(k == 0 or k == 2)"
    ranked, together = f"any({best} |> top({count}, rank = a), over = a)", f"{best} |> top({count})"
    text = f"pattern some() {{ let c = {ranked} keep causal and c export c = c export other = {together} }}"
    attn = spdsl.compile(spdsl.loads(text))
    q, k, v = torch.randn(3, 1, 2, 9, 8, generator=torch.Generator().manual_seed(0))
    found = attn.exports(q, k, v)
    wanted = reference.exports(attn.bind(2, 2, 8), q, k, v, tables={}, q_start=0)["c"]
    assert torch.equal(found["c"], wanted)
    assert torch.equal(found["other"], wanted)


def test_softmax_of_infinite_scores_and_of_nothing() -> None:
    attn = spdsl.compile(
        spdsl.loads("""pattern infinite() {
          input worth: float[token]
          input there: bool[token]
          keep all
          export share = worth[k] |> only(there[k] and k <= q) |> softmax
        }""")
    )
    inf, nan = float("inf"), float("nan")
    worth, there = torch.tensor([nan, 0.0, -inf, inf, 0.0, inf]), torch.tensor([1, 0, 1, 1, 1, 1]).bool()
    q, k, v = torch.randn(3, 1, 1, 6, 4)
    share = attn.exports(q, k, v, worth=worth, there=there)["share"][0]
    wanted = torch.zeros(6, 6)
    wanted[3, 3] = wanted[4, 3] = 1.0
    wanted[5, 3] = wanted[5, 5] = 0.5
    assert torch.equal(share, wanted)
    assert torch.equal(
        reference.exports(attn.bind(1, 1, 4), q, k, v, tables={"worth": worth, "there": there}, q_start=0)["share"][0],
        wanted.double(),
    )


@pytest.mark.parametrize(
    ("name", "given", "code"),
    [
        ("nsa", {"gate": torch.ones(3, 2, 7)}, "SP346"),
        ("nsa", {"gate": torch.ones(2, 2, 20)}, "SP346"),
        ("dsa", {"QI": torch.ones(64, 20, 6), "KI": torch.ones(20, 5), "wt": torch.ones(64, 20)}, "SP346"),
        ("dsa", {"QI": torch.ones(32, 20, 6), "KI": torch.ones(20, 6), "wt": torch.ones(64, 20)}, "SP346"),
        ("dma", {"delta": torch.ones(2, 20).long()}, "SP347"),
        ("dma", {}, "SP302"),
    ],
)
def test_inputs_that_do_not_fit(name: str, given: dict[str, Tensor], code: str) -> None:
    q, k, v = torch.randn(3, 1, 2, 20, 8)
    with pytest.raises(SpatError) as caught:
        spdsl.compile(name)(q, k, v, **given)
    assert caught.value.place.startswith(f"{name}.spat:")
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("body", "is_refused"),
    [
        ("return gate[2, h, q] * attend { keep causal }", True),
        ("return gate[0 - 1, h, q] * attend { keep causal }", True),
        ("return gate[0, h, q] * by_head[h] * attend { keep causal }", True),
        ("return gate[0, h, q] * (if h < 3 then by_head[h] else 0.0) * attend { keep causal }", False),
        ("keep (score(Q, K) * by_head[h] * gate[1, h, q]) |> top(2)", True),
        ("keep (score(Q, K) * by_head[h] * gate[1, h, q]) |> only(h < 3) |> top(2)", False),
        ("keep causal\n export x = by_head[h] * gate[0, h, q]", True),
    ],
)
def test_inputs_that_are_read_outside(body: str, is_refused: bool) -> None:
    text = f"pattern outside() {{ input gate: float[2, h, q]\n input by_head: float[3]\n {body} }}"
    q, k, v = torch.randn(3, 1, 4, 9, 8)
    given = {"gate": torch.ones(2, 4, 9), "by_head": torch.ones(3)}
    if not is_refused:
        attn = spdsl.compile(spdsl.loads(text))
        assert relative_error(attn(q, k, v, **given), attn.reference(q, k, v, **given)) <= 1e-5
        return
    with pytest.raises(SpatError) as caught:
        spdsl.compile(spdsl.loads(text))(q, k, v, **given)
    assert caught.value.code == "SP320"


def test_sizes_that_do_not_nest() -> None:
    text = """pattern mixed(block: int = 20, stride: int = 8) {
      axis cell = token by stride
      axis blk = token by block
      let chosen = score(Q, mean(K, per = k.cell)) |> only(k.blk <= q.blk) |> top(2)
      keep causal and chosen
    }"""
    assert spdsl.compile(spdsl.loads(text), block=24).bind(1, 1, 64).graph is not None
    with pytest.raises(SpatError) as caught:
        spdsl.compile(spdsl.loads(text))
    assert caught.value.code == "SP218"


LEVELS = """pattern levels() {
  axis blk = token by 4
  let wide = score(Q, mean(K, per = k.blk)) |> top(2)
  keep score(Q, K) |> only(wide) |> top(3)
}"""


@pytest.mark.parametrize("name", ["moba", "levels"])
def test_no_keys(name: str) -> None:
    q, k, v = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 0, 8), torch.randn(1, 2, 0, 8)
    attn = spdsl.compile("moba", block=4) if name == "moba" else spdsl.compile(spdsl.loads(LEVELS))
    out, lse = attn(q, k, v, return_lse=True, q_start=0)
    assert torch.equal(out, torch.zeros_like(out))
    assert bool((lse == -torch.inf).all())


def test_a_sequence_without_keys_beside_one_that_has_some() -> None:
    """Its queries lie before the first position, where no block of queries is."""
    text = """pattern search() {
      axis blk = token by 8
      keep score(Q, K) |> only(causal) |> max(per = q.blk) |> descend(per = k.blk) |> top(1)
    }"""
    q, k, v = torch.randn(3, 2, 2, 3, 8)
    out = spdsl.compile(spdsl.loads(text))(q, k, v, k_len=torch.tensor([0, 3], dtype=torch.int32))
    assert isinstance(out, Tensor)
    assert torch.equal(out[0], torch.zeros(2, 3, 8))
    assert relative_error(out[1:], spdsl.compile(spdsl.loads(text)).reference(q[1:], k[1:], v[1:])) <= 1e-5


def test_no_distances() -> None:
    text = "pattern some() { keep score(Q, K) |> only(causal) |> sum(per = q - k) |> top(2, over = q - k) }"
    attn = spdsl.compile(spdsl.loads(text))
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 0, 8)
    for call in (attn, attn.reference):
        out = call(q, k, k, q_start=0)
        assert isinstance(out, Tensor)
        assert not bool(out.any())


def test_no_lse_of_gates() -> None:
    q, k, v = torch.randn(3, 1, 2, 20, 8)
    for call in (spdsl.compile("nsa"), spdsl.compile("nsa").reference):
        with pytest.raises(SpatError) as caught:
            call(q, k, v, gate=torch.ones(3, 2, 20), return_lse=True)
        assert caught.value.code == "SP306"


def test_memory_is_that_of_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """While 4,096 queries choose among 1,024 pages, no array of all of them is made."""
    monkeypatch.setitem(inputs._BUDGET, "cpu", 1 << 18)
    q, k, v = torch.randn(3, 1, 1, 4096, 8)
    pattern = spdsl.compile("quest", page=4, budget=64).bind(1, 1, 8)
    assert pattern.graph is not None
    chosen = next(stage for stage in pattern.graph.stages if isinstance(stage, Select))
    with Largest() as largest:
        arrays = inputs.arrays_of(pattern, graphs.Inputs(q=q, k=k, v=v, tables={}, q_start=0), grad=False)
        lists = graphs.lists(arrays, chosen.name)
    assert lists.shape == (1, 1, 4096, 16)
    assert largest.nbytes <= 8 * (1 << 18) < 4096 * 1024


POOLED = """pattern pooled() {
  axis blk = token by 8
  axis win = token by 6 step 4
  axis far = token by 3 step 5
  keep all
  export blk = KIND(K, per = k.blk)
  export win = KIND(K, per = k.win)
  export far = KIND(K, per = k.far)
}
"""


@pytest.mark.parametrize("kind", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("n", [6, 16, 37])
def test_keys_that_are_read_where_they_lie(kind: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attn = spdsl.compile(spdsl.loads(POOLED.replace("KIND", kind)))
    q, k, v = torch.randint(-4, 5, (3, 2, 2, n, 4)).float()
    k[0, 0, 3], k[0, 1, :] = float("nan"), float("-inf")
    if kind in ("max", "min"):
        k[1, 0, :] = float("nan")
    wanted = attn.exports(q, k, v)
    monkeypatch.setattr(pooled, "STRIDED", ("cpu",))
    for name, found in attn.exports(q, k, v).items():
        torch.testing.assert_close(found, wanted[name], equal_nan=True)
