"""Random sequences of what users do, against a slow model of the optimizers in plain Python floats: equal, always.

``FUZZ_EXAMPLES=20000 pytest tests/optim/test_fuzz.py`` makes a million operations.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch.nn import Parameter

import deeprelax

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
ALPHA, INNER_LR, SCOPING = 0.75, 0.125, 0.25
NUMBERS = st.integers(-8, 8).map(lambda n: n / 4)
POSITIVE = st.integers(1, 8).map(lambda n: n / 4)
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "80"))


@dataclass
class Weight:
    """One parameter of one element: what it holds, x and z, p or s."""

    w: float
    x: float = 0.0
    acc: float = 0.0
    frozen: bool = False
    inner: float | None = None


@dataclass
class Group:
    """A parameter group and its clock."""

    weights: list[Weight]
    lr: float
    gamma: float
    fresh: bool = True
    cycle_gamma: float = 0.0


@dataclass
class Model:
    """An optimizer as section 2 of the design has it."""

    kind: str
    inner_steps: int
    groups: list[Group] = field(default_factory=list)
    phase: int = 0
    cycle_steps: int = 0
    training: bool = True

    @property
    def length(self) -> int:
        return self.inner_steps if self.phase == 0 else self.cycle_steps

    def step(self, gradients: list[list[float | None]]) -> None:
        if all(g is None or w.frozen for group, gs in zip(self.groups, gradients) for w, g in zip(group.weights, gs)):
            return
        length, first = self.length, self.phase == 0
        last = self.phase + 1 >= length
        for group, gs in zip(self.groups, gradients):
            if first:
                group.cycle_gamma = group.gamma
            for w, g in zip(group.weights, gs):
                if not w.frozen:
                    self.call(group, w, g, group.fresh or first, length if last else 0)
            if last:
                group.gamma *= 1 - SCOPING
            group.fresh = False
        self.cycle_steps = length
        self.phase = 0 if last else self.phase + 1

    def call(self, group: Group, w: Weight, g: float | None, first: bool, last: int) -> None:
        """``last``: how many gradients the cycle that it ends had; 0: it does not end one."""
        gamma = group.cycle_gamma
        if self.kind == "HJ":
            if first:
                w.x, w.acc = w.w, 0.0
            if g is not None:
                w.acc = g * (1 - ALPHA) if first else w.acc * ALPHA + g * (1 - ALPHA)
            if last:
                w.x = w.w = w.x - w.acc * group.lr
            elif g is not None:
                w.w = w.x - w.acc * gamma
        elif self.kind == "Heat":  # without noise
            if group.fresh:
                w.x = w.w
            if first:
                w.acc = 0.0
            if g is not None:
                w.acc = g if first else w.acc + g
            if last:
                w.x = w.x - w.acc * (group.lr / last)
            w.w = w.x
        else:
            y = w.w
            if first:
                w.x = w.acc = y
            if g is not None:
                d = g if first else g + (y - w.x) * (1 / gamma)
                y = y - d * INNER_LR
                w.acc = w.acc * ALPHA + y * (1 - ALPHA)
            if last:
                w.x = y = w.x - (w.x - w.acc) * (group.lr / gamma)
            w.w = y

    def finish(self) -> None:
        if self.phase == 0:
            return
        for group in self.groups:
            for w in group.weights:
                if not w.frozen:
                    self.call(group, w, None, group.fresh, self.phase)
            group.gamma *= 1 - SCOPING
            group.fresh = False
        self.phase = 0

    def shows_x(self, group: Group) -> bool:
        return group.fresh or (self.phase == 0 and self.kind != "Heat")

    def eval(self) -> None:
        if self.training:
            for group in self.groups:
                for w in group.weights:
                    if not w.frozen and not self.shows_x(group):
                        w.inner, w.w = w.w, w.x
        self.training = False

    def train(self) -> None:
        for group in self.groups:
            for w in group.weights:
                if w.inner is not None:
                    w.w, w.inner = w.inner, None
        self.training = True


class Machine(RuleBasedStateMachine):
    """The optimizer and its model, side by side."""

    kind = "HJ"

    @initialize(length=st.integers(1, 4), values=st.lists(NUMBERS, min_size=1, max_size=3), lr=POSITIVE, gamma=POSITIVE)
    def begin(self, length: int, values: list[float], lr: float, gamma: float) -> None:
        self.model = Model(self.kind, length, [Group([Weight(v) for v in values], lr, self.gamma(gamma))])
        self.params = [[self.parameter(v) for v in values]]
        options: dict[str, Any] = {"inner_steps": length, "scoping": SCOPING, "backend": "cpu"}
        if self.kind != "Heat":
            options["alpha"] = ALPHA
        if self.kind == "EntropySGD":
            options |= {"inner_lr": INNER_LR, "temperature": 0.0}
        self.options = options
        self.opt: Any = getattr(deeprelax, self.kind)(self.params[0], lr=lr, gamma=self.gamma(gamma), **options)

    def gamma(self, value: float) -> float:
        return 1e-300 * value if self.kind == "Heat" else value  # its noise scale is a float32 root: 0

    @staticmethod
    def parameter(value: float) -> Parameter:
        return Parameter(torch.tensor([value], dtype=torch.float64))

    @precondition(lambda self: self.model.training)
    @rule(data=st.data(), count=st.integers(1, 5))
    def step(self, data: Any, count: int) -> None:
        """So many steps: one at a time, few cycles would come to their end between two other calls."""
        for _ in range(count):
            gradients = [[data.draw(st.none() | NUMBERS) for _ in group.weights] for group in self.model.groups]
            for group, gs in zip(self.params, gradients):
                for p, g in zip(group, gs):
                    p.grad = None if g is None or not p.requires_grad else torch.tensor([g], dtype=torch.float64)
            self.opt.step()
            self.model.step(gradients)
            self.weights_are_equal()

    @rule()
    def to_eval(self) -> None:
        self.opt.eval()
        self.model.eval()

    @rule()
    def to_train(self) -> None:
        self.opt.train()
        self.model.train()

    @precondition(lambda self: self.model.training)
    @rule()
    def look(self) -> None:
        with self.opt.at_x():
            seen = copy.deepcopy(self.model)
            seen.eval()
            self.compare(seen)

    @precondition(lambda self: self.model.training)
    @rule()
    def finish(self) -> None:
        assert self.opt.finish() == (self.model.phase > 0)
        self.model.finish()

    @rule()
    def save_and_load(self) -> None:
        saved = copy.deepcopy(self.opt.state_dict())
        old = self.params
        self.params = [[Parameter(p.detach().clone(), requires_grad=p.requires_grad) for p in ps] for ps in old]
        self.opt = getattr(deeprelax, self.kind)([{"params": ps} for ps in self.params], **self.options)
        self.opt.load_state_dict(saved)

    @rule(lr=POSITIVE, gamma=POSITIVE, which=st.integers(0, 3))
    def change(self, lr: float, gamma: float, which: int) -> None:
        k = which % len(self.model.groups)
        self.opt.param_groups[k]["lr"] = self.model.groups[k].lr = lr
        self.opt.param_groups[k]["gamma"] = self.model.groups[k].gamma = self.gamma(gamma)

    @rule(length=st.integers(1, 4))
    def change_length(self, length: int) -> None:
        for group in self.opt.param_groups:
            group["inner_steps"] = length
        self.model.inner_steps = length

    @precondition(lambda self: self.model.training and len(self.model.groups) < 3)
    @rule(value=NUMBERS, lr=POSITIVE, gamma=POSITIVE)
    def add(self, value: float, lr: float, gamma: float) -> None:
        self.params.append([self.parameter(value)])
        self.opt.add_param_group({"params": self.params[-1], "lr": lr, "gamma": self.gamma(gamma)})
        group = Group([Weight(value)], lr, self.gamma(gamma))
        group.cycle_gamma = group.gamma
        self.model.groups.append(group)

    @precondition(lambda self: self.model.training and len(self.model.groups) > 1)
    @rule()
    def remove(self) -> None:
        self.opt.param_groups.pop()
        self.params.pop()
        self.model.groups.pop()

    @precondition(lambda self: self.model.training and self.model.phase == 0 and self.kind != "Heat")
    @rule(value=NUMBERS)
    def load_weights(self, value: float) -> None:
        with torch.no_grad():
            self.params[0][0].fill_(value)
        self.model.groups[0].weights[0].w = value

    @precondition(lambda self: self.model.training)
    @rule(group=st.integers(0, 2), which=st.integers(0, 2))
    def freeze_or_thaw(self, group: int, which: int) -> None:
        """A weight that is thawed joins at what it holds."""
        group %= len(self.params)
        which %= len(self.params[group])
        w = self.model.groups[group].weights[which]
        w.frozen = not w.frozen
        self.params[group][which].requires_grad_(not w.frozen)
        self.opt.state_dict()  # the optimizer sees it when it is next called
        if not w.frozen:
            w.x, w.acc = w.w, (w.w if self.kind == "EntropySGD" else 0.0)

    @rule()
    def replace_state(self) -> None:
        for entries in list(self.opt.state.values()):
            for name, value in list(entries.items()):
                entries[name] = value.clone()

    @rule(backend=st.sampled_from(["cpu", "eager"]))
    def switch_backend(self, backend: str) -> None:
        self.options["backend"] = backend
        self.save_and_load()

    @invariant()
    def weights_are_equal(self) -> None:
        if hasattr(self, "model"):
            self.compare(self.model)
            assert self.opt.phase == self.model.phase
            assert [group["gamma"] for group in self.opt.param_groups] == [group.gamma for group in self.model.groups]

    def compare(self, model: Model) -> None:
        held = [[p.item() for p in group] for group in self.params]
        assert held == [[w.w for w in group.weights] for group in model.groups]


@pytest.mark.parametrize("kind", ["HJ", "EntropySGD", "Heat"])
def test_any_sequence_of_calls_gives_what_the_model_gives(kind: str) -> None:
    """``EXAMPLES`` sequences of up to 50 calls."""
    case = type(f"{kind}Machine", (Machine,), {"kind": kind})
    checks = list(HealthCheck)
    run_state_machine_as_test(
        case,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=50, deadline=None, derandomize=True, suppress_health_check=checks
        ),
    )
