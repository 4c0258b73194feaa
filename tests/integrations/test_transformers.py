"""transformers' Trainer with ``EvalPointCallback``: what it saves and reports is x."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from conftest import OPTIMIZERS, make, plain, same_bits, values
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import deeprelax
from deeprelax.integrations.transformers import EvalPointCallback

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "attention_dropout": 0.1}
VARIANTS: dict[str, dict[str, Any]] = {
    "bfloat16": {"bf16": True},
    "accumulation": {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "activation_checkpointing": True},
    "peft": {"lr_scheduler_type": "cosine"},
}


@pytest.fixture(params=["EntropySGD", "Heat"])
def name(request: pytest.FixtureRequest) -> str:
    """The callback calls what all optimizers share. Heat's parameters are x at no time, the others' between cycles."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _no_warning_of_ours() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(written to by other code|inner_lr / gamma)")
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        yield


def network(variant: str = "float32") -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, **CONFIG)
    model: Any = LlamaForCausalLM(config)
    if variant == "bfloat16":
        model = model.to(torch.bfloat16)
    if variant == "peft":
        lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, lora)
    return model


def data() -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(16, (24, 6), generator=draw)
    return [{"input_ids": row, "labels": row} for row in rows]


class Recorder(TrainerCallback):
    """x after every step, by ``at_x()``."""

    def __init__(self, opt: Any, model: Any) -> None:
        self.opt, self.model, self.found = opt, model, []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        with self.opt.at_x():
            self.found.append(trained(self.model))


def trained(model: Any) -> list[Tensor]:
    return values(p for p in model.parameters() if p.requires_grad)


def saved(folder: Path, model: Any) -> list[Tensor]:
    """The trained parameters in a folder's file, in the model's order."""
    found = load_file(next(folder.glob("*model.safetensors")))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return [found[name.replace(".default", "")] for name in names]


def trainer(folder: Path, name: str, variant: str = "float32", callbacks: Any = (), **changes: Any) -> Any:
    model = network(variant)
    opt = make(name, model.parameters(), **changes.pop("optimizer", {}))
    arguments = {"save_steps": 1, "max_steps": 9, "save_strategy": "steps", **VARIANTS.get(variant, {}), **changes}
    args = TrainingArguments(
        str(folder),
        use_cpu=True,
        report_to=[],
        per_device_train_batch_size=2,
        dataloader_pin_memory=False,
        logging_strategy="no",
        **arguments,
    )
    recorder = Recorder(opt, model)
    return Trainer(
        model,
        args,
        train_dataset=data(),
        eval_dataset=data()[:4],
        optimizers=(opt, None),
        callbacks=[recorder, EvalPointCallback(), *callbacks],
    ), recorder


@pytest.mark.parametrize(("name", "variant"), [*zip(OPTIMIZERS, itertools.cycle(VARIANTS))])
def test_every_checkpoint_and_the_end_are_x_and_a_resumed_run_is_exact(tmp_path: Path, name: str, variant: str):
    run, recorder = trainer(tmp_path / "a", name, variant)
    run.train()
    for step, x in enumerate(recorder.found, 1):
        assert same_bits(saved(tmp_path / "a" / f"checkpoint-{step}", run.model), x), step
    assert len(recorder.found) == 9
    assert same_bits(trained(run.model), recorder.found[-1])
    run.save_model(str(tmp_path / "end"))
    assert same_bits(saved(tmp_path / "end", run.model), recorder.found[-1])

    resumed, again = trainer(tmp_path / "b", name, variant, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    assert len(again.found) == 3
    for x, expected in zip(again.found, recorder.found[6:]):
        assert same_bits(x, expected)
    assert plain(resumed.optimizer.state_dict()) == plain(run.optimizer.state_dict())


def test_saving_and_evaluating_do_not_change_the_run(tmp_path: Path, name: str):
    found = []
    for arguments in ({"eval_strategy": "steps", "eval_steps": 3, "save_steps": 2}, {"save_strategy": "no"}):
        run, recorder = trainer(tmp_path, name, **arguments)
        for layer in run.model.model.layers:  # evaluation moves the generator that dropout draws from
            layer.self_attn.attention_dropout = 0.0
        run.train()
        found.append(recorder.found)
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))


