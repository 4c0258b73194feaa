"""A network sharded over processes with FSDP2, validated at x, and saved; a second run resumes on any number of ranks.

torchrun --nproc-per-node 3 examples/fsdp.py [--epochs 30] [--out fsdp]
"""

import argparse
import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import deeprelax

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--out", default="fsdp")
args = parser.parse_args()

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
torch.set_num_threads(1)

images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
held, ours = order[:450], order[450:][rank::size]
images = images.float() / 16

torch.manual_seed(0)
model = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(2)], nn.Linear(64, 10))
for block in model:
    fully_shard(block)
fully_shard(model)
opt = deeprelax.HJ(model.parameters())  # after fully_shard: the parameters are other objects now
if os.path.isdir(args.out):
    weights, state = get_state_dict(model, opt)
    checkpoint.load({"weights": weights, "state": state}, checkpoint_id=args.out)
    set_state_dict(model, opt, model_state_dict=weights, optim_state_dict=state)
draws = torch.Generator().manual_seed(rank)
for epoch in range(1, args.epochs + 1):
    for batch in ours[torch.randperm(len(ours), generator=draws)][: 449 // 32 * 32].split(32):
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        opt.step()
        opt.zero_grad()
    with opt.at_x(), torch.no_grad():
        error = (model(images[held]).argmax(1) != labels[held]).float().mean()
    if rank == 0:
        print(f"epoch {epoch}: {100 * error:.2f} % error at x", flush=True)

weights, state = get_state_dict(model, opt)
checkpoint.save({"weights": weights, "state": state}, checkpoint_id=args.out)
dist.barrier()
os._exit(0)  # tearing a gloo group down crashes now and then
