"""Lightning's Trainer with ``EvalPoint``: validation, test, prediction, checkpoints, averages, the end of fit at x."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OPTIMIZERS, make, plain, same_bits, values
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from deeprelax.integrations.lightning import EvalPoint

pytestmark = pytest.mark.usefixtures("one_thread")
VARIANTS: dict[str, dict[str, Any]] = {
    "accumulation": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "limit_train_batches": 18},
    "bfloat16": {"precision": "bf16-true"},
}


@pytest.fixture(params=["EntropySGD", "Heat"])
def name(request: pytest.FixtureRequest) -> str:
    """The callback calls what all optimizers share. Heat's parameters are x at no time, the others' between cycles."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _no_warning_of_ours() -> Iterator[None]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*(written to by other code|inner_lr / gamma)")
        yield


class Network(LightningModule):
    """Its batches depend only on the number of the step, as from a loader that can be resumed."""

    def __init__(self, name: str, norm: bool = False, **changes: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5) if norm else nn.Dropout(0.2), nn.Linear(5, 2))
        self.name, self.changes = name, changes
        self.shown: list[list[Tensor]] = []

    def loss(self, seed: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        inputs = torch.randn(4, 6, generator=draw).to(self.dtype)
        torch.manual_seed(seed)
        return F.cross_entropy(self.layers(inputs), inputs.argmax(1) % 2)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self.loss(1000 + 7 * self.global_step + index % 2)

    def validation_step(self, batch: Any, index: int) -> None:
        self.shown.append(values(self.parameters()))
        self.log("loss", self.loss(5), batch_size=4)

    test_step = validation_step

    def predict_step(self, batch: Any, index: int) -> Tensor:
        self.shown.append(values(self.parameters()))
        return self.loss(5)

    def configure_optimizers(self) -> Any:
        self.opt = make(self.name, self.parameters(), **self.changes)
        return self.opt


class Recorder(Callback):
    """x after every step, by ``at_x()``."""

    def __init__(self) -> None:
        self.found: list[list[Tensor]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.global_step > len(self.found) + trainer.first:
            with module.opt.at_x():
                self.found.append(values(module.parameters()))


def loader() -> DataLoader[int]:
    return DataLoader(range(24), batch_size=2)  # type: ignore[arg-type]


def trainer(folder: Path, *callbacks: Callback, checkpoints: bool = True, **arguments: Any) -> tuple[Trainer, Recorder]:
    recorder = Recorder()
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False)
    made = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=checkpoints,
        num_sanity_val_steps=1,
        callbacks=[recorder, *callbacks, EvalPoint(), *([saver] if checkpoints else [])],
        **{"max_steps": 9, "limit_val_batches": 1, "limit_test_batches": 1, "limit_predict_batches": 1, **arguments},
    )
    made.first = 0
    return made, recorder


def saved(file: Path) -> list[Tensor]:
    return list(torch.load(file, weights_only=True)["state_dict"].values())


@pytest.mark.parametrize(("name", "variant"), [*zip(OPTIMIZERS, itertools.cycle(VARIANTS))])
def test_every_checkpoint_and_the_end_are_x_and_a_resumed_run_is_exact(tmp_path: Path, name: str, variant: str):
    run, recorder = trainer(tmp_path, val_check_interval=5, **VARIANTS[variant])
    module = Network(name)
    run.fit(module, loader(), loader())
    for step, x in enumerate(recorder.found, 1):
        assert same_bits(saved(tmp_path / f"{step}.ckpt"), x), step
    assert len(recorder.found) == 9
    assert same_bits(module.parameters(), recorder.found[-1])
    module.opt.eval()
    assert same_bits(module.parameters(), recorder.found[-1])

    resumed, again = trainer(tmp_path, checkpoints=False, **VARIANTS[variant])
    resumed.first = 6
    other = Network(name)
    resumed.fit(other, loader(), ckpt_path=tmp_path / "6.ckpt")
    assert len(again.found) == 3
    for x, expected in zip(again.found, recorder.found[6:]):
        assert same_bits(x, expected)
    assert plain(other.opt.state_dict()) == plain(module.opt.state_dict())


def test_validation_test_and_prediction_see_x(tmp_path: Path, name: str):
    run, recorder = trainer(tmp_path, val_check_interval=3)
    module = Network(name)
    start = values(module.parameters())
    run.fit(module, loader(), loader())
    assert len(module.shown) == 4
    for shown, x in zip(module.shown, [start, *recorder.found[2::3]]):  # the first is the sanity check
        assert same_bits(shown, x)
    assert run.test(module, loader(), verbose=False) == run.validate(module, loader(), verbose=False)
    assert same_bits(module.shown[-1], recorder.found[-1])
    (tested,) = run.test(module, loader(), ckpt_path=tmp_path / "6.ckpt", verbose=False)
    assert same_bits(module.shown[-1], recorder.found[5])
    (predicted,) = run.predict(module, loader(), ckpt_path=tmp_path / "6.ckpt")
    assert same_bits(module.shown[-1], recorder.found[5])
    assert predicted == tested["loss"]


