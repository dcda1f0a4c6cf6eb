"""Train attention inside of clusters, as in the Routing Transformer: centroids follow their members by moving average.

    python examples/10_clusters.py                 # a quarter of a minute
    python examples/10_clusters.py --steps 20      # a look

Tokens of four kinds stand in random order, and each has to tell the mean of the numbers that its kind carries.
Attention that sees all tokens can do that, too; here each token sees the members of the cluster that invites it.
"""

import argparse

import torch
from torch import Tensor, nn

import spdsl

TOKENS, KINDS, DIM, BATCH = 64, 4, 16, 4
TEXT = """
# Clusters invite their best queries and keys; attention runs inside of each, in both directions.
pattern clusters(width: int in 1.. = 32) {
  input mu: float[h, c, d]
  let asks = score(unit(Q), mu) |> top(width, over = q)
  let answers = score(unit(K), mu) |> top(width, over = k)
  return mean(attend { keep asks and answers }, over = c)
}
"""


class Routed(nn.Module):
    """One layer whose centroids ``[1, KINDS, DIM]`` are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = spdsl.compile(spdsl.loads(TEXT), width=2 * TOKENS // KINDS)
        self.inner, self.values = nn.Linear(KINDS + 1, DIM), nn.Linear(KINDS + 1, DIM)
        self.head = nn.Sequential(nn.Linear(DIM, 64), nn.GELU(), nn.Linear(64, 1))
        self.register_buffer("mu", nn.functional.normalize(torch.randn(1, KINDS, DIM), dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[batch, TOKENS, KINDS + 1]`` to one number for each."""
        shared = self.inner(x)[:, None]  # queries and keys are the same, so that a token is where its kind is
        out = self.attend(shared, shared, self.values(x)[:, None], mu=self.mu)
        if self.training:
            self.follow(shared.detach())
        return self.head(out[:, 0])[..., 0]

    @torch.no_grad()
    def follow(self, shared: Tensor) -> None:
        """Each centroid moves a little towards the tokens that are nearest to it."""
        points = nn.functional.normalize(shared, dim=-1).flatten(0, 2)
        nearest = nn.functional.one_hot((points @ self.mu[0].T).argmax(-1), KINDS).float()
        centres = nn.functional.normalize(nearest.T @ points + 1e-6 * self.mu[0], dim=-1)
        self.mu.copy_(nn.functional.normalize(0.9 * self.mu + 0.1 * centres, dim=-1))


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens ``[BATCH, TOKENS, KINDS + 1]``, and for each the mean of the numbers of its kind."""
    kinds = torch.randint(0, KINDS, (BATCH, TOKENS), generator=generator)
    numbers = torch.randn(BATCH, TOKENS, generator=generator)
    one_hot = nn.functional.one_hot(kinds, KINDS).float()
    sums = torch.einsum("btk,bt->bk", one_hot, numbers) / one_hot.sum(1).clamp(min=1)
    return torch.cat((one_hot, numbers[..., None]), -1), sums.gather(1, kinds)


def main() -> None:
    """Train, and say how well it went."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--steps", type=int, default=80)
    steps = words.parse_args().steps
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Routed()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = last = 0.0
    for step in range(steps):
        tokens, wanted = batch(generator)
        loss = (model(tokens) - wanted).square().mean() / wanted.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        last = loss.item() if step == 0 else 0.9 * last + 0.1 * loss.item()
        first = first or loss.item()
    print(f"what is left of the mean square after {steps} steps: {last:.2f}, at first {first:.2f}")
    assert last < first


if __name__ == "__main__":
    main()
