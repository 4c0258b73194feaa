"""timm makes the optimizers by name, with its groups, scheduler, average, scaler and saver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import same_bits, values
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler

from deeprelax.integrations.timm import NAMES, register

pytestmark = pytest.mark.usefixtures("one_thread")
register()


def network() -> Any:
    torch.manual_seed(0)
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3)


def train(model: Any, opt: Any, steps: int) -> None:
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        opt.zero_grad()
        model(torch.randn(4, 3, 8, 8, generator=draw)).square().mean().backward()
        opt.step()


@pytest.mark.parametrize("key", NAMES)
def test_timm_makes_it_with_its_weight_decay_groups_and_trains(key: str) -> None:
    model = network()
    before = values(model.parameters())
    opt: Any = create_optimizer_v2(model, key, lr=0.1, weight_decay=0.05, inner_steps=3)
    assert type(opt) is NAMES[key]
    assert sorted({group["weight_decay"] for group in opt.param_groups}) == [0.0, 0.05]
    assert {(group["lr"], group["momentum"], group["inner_steps"]) for group in opt.param_groups} == {(0.1, 0.0, 3)}
    train(model, opt, 6)
    assert not same_bits(model.parameters(), before)


def test_layer_decay_and_timms_scheduler_scale_the_rates() -> None:
    model = network()
    opt: Any = create_optimizer_v2(model, "hj", lr=0.4, layer_decay=0.5)
    scheduler = CosineLRScheduler(opt, t_initial=4, lr_min=0.0)
    scales = [group["lr_scale"] for group in opt.param_groups]
    assert len(set(scales)) > 2
    for epoch in range(3):
        train(model, opt, 2)
        scheduler.step(epoch)
        for group, scale in zip(opt.param_groups, scales):
            assert group["lr"] == pytest.approx(scheduler._get_lr(epoch)[0] * scale)


def test_an_average_updated_at_outer_steps_is_of_x() -> None:
    model = network()
    opt: Any = create_optimizer_v2(model, "hj", lr=0.1, inner_steps=3)
    average, expected = ModelEmaV3(model, decay=0.5), values(model.parameters())
    for _ in range(7):
        train(model, opt, 1)
        if opt.outer_step_happened:
            with opt.at_x():
                average.update(model)
                expected = [e.lerp(p, 0.5) for e, p in zip(expected, values(model.parameters()))]
    for a, e in zip(average.module.parameters(), expected):
        torch.testing.assert_close(a.detach(), e)


def test_timms_saver_resumes_in_mid_cycle_with_the_same_bits(tmp_path: Path) -> None:
    def new() -> tuple[Any, Any]:
        model = network()
        return model, create_optimizer_v2(model, "entropysgd", lr=0.1, inner_steps=4)

    model, opt = new()
    train(model, opt, 6)
    CheckpointSaver(model, opt, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)).save_checkpoint(0, 1.0)
    train(model, opt, 5)
    other, again = new()
    timm.models.load_checkpoint(other, str(tmp_path / "last.pth.tar"), weights_only=False)
    again.load_state_dict(torch.load(tmp_path / "last.pth.tar", weights_only=False)["optimizer"])
    train(other, again, 5)
    assert same_bits(model.parameters(), other.parameters())


def test_timms_scaler_clips_and_skips_as_a_plain_loop() -> None:
    plain, scaled = network(), network()
    opts: list[Any] = [create_optimizer_v2(model, "hj", lr=0.1, inner_steps=3) for model in (plain, scaled)]
    scaler = NativeScaler(device="cpu")
    draw = torch.Generator().manual_seed(1)
    for step in range(7):
        inputs = torch.randn(4, 3, 8, 8, generator=draw)
        for model in (plain, scaled):
            model.zero_grad()
        loss = plain(inputs).square().mean()
        loss.backward()
        if step == 4:  # one overflow in the middle of a cycle
            overflow = scaled(inputs).square().mean() * float("inf")
            scaler(overflow, opts[1], clip_grad=0.1, parameters=scaled.parameters())
            scaled.zero_grad()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        opts[0].step()
        scaler(scaled(inputs).square().mean(), opts[1], clip_grad=0.1, parameters=scaled.parameters())
        assert opts[0].phase == opts[1].phase
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b)