@pytest.mark.parametrize("changes", [{}, {"capturable": True}], ids=str)
def test_after_an_error_in_mid_cycle_a_loaded_checkpoint_is_tested(tmp_path: Path, name: str, changes: dict[str, Any]):
    class Failing(Callback):
        def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 7:
                raise OSError("the network is gone")

    run, recorder = trainer(tmp_path, Failing())
    module = Network(name, **changes)
    with pytest.raises(OSError, match="gone"):
        run.fit(module, loader())
    assert not same_bits(module.parameters(), recorder.found[-1])
    run.test(module, loader(), verbose=False)
    assert same_bits(module.shown[-1], recorder.found[-1])
    run.test(module, loader(), ckpt_path=tmp_path / "5.ckpt", verbose=False)
    assert same_bits(module.shown[-1], recorder.found[4])


def test_weight_averaging_averages_x_and_validates_the_average(tmp_path: Path, name: str):
    run, recorder = trainer(tmp_path, EMAWeightAveraging(decay=0.5), checkpoints=False, val_check_interval=3)
    module, reference = Network(name), Network(name)
    average = values(module.parameters())
    run.fit(module, loader(), loader())
    alone, expected = trainer(tmp_path, checkpoints=False)
    alone.fit(reference, loader())
    assert all(same_bits(a, b) for a, b in zip(recorder.found, expected.found, strict=True))
    for step, x in enumerate(expected.found):
        average = x if step == 0 else [a * 0.5 + b * 0.5 for a, b in zip(average, x)]
        if step % 3 == 2:
            for a, shown in zip(average, module.shown[1 + step // 3]):
                torch.testing.assert_close(a, shown)
    for a, p in zip(average, module.parameters()):
        torch.testing.assert_close(a, p.detach())


def test_stochastic_weight_averaging_averages_x_with_its_statistics(tmp_path: Path, name: str):
    arguments = {"max_steps": -1, "max_epochs": 4, "limit_train_batches": 3}
    swa = StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=2, annealing_epochs=1)
    run, recorder = trainer(tmp_path, swa, checkpoints=False, **arguments)
    module = Network(name, norm=True)
    run.fit(module, loader())
    points = [recorder.found[k] for k in (2, 5, 8)]  # x at the starts of epochs 2, 3 and 4 (from 1)
    for p, *each in zip(module.parameters(), *points):
        torch.testing.assert_close(p.detach(), torch.stack(each).mean(0))
    mean = module.layers[1].running_mean.clone()
    maps = []
    for index in range(3):
        draw = torch.Generator().manual_seed(
            1000 + 7 * (run.global_step - 1) + index % 2
        )  # before the last, empty step
        maps.append(module.layers[0](torch.randn(4, 6, generator=draw)).mean(0))
    torch.testing.assert_close(mean, torch.stack(maps).mean(0))


class Pair(LightningModule):
    """Two networks, two optimizers, manual optimization, each frozen during the other's step."""

    def __init__(self, name: str, validate: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.nets = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.name, self.phases = name, []

    def training_step(self, batch: Any, index: int) -> None:
        for i, opt in enumerate(self.optimizers()):
            opt.toggle_model()
            self.toggle_optimizer(opt)
            inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(index))
            self.manual_backward(self.nets[1](self.nets[0](inputs)).square().sum())
            opt.step()
            opt.zero_grad()
            self.untoggle_optimizer(opt)
            if i == 0:
                self.phases.append((opt.phase, opt.outer_step_happened))
                with opt.at_x():
                    self.x = values(self.nets[0].parameters())

    def validation_step(self, batch: Any, index: int) -> None:
        assert same_bits(self.nets[0].parameters(), getattr(self, "x", self.nets[0].parameters()))

    def configure_optimizers(self) -> Any:
        return [make(self.name, net.parameters()) for net in self.nets], []


def test_two_optimizers_in_turn_are_not_changed_by_validation(tmp_path: Path, name: str):
    finals = []
    for validate in (True, False):
        module = Pair(name, validate)
        run, _ = trainer(tmp_path, checkpoints=False, max_steps=18, val_check_interval=2)
        run.callbacks = [c for c in run.callbacks if not isinstance(c, Recorder)]
        run.fit(module, loader(), loader() if validate else None)
        assert module.phases == [((k + 1) % 4, k % 4 == 3) for k in range(9)]
        finals.append(values(module.parameters()))
    assert same_bits(*finals)


def test_capturable_with_gradient_clipping_says_what_to_do(tmp_path: Path):
    run, _ = trainer(tmp_path, checkpoints=False, precision="bf16-mixed", gradient_clip_val=0.1)
    with pytest.raises(RuntimeError, match=r"HJ\(capturable=True\).*capturable=False, or leave gradient_clip_val out"):
        run.fit(Network("HJ", capturable=True), loader())


def test_clipping_where_the_capturable_message_says_gives_the_same_bits(tmp_path: Path):
    class Clipping(Network):
        def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), 0.1)

    found = []
    for module, arguments in (
        (Clipping("HJ", capturable=True), {}),
        (Network("HJ"), {"gradient_clip_val": 0.1}),
    ):
        run, recorder = trainer(tmp_path, checkpoints=False, precision="bf16-mixed", **arguments)
        run.fit(module, loader())
        found.append(recorder.found)
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))


...
