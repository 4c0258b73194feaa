"""Fine-tune a small language model with transformers' Trainer and EntropyAdamW: first on one text, then on another.

python examples/trainer.py [--steps 200]        # a minute; needs transformers and accelerate, downloads nothing

The model is trained from scratch on one half of a text that comes with Python, saved, loaded, and tuned on the other.
In your own program ``from_pretrained`` takes a model's name instead of a folder.
"""

import argparse
from pydoc_data.topics import topics

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

import deeprelax
from deeprelax.integrations.transformers import EvalPointCallback

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200)
steps = parser.parse_args().steps

text = "\n".join(topics[name] for name in sorted(topics))
alphabet = sorted(set(text))
rows = torch.tensor([alphabet.index(c) for c in text[: len(text) // 64 * 64]]).view(-1, 64)
half, held = len(rows) // 2, 100


class LogDiagnostics(TrainerCallback):
    """|x - z|, its angle to the gradient, γ and the phase, as often as the Trainer logs the loss."""

    def __init__(self, trainer: Trainer, opt: deeprelax.EntropyAdamW) -> None:
        self.trainer, self.opt = trainer, opt

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """The parameters still have their gradients."""
        if (state.global_step + 1) % args.logging_steps == 0:
            self.trainer.log({name: value.item() for name, value in self.opt.diagnostics().items()})


def train(model: PreTrainedModel, opt: deeprelax.EntropyAdamW, rows: torch.Tensor, folder: str) -> None:
    """Train on all rows but the last hundred; print nats per character on those before and after it."""
    examples = [{"input_ids": row, "labels": row} for row in rows]
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=50,
        lr_scheduler_type="linear",
        logging_steps=max(1, steps // 4),
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=examples[:-held],
        eval_dataset=examples[-held:],
        optimizers=(opt, None),
        callbacks=[EvalPointCallback()],  # checkpoints, and the model after training, are x
    )
    trainer.add_callback(LogDiagnostics(trainer, opt))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    print(f"{folder}: from {before:.3f} to {after:.3f} nats per character", flush=True)
    trainer.save_model(folder)


torch.manual_seed(0)
config = LlamaConfig(
    **{"vocab_size": len(alphabet), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
)
model = LlamaForCausalLM(config)
train(model, deeprelax.EntropyAdamW(model.parameters(), lr=3e-3), rows[:half], "pretrained")
model = AutoModelForCausalLM.from_pretrained("pretrained")
train(model, deeprelax.EntropyAdamW(model.parameters(), lr=1e-3), rows[half:], "tuned")
