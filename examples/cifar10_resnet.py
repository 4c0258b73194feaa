"""A small ResNet on CIFAR-10: Entropy-SGD next to SGD at equal numbers of gradients, and a picture of both.

python examples/cifar10_resnet.py [--data .data] [--epochs 5] [--device cuda]

Each optimizer has the rate that a search chose for it (docs/comparison.md), falling linearly to 0. In few epochs SGD is
ahead here. An epoch takes half a minute on an idle core; downloads CIFAR-10 with torchvision if need be.
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from torch import nn

import deeprelax
from deeprelax.experiments.data.cifar import cifar10_arrays

matplotlib.use("Agg")
from matplotlib import pyplot as plt

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, help="has cifar10.npz or cifar-10-batches-py; default: .data")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--device", default="cpu")
arguments = parser.parse_args()

parts = [torch.from_numpy(part).to(arguments.device) for part in cifar10_arrays(arguments.data)]
mean, deviation = (of(parts[0].float(), (0, 2, 3), keepdim=True) for of in (torch.mean, torch.std))
inputs, held_inputs = ((images.float() - mean) / deviation for images in parts[::2])
targets, held_targets = (labels.long() for labels in parts[1::2])


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm, added to their input: (n, before, h, w) → (n, after, h / s, w / s), where
    s = after / before."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv2d(before, after, 3, after // before, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1, after // before, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """ReLU of the sum."""
        return nn.functional.relu(self.change(x) + self.skip(x))


def resnet() -> nn.Sequential:
    """Three blocks of 16, 32 and 64 channels."""
    stem = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [Residual(16, 16), Residual(16, 32), Residual(32, 64)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def error(model: nn.Module) -> float:
    """Percent of the test images."""
    model.eval()
    with torch.no_grad():
        read = torch.cat([model(images).argmax(1) for images in held_inputs.split(1000)])
    return 100 * (read != held_targets).float().mean().item()


optimizers = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.06, momentum=0.9, nesterov=True),
    "EntropySGD": lambda params: deeprelax.EntropySGD(
        params, lr=10.0, gamma=10.0, inner_lr=0.06, inner_momentum=0.9, nesterov=True
    ),
}
for name, make in optimizers.items():
    torch.manual_seed(0)
    model = resnet().to(arguments.device)
    opt = make(model.parameters())
    batches = len(inputs) // 64
    first = [dict(group) for group in opt.param_groups]
    errors = []
    for epoch in range(1, arguments.epochs + 1):
        model.train()
        order = torch.randperm(len(inputs))[: batches * 64].split(64)
        for number, batch in enumerate(order, 1):
            done = (epoch - 1) / arguments.epochs + (number - 1) / batches / arguments.epochs
            for group, start in zip(opt.param_groups, first, strict=True):
                for rate in {"lr", "inner_lr"} & group.keys():  # Entropy-SGD's inner rate falls too
                    group[rate] = (1 - done) * start[rate]
            loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
            loss.backward()
            opt.step()
            opt.zero_grad()
            if number % 200 == 0:
                print(f"{name}, epoch {epoch}, {number} of {batches} batches: loss {loss:.3f}", flush=True)
        if isinstance(opt, torch.optim.SGD):
            errors.append(error(model))
        else:  # at x, with batch norm's statistics gathered there
            with opt.at_x(), deeprelax.recalibrate_batchnorm(model, (inputs[batch] for batch in order[:100])):
                errors.append(error(model))
        print(f"{name}, epoch {epoch}: {errors[-1]:.2f} % error", flush=True)
    plt.plot(range(1, arguments.epochs + 1), errors, "o-", label=name)
plt.xlabel("epochs of gradients")
plt.ylabel("test error (%)")
plt.legend()
plt.savefig("cifar10.png", dpi=120)