class Stop(TrainerCallback):
    """Ends training in the middle of a cycle and of an epoch, without evaluation."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == 7


@pytest.mark.parametrize("callbacks", [[], [Stop()]], ids=["at the last step", "in mid-cycle"])
def test_the_best_model_is_loaded_and_evaluated_as_it_was_saved(tmp_path: Path, name: str, callbacks: list[Any]):
    arguments = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
    run, recorder = trainer(tmp_path, name, callbacks=callbacks, **arguments, optimizer={"lr": 3.0})
    run.train()
    assert len(recorder.found) == (7 if callbacks else 9)
    best = Path(run.state.best_model_checkpoint)
    assert same_bits(trained(run.model), saved(best, run.model))
    assert run.evaluate()["eval_loss"] == run.state.best_metric
    assert run.predict(data()[:4]).metrics["test_loss"] == run.state.best_metric
    assert same_bits(trained(run.model), saved(best, run.model))


class Saver(TrainerCallback):
    """Saves the model at the worst moment, between the backward pass and the step, after all other callbacks."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.step = folder, 0

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        model.save_pretrained(self.folder / str(self.step))
        self.step += 1


def test_a_checkpoint_saved_by_another_callback_holds_x(tmp_path: Path, name: str):
    run, recorder = trainer(tmp_path, name, save_strategy="no", max_steps=6)
    run.callback_handler.callbacks.insert(0, Saver(tmp_path))
    run.train()
    for step in range(1, 6):
        assert same_bits(saved(tmp_path / str(step), run.model), recorder.found[step - 1])


def test_a_checkpoint_on_sigterm_holds_x_and_resumes_exactly(tmp_path: Path):
    class Signal(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 6:
                jit.jit_manager.is_checkpoint_requested = True

    run, recorder = trainer(tmp_path / "a", "HJ", save_strategy="no", enable_jit_checkpoint=True, callbacks=[Signal()])
    jit = next(c for c in run.callback_handler.callbacks if type(c).__name__ == "JITCheckpointCallback")
    run.train()
    (checkpoint,) = (tmp_path / "a").glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert step % 4 != 0
    assert same_bits(saved(checkpoint, run.model), recorder.found[step - 1])
    resumed, again = trainer(tmp_path / "b", "HJ", save_strategy="no")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    whole, expected = trainer(tmp_path / "c", "HJ", save_strategy="no")
    whole.train()
    assert same_bits(again.found[-1], expected.found[-1])


def test_the_trainer_builds_the_optimizer_with_its_weight_decay_groups(tmp_path: Path):
    model = network()
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], max_steps=6, save_steps=2, weight_decay=0.1)
    cls_and_kwargs = (deeprelax.HJ, {"lr": 0.3, "inner_steps": 4})
    callback = EvalPointCallback()
    run = Trainer(model, args, train_dataset=data(), optimizer_cls_and_kwargs=cls_and_kwargs, callbacks=[callback])
    run.train()
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.1, 0.0]
    assert same_bits(saved(tmp_path / "checkpoint-6", model), trained(model))


def test_copying_or_saving_the_model_does_not_touch_the_optimizer(tmp_path: Path):
    class Copier(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: Any, optimizer: Any, **__: Any) -> None:
            copied = copy.deepcopy(model)
            inner = trained(model)
            copied.state_dict()
            torch.save(model, tmp_path / "model.pt")
            assert b"deeprelax.optim" not in (tmp_path / "model.pt").read_bytes()
            torch.load(tmp_path / "model.pt", weights_only=False).state_dict()
            assert same_bits(trained(model), inner)
            found.append(copied)

    found: list[Any] = []
    run, _ = trainer(tmp_path, "HJ", save_strategy="no", max_steps=3, callbacks=[Copier()])
    run.train()
    assert len(found) == 3
    assert not run.model._state_dict_pre_hooks


def test_another_optimizer_is_refused_with_what_to_do(tmp_path: Path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], max_steps=1)
    run = Trainer(network(), args, train_dataset=data(), callbacks=[EvalPointCallback()])
    with pytest.raises(TypeError, match=r"the Trainer has AdamW: pass optimizers="):
        run.train()
