"""Handwritten digits with HJ: the loop, a schedule, batch norm, validation at x, and a checkpoint.

python examples/digits.py [--epochs 30]        # half a minute; needs scikit-learn
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import deeprelax

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=30)
epochs = parser.parse_args().epochs

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
split = train_test_split(images / 16, labels, test_size=0.25, random_state=0, stratify=labels)
inputs, held_inputs = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) for part in split[:2])
targets, held_targets = map(torch.tensor, split[2:])

model = nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(256, 10)),
)
opt = deeprelax.HJ(model.parameters(), lr=2.0)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, epochs)
for epoch in range(epochs):
    model.train()
    order = torch.randperm(len(inputs)).split(128)
    for batch in order:
        nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        opt.step()
        opt.zero_grad()
    schedule.step()
    # The statistics of batch norm are those of inner points: gather them again at x, and restore them afterwards.
    with opt.at_x(), deeprelax.recalibrate_batchnorm(model, (inputs[batch] for batch in order)), torch.no_grad():
        wrong = (model.eval()(held_inputs).argmax(1) != held_targets).float().mean()
    print(f"epoch {epoch + 1}: {100 * wrong:.2f} % error", flush=True)

opt.finish()  # the parameters are x
deeprelax.recalibrate_batchnorm(model, (inputs[batch] for batch in order))
torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, "digits.pt")
