"""Three workers tied to a common centre, each with its own third of the digits.

torchrun --nproc-per-node 3 examples/elastic.py [--epochs 30]
"""

import argparse
import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

import deeprelax

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=30)
epochs = parser.parse_args().epochs

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
torch.set_num_threads(1)

images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
held, ours = order[:450], order[450:][rank::size]
images = images.float() / 16

torch.manual_seed(0)  # every worker begins with the same weights
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
opt = deeprelax.ElasticSGD(model.parameters(), inner_lr=0.1, inner_momentum=0.9, inner_steps=5)
draws = torch.Generator().manual_seed(rank)
for _ in range(epochs):
    # The same number of batches on every worker: otherwise all of them would stop with an error.
    for batch in ours[torch.randperm(len(ours), generator=draws)][: 449 // 32 * 32].split(32):
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        opt.step()
        opt.zero_grad()

with torch.no_grad():
    own = (model(images[held]).argmax(1) != labels[held]).float().mean()
    opt.finish()  # one more exchange, and the centre into the parameters
    centre = (model(images[held]).argmax(1) != labels[held]).float().mean()
print(f"worker {rank}: {100 * own:.2f} % error by itself, {100 * centre:.2f} % at the centre", flush=True)
dist.barrier()
os._exit(0)  # tearing a gloo group down crashes now and then
