"""Train a small model of characters whose attention is `digest.spat`, until it beats a table of pairs of characters.

    python examples/04_train_characters.py                 # half a minute
    python examples/04_train_characters.py --steps 40      # a look

The text is the help that comes with Python, without what it says twice; every tenth paragraph is held out.  What the
model has to beat on these is told by how often pairs of characters stand in the rest.
"""

import argparse
import math
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional

import spdsl
from spdsl.nn import SelfAttention

LENGTH, DIM, HEADS, LAYERS, BATCH = 256, 64, 4, 2, 8


class Block(nn.Module):
    """Attention under the pattern, then two linear layers, each added to what came in."""

    def __init__(self, pattern: spdsl.Pattern) -> None:
        super().__init__()
        self.attention = SelfAttention(DIM, HEADS, pattern, window=32, every=16)
        self.inner = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` and the result are ``[batch, tokens, DIM]``."""
        x = x + self.attention(self.norm(x))
        return x + self.inner(x)


class Model(nn.Module):
    """Characters ``[batch, tokens]`` to logits of the next ones ``[batch, tokens, characters]``."""

    def __init__(self, characters: int, pattern: spdsl.Pattern) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(characters, DIM), nn.Embedding(LENGTH, DIM)
        nn.init.normal_(self.embed.weight, std=0.3)
        nn.init.normal_(self.place.weight, std=0.02)
        self.blocks = nn.Sequential(*(Block(pattern) for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, characters))

    def forward(self, text: Tensor) -> Tensor:
        """The logits."""
        return self.head(self.blocks(self.embed(text) + self.place.weight[: text.shape[1]]))


def texts() -> tuple[Tensor, Tensor, int]:
    """Characters as numbers, to train with and held out, and how many different ones there are."""
    paragraphs = list(dict.fromkeys("\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")))
    held_out = "\n\n".join(paragraphs[::10])
    del paragraphs[::10]
    letters = sorted(set("\n\n".join(paragraphs)) | set(held_out))
    train, test = (torch.tensor([letters.index(each) for each in text]) for text in ("\n\n".join(paragraphs), held_out))
    return train, test, len(letters)


def by_counting(train: Tensor, rows: Tensor, characters: int) -> tuple[float, float]:
    """Nats for a character of ``rows``, told by how often characters, and pairs of them, stand in ``train``."""
    pairs = torch.ones(characters, characters)
    pairs.index_put_((train[:-1], train[1:]), torch.ones(len(train) - 1), accumulate=True)
    single = -pairs.sum(0).div(pairs.sum()).log()[rows[:, 1:]].mean()
    return single.item(), -pairs.div(pairs.sum(1, keepdim=True)).log()[rows[:, :-1], rows[:, 1:]].mean().item()


def main() -> None:
    """Train, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    torch.manual_seed(0)

    train, test, characters = texts()
    held_out = test[: len(test) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)[::4]
    single, pairs = by_counting(train, held_out, characters)
    print(f"{len(train):,} characters; those held out take {single:.2f} nats each, told by pairs {pairs:.2f}")

    model = Model(characters, spdsl.load(Path(__file__).with_name("digest.spat")))
    optimizer = torch.optim.AdamW(model.parameters())
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=8e-3, total_steps=steps)

    def loss_of(rows: Tensor) -> Tensor:
        return functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

    start = time.perf_counter()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        places = torch.randint(len(train) - LENGTH, (BATCH, 1)) + torch.arange(LENGTH + 1)
        loss = loss_of(train[places])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        plan.step()
        if step % 100 == 0 or step == steps:
            seconds = (time.perf_counter() - start) / step
            print(f"step {step:4}: {loss:.2f} nats, {seconds * 1e3:.0f} ms a step", flush=True)

    with torch.no_grad():
        found = loss_of(held_out).item()
    goal = pairs if steps >= 300 else single
    print(f"held out: {found:.2f} nats, a perplexity of {math.exp(found):.1f}; to beat: {goal:.2f}")
    assert found < goal, "the model has not learned enough"


if __name__ == "__main__":
    main()
