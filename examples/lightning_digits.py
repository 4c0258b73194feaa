"""Digits with Lightning and HJ: validation, checkpoints and the weights after fit are x.

python examples/lightning_digits.py [--epochs 20]        # half a minute; needs lightning and scikit-learn
"""

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import deeprelax
from deeprelax.integrations.lightning import EvalPoint

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=20)
epochs = parser.parse_args().epochs


class Digits(LightningModule):
    """A network with two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """One gradient."""
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """After a step, while its gradients are still there: |p|, its angle to them, γ and the phase."""
        self.log_dict({name: value.float() for name, value in optimizer.diagnostics().items()})

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        """``EvalPoint`` has put x into the parameters."""
        self.log("error", (self.layers(batch[0]).argmax(1) != batch[1]).float().mean())

    def on_validation_epoch_end(self) -> None:
        """Progress."""
        error = 100 * self.trainer.callback_metrics["error"]
        print(f"epoch {self.current_epoch + 1}: {error:.2f} % error", flush=True)

    def configure_optimizers(self) -> dict[str, object]:
        """HJ, whose rate falls along a cosine."""
        opt = deeprelax.HJ(self.parameters(), lr=1.0)
        return {"optimizer": opt, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(opt, epochs)}


seed_everything(0, verbose=False)
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
train, held = random_split(TensorDataset(((images - images.mean()) / images.std()).float(), labels), [1347, 450])
best = ModelCheckpoint(".", "digits", monitor="error", save_weights_only=True, enable_version_counter=False)
trainer = Trainer(
    max_epochs=epochs,
    accelerator="cpu",
    logger=CSVLogger(".", "digits", version=""),
    log_every_n_steps=1,
    enable_progress_bar=False,
    num_sanity_val_steps=0,
    callbacks=[EvalPoint(), best],
)
trainer.fit(Digits(), DataLoader(train, 64, shuffle=True), DataLoader(held, 450))
print(f"best: {100 * best.best_model_score:.2f} % error, in {best.best_model_path}", flush=True)
