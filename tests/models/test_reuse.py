"""Layers that read what others have chosen: against attention written by hand, plans against all plans there are."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import spdsl
from spdsl import models
from spdsl.cli.main import run
from spdsl.diagnostics import SpatError
from spdsl.reuse_plan import LEAST_MISSED, Measured, Reader, best_plans, fewest_full

transformers = pytest.importorskip("transformers")

from spdsl.reuse_search import find, loss, measure  # noqa: E402  # imports transformers' functions

EXAMPLE = Path(__file__).parents[2] / "examples" / "reuse.spat"
N, PAGE, PICKS, LAYERS = 60, 8, 4, 5
IDS = torch.randint(1, 64, (2, N), generator=torch.Generator().manual_seed(1))
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip


# ---------------------------------------------------------------- plans


@st.composite
def layers(draw: st.DrawFn) -> list[Reader]:
    count = draw(st.integers(0, 6))
    shares = st.floats(0, 1)
    return [
        Reader(
            lost=draw(st.floats(-0.01, 0.1)),
            held=tuple(draw(st.lists(shares, min_size=each, max_size=each))),
        )
        for each in range(1, count + 1)
    ]


@settings(max_examples=60, deadline=None)
@given(layers())
def test_plans_against_all_plans(readers: list[Reader]) -> None:
    """For each number of full layers no choice of layers is estimated to lose less, nor as little and misses less."""
    plans = best_plans(readers)
    assert len(plans) == len(readers) + 1
    for count, plan in enumerate(plans, 1):
        assert sum(plan.full) == count
        costs = {}
        for others in itertools.combinations(range(1, len(readers) + 1), count - 1):
            lost = missed = 0.0
            for layer, reader in enumerate(readers, 1):
                if layer not in others:
                    source = max(each for each in (0, *others) if each < layer)
                    missing = [max(LEAST_MISSED, 1 - share) for share in reader.held]
                    lost += max(0.0, reader.lost) * missing[source] / missing[-1]
                    missed += missing[source]
            costs[(0, *others)] = (lost, missed)
        own = costs[tuple(layer for layer, full in enumerate(plan.full) if full)]
        least = min(costs.values())
        assert own[0] == pytest.approx(least[0], rel=1e-9, abs=1e-12)
        assert plan.estimated == pytest.approx(own[0], rel=1e-9, abs=1e-12)
        if own[0] == least[0]:
            assert own[1] == pytest.approx(least[1])


def test_a_plan_by_hand() -> None:
    """Layer 2 loses much and holds little of what 0 chose: it is the second to be full, and then serves layer 3."""
    readers = [
        Reader(lost=0.001, held=(0.9,)),
        Reader(lost=0.1, held=(0.5, 0.6)),
        Reader(lost=0.002, held=(0.6, 0.6, 0.9)),
    ]
    one, two, *_, every = best_plans(readers)
    assert (one.full, one.sources, one.reading) == ((True, False, False, False), (0, 0, 0, 0), 3)
    assert one.estimated == pytest.approx(0.001 + 0.1 * 0.5 / 0.4 + 0.002 * 0.4 / 0.1)
    assert (two.full, two.sources) == ((True, False, True, False), (0, 0, 2, 2))
    assert two.estimated == pytest.approx(0.003)
    assert every.estimated == 0
    assert fewest_full(best_plans(readers), 0.01) == two
    assert fewest_full(best_plans(readers), 0.0) == every
    assert two.patterns("full", "read") == ["full", "read", "full", "read"]
    with pytest.raises(SpatError) as caught:
        fewest_full(best_plans(readers), -0.01)
    assert caught.value.code == "SP647"


@pytest.mark.parametrize(
    "change",
    [
        {"held": [[0.5], [0.5]]},
        {"lost": [0.1, 0.2, 0.3]},
        {"lost": [float("nan")]},
        {"dense": "much"},
        {"kept": None},
        {"kept": float("nan")},
        {"dense": float("inf")},
        {"held": [[0.5], [0.5, 7.0]]},
    ],
)
def test_records_that_are_none(change: dict[str, object]) -> None:
    record = {"dense": 1.0, "held": [[0.5], [0.5, 0.6]], "lost": [0.1], "kept": 0.5, "list_bytes": 1, "bool_bytes": 2}
    assert Measured.of(record).as_dict() == {**record, "held": ((0.5,), (0.5, 0.6)), "lost": (0.1,)}
    with pytest.raises(SpatError) as caught:
        Measured.of(record | change)
    assert caught.value.code == "SP644"


# ---------------------------------------------------------------- layers of a model


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    for name, weight in made.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            weight.data *= 12  # attention that is not even, so that choices matter
    return made


def pair() -> tuple[spdsl.Attention, spdsl.Attention]:
    return (
        spdsl.compile(f"{EXAMPLE}:chooses", rows=1, page=PAGE, picks=PICKS),
        spdsl.compile(f"{EXAMPLE}:reads", rows=1, page=PAGE),
    )


class ByHand:
    """Attention of all layers with plain torch: full ones choose, the others read; ``held`` is what was there."""

    def __init__(self, full: tuple[bool, ...]) -> None:
        self.full = full
        self.chosen: list[Tensor] = []
        self.held: list[list[float]] = []

    def __call__(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **given: Any) -> Any:
        layer, n = module.layer_idx, q.shape[2]
        group = q.shape[1] // k.shape[1]
        logits = q @ k.repeat_interleave(group, 1).mT * given["scaling"]
        at = torch.arange(n)
        causal = at <= at[:, None]
        weights = logits.masked_fill(~causal, -math.inf).softmax(-1)
        self.held.append([float((weights * kept).sum(-1).mean()) for kept in self.chosen])
        share = weights.unflatten(1, (-1, group)).sum(2)
        pages = -(-n // PAGE)
        share = torch.nn.functional.pad(share, (0, pages * PAGE - n)).unflatten(-1, (pages, PAGE)).sum(-1)
        page = torch.arange(pages)
        exists = page <= at[:, None] // PAGE
        forced = exists & ((page == 0) | (at[:, None] - (page * PAGE + PAGE - 1) < PAGE))
        ranked = share.masked_fill(forced, 1e9).masked_fill(~exists, -math.inf)
        best = torch.zeros_like(ranked, dtype=torch.bool).scatter_(-1, ranked.topk(PICKS, -1).indices, True) & exists
        self.chosen.append(best.repeat_interleave(PAGE, -1)[..., :n].repeat_interleave(group, 1) & causal)
        if not self.full[layer]:
            source = max(each for each in range(layer) if self.full[each])
            weights = logits.masked_fill(~self.chosen[source], -math.inf).softmax(-1)
        return (weights @ v.repeat_interleave(group, 1)).transpose(1, 2), None


@pytest.fixture
def by_hand(network: Any) -> Iterator[Callable[..., tuple[float, ByHand]]]:
    def losses(*full: bool) -> tuple[float, ByHand]:
        hand = ByHand(full)
        transformers.AttentionInterface.register("by hand", hand)
        network.set_attn_implementation("by hand")
        return loss(network, IDS), hand

    yield losses
    network.set_attn_implementation("sdpa")


PLANS = [(True, False, False, False, False), (True, True, False, True, False), (True,) * LAYERS]


@pytest.mark.parametrize("full", PLANS)
def test_layers_read_the_nearest(network: Any, by_hand: Any, full: tuple[bool, ...]) -> None:
    expected, _ = by_hand(*full)
    chooses, reads = pair()
    models.use(network, [chooses if each else reads for each in full])
    assert loss(network, IDS) == pytest.approx(expected, abs=1e-5)
    relay = network.model.layers[0].self_attn.spdsl_relay
    read = {max(s for s in range(layer) if full[s]) for layer in range(1, LAYERS) if not full[layer]}
    assert set(relay.held) == read, "what nobody reads is not made"
    assert all(each["chosen"].dtype == torch.int32 for each in relay.held.values())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
def test_gradients_find_what_was_chosen(network: Any) -> None:
    """Layers that run again for their gradients read the same choice."""
    chooses, reads = pair()
    found = []
    for again in (False, True):
        own = copy.deepcopy(network).train()
        models.use(own, [chooses, reads, chooses, reads, reads])
        if again:
            own.gradient_checkpointing_enable()
        own(IDS, labels=IDS, use_cache=False).loss.backward()
        found.append(own.model.layers[1].self_attn.q_proj.weight.grad)
    assert found[0].norm() > 0
    torch.testing.assert_close(*found)


@torch.no_grad()
def test_steps_of_a_cache(network: Any) -> None:
    """Each query chooses and reads for itself, so what comes out with a cache is what comes out without."""
    chooses, reads = pair()
    models.use(network, [chooses, reads, reads, chooses, reads])
    whole = network(IDS, use_cache=False).logits
    cache = transformers.DynamicCache(config=network.config)
    parts = [network(part, past_key_values=cache).logits for part in IDS.split([40, 19, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)


def test_padding_is_refused(network: Any) -> None:
    chooses, reads = pair()
    models.use(network, [chooses] + [reads] * (LAYERS - 1))
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    with pytest.raises(SpatError) as caught:
        network(IDS, attention_mask=mask)
    assert caught.value.code == "SP642"
    assert "padding" in str(caught.value)


def test_measuring(network: Any, by_hand: Any) -> None:
    dense, hand = by_hand(*[True] * LAYERS)
    alone = [by_hand(*[each != layer for each in range(LAYERS)])[0] - dense for layer in range(1, LAYERS)]
    chooses, reads = pair()
    kept: list[Measured] = []
    found = measure(network, IDS, chooses, reads, keep=kept.append)
    assert found.dense == pytest.approx(dense, abs=1e-5)
    assert found.lost == pytest.approx(alone, abs=2e-5)
    for row, expected in zip(found.held, hand.held[1:], strict=True):
        assert row == pytest.approx(expected, abs=1e-4)
    causal = hand.chosen[0].shape[:2].numel() * N * (N + 1) // 2
    assert found.kept == pytest.approx(int(hand.chosen[0].sum()) / causal)
    pages = -(-N // PAGE)
    assert (found.list_bytes, found.bool_bytes) == (2 * 2 * N * PICKS * 4, 2 * 2 * N * pages)
    assert [len(each.lost) for each in kept] == list(range(LAYERS)), "kept after each layer"
    told: list[str] = []
    assert measure(network, IDS, chooses, reads, known=kept[2], tell=told.append) == found
    assert told == ["layer 3 of 4 reads", "layer 4 of 4 reads"]


def test_search(network: Any, by_hand: Any) -> None:
    """What is found is within the limit, by hand too, and the next plan with fewer full layers was tried and is not."""
    dense, _ = by_hand(*[True] * LAYERS)
    chooses, reads = pair()
    measured = measure(network, IDS, chooses, reads)
    lost = [by_hand(*plan.full)[0] - dense for plan in best_plans(measured.readers)]
    within = math.expm1((lost[0] + lost[1]) / 2)
    assert lost[1] < lost[0], "of these weights one full layer is worth something"
    found = find(network, IDS, chooses, reads, within=within, known=measured)
    count = sum(found.best.plan.full)
    assert found.best.lost == pytest.approx(lost[count - 1], abs=2e-5)
    assert found.best.lost <= math.log1p(within)
    assert lost[count - 2] > math.log1p(within)
    assert loss(network, IDS) - dense == pytest.approx(lost[count - 1], abs=2e-5), "the model has the plan afterwards"


def test_a_limit_that_no_plan_keeps_is_refused_before_anything_runs(network: Any) -> None:
    with pytest.raises(SpatError) as caught:
        find(network, IDS, *pair(), within=-1, tell=lambda said: pytest.fail(said))
    assert caught.value.code == "SP647"


def test_patterns_that_are_strangers(network: Any) -> None:
    chooses, reads = pair()
    for one, other in ((reads, chooses), (chooses, chooses), (spdsl.compile("causal"), reads)):
        with pytest.raises(SpatError) as caught:
            measure(network, IDS, one, other)
        assert caught.value.code == "SP645"


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def folder(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a tokenizer of 64 letters."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    place = tmp_path_factory.mktemp("model")
    letters = Tokenizer(WordLevel({chr(33 + each): each for each in range(64)}, unk_token="!"))  # noqa: S106  # no password
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=letters).save_pretrained(place)
    network.save_pretrained(place)
    (place / "text.txt").write_text("".join(chr(33 + each) for each in IDS[0].tolist()))
    return place


def told(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    assert run([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], network: Any) -> None:
    kept = tmp_path / "kept.json"
    words = ["reuse", f"{EXAMPLE}:chooses", f"{EXAMPLE}:reads", "--model", folder, "--text", folder / "text.txt"]
    words += [
        "-p",
        "rows=1",
        "-p",
        f"page={PAGE}",
        "-p",
        f"picks={PICKS}",
        "--measured",
        kept,
        "--device",
        "cpu",
        "--within",
        "0.02",
    ]
    found = told(capsys, *words)
    chooses, reads = pair()
    expected = find(network, IDS[:1], chooses, reads, within=0.02)
    assert found["plan"]["full"] == list(expected.best.plan.full)
    assert found["plan"]["lost"] == pytest.approx(expected.best.lost, abs=2e-5)
    assert len(found["tried"]) == len(expected.tried)

    again = told(capsys, "reuse", "--measured", kept, "--within", "0.02")
    assert again["measured"] == found["measured"]
    assert again["plan"]["full"] == list(fewest_full(best_plans(Measured.of(again["measured"]).readers), 0.02).full)
    assert run(["reuse", "--measured", str(kept)]) == 0
    assert "give a model to see" in capsys.readouterr().out

    record = json.loads(kept.read_text())
    kept.write_text(json.dumps(record | {"lost": record["lost"][:-1]}))  # as a run that was stopped leaves it
    assert run(["reuse", "--measured", str(kept)]) == 1
    assert "SP644" in capsys.readouterr().err
    kept.write_text(json.dumps(record))

    assert run([*map(str, words), "--tokens", "40"]) == 1
    assert "tokens 60, not 40" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("reuse",), 2, "--measured alone"),
        (("reuse", "--measured", "none.json"), 1, "SP604"),
        (("reuse", "--measured", "broken.json"), 1, "SP644"),
        (("reuse", "{e}:chooses", "{e}:reads", "--model", ".", "--text", "text.txt"), 1, "SP646"),
        (("reuse", "{e}:chooses", "{e}:reads", "--model", ".", "--text", "none.txt"), 1, "SP604"),
        (("reuse", "{e}:reads", "{e}:chooses", "--model", ".", "--text", "text.txt"), 1, "SP645"),
        (("reuse", "{e}:chooses", "{e}:reads", "--model", ".", "--text", "text.txt", "--within", "-1"), 2, "--within"),
        (("reuse", "{e}:chooses", "{e}:reads", "--model", ".", "--text", "text.txt", "-p", "pgae=8"), 2, "pgae"),
    ],
)
def test_wrong_words(
    words: tuple[str, ...],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("[1")
    Path("text.txt").write_text("some words")
    assert run([word.format(e=EXAMPLE) for word in words]) == status
    assert said in capsys.readouterr().err
