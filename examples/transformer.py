"""A character transformer with EntropyAdamW, next to AdamW at the same rate, on a text that comes with Python.

python examples/transformer.py [--gradients 300]        # two minutes on two cores
"""

import argparse
from pydoc_data.topics import topics

import torch
from torch import nn

import deeprelax

parser = argparse.ArgumentParser()
parser.add_argument("--gradients", type=int, default=300)
gradients = parser.parse_args().gradients

text = "\n".join(topics[name] for name in sorted(topics))
alphabet = sorted(set(text))
data = torch.tensor([alphabet.index(c) for c in text])
context, width = 64, 96


class Transformer(nn.Module):
    """Two causal blocks with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(len(alphabet), width), nn.Embedding(context, width)
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.out = nn.Linear(width, len(alphabet))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, context) → (batch, context, characters)"""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        y = self.characters(x) + self.positions(torch.arange(x.shape[1]))
        return self.out(self.blocks(y, mask=mask, is_causal=True))


def batch(size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of the text, and the characters that follow."""
    starts = torch.randint(len(data) - context - 1, (size,), generator=generator)
    windows = data[starts[:, None] + torch.arange(context + 1)]
    return windows[:, :-1], windows[:, 1:]


def loss_of(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats per character."""
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


held = batch(64, torch.Generator().manual_seed(1))
for kind in (torch.optim.AdamW, deeprelax.EntropyAdamW):
    torch.manual_seed(0)
    model, draws = Transformer(), torch.Generator().manual_seed(0)
    opt = kind(model.parameters(), lr=1e-3)
    for step in range(1, gradients + 1):
        loss_of(model, *batch(16, draws)).backward()
        opt.step()
        opt.zero_grad()
        if step % max(1, gradients // 5) == 0:
            if hasattr(opt, "eval"):
                opt.eval()
            with torch.no_grad():
                print(f"{kind.__name__}: {step} gradients, {loss_of(model, *held):.3f} nats", flush=True)
            if hasattr(opt, "train"):
                opt.train()
