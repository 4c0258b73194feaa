"""MNIST with HJ: the loop, a rate that falls, batch norm, validation at x; then a picture of misclassified digits.

python examples/mnist.py [--data .data] [--epochs 3]        # a minute; torchvision downloads what is missing
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from torch import nn

import deeprelax
from deeprelax.experiments.data.datasets import load

matplotlib.use("Agg")
from matplotlib import pyplot as plt

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, help="has MNIST/raw; default: .data")
parser.add_argument("--epochs", type=int, default=3)
arguments = parser.parse_args()
data = load("mnist", arguments.data)

torch.manual_seed(0)
model = nn.Sequential(
    *(nn.Conv2d(1, 16, 5, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(16, 32, 5, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(512, 10)),
)
opt = deeprelax.HJ(model.parameters(), lr=3.0)
batches = len(data.train_inputs) // 64
schedule = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, total_iters=batches * arguments.epochs)
for epoch in range(arguments.epochs):
    model.train()
    order = torch.randperm(len(data.train_inputs))[: batches * 64].split(64)
    for number, batch in enumerate(order):
        loss = nn.functional.cross_entropy(model(data.train_inputs[batch]), data.train_targets[batch])
        loss.backward()
        opt.step()
        opt.zero_grad()
        schedule.step()
        if number % 200 == 199:
            print(f"epoch {epoch + 1}, {number + 1} of {batches} batches: loss {loss:.3f}", flush=True)
    if epoch == arguments.epochs - 1:
        opt.finish()  # the outer update of a cycle that has had fewer gradients than L
    some = (data.train_inputs[batch] for batch in order[:100])
    with opt.at_x(), deeprelax.recalibrate_batchnorm(model, some), torch.no_grad():
        model.eval()
        read = torch.cat([model(images).argmax(1) for images in data.validation_inputs.split(1000)])
    wrong = (read != data.validation_targets).nonzero().flatten()
    print(f"epoch {epoch + 1}: {100 * len(wrong) / len(read):.2f} % error", flush=True)

figure, axes = plt.subplots(4, 8, figsize=(8, 4.6), layout="constrained")
for ax in axes.flat:
    ax.axis("off")
for ax, index in zip(axes.flat, wrong.tolist(), strict=False):
    ax.imshow(data.validation_inputs[index, 0], cmap="gray_r")
    ax.set_title(f"{data.validation_targets[index]} read as {read[index]}", fontsize=8)
figure.savefig("mnist.png", dpi=120)
