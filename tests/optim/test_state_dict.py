"""A run that is saved, loaded and continued equals the uninterrupted run, bit for bit."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from typing import Any

import pytest
import torch
from conftest import OPTIMIZERS, SETTINGS, make, parameters, plain, run, same_bits, started, values
from workers import processes

import deeprelax

L = 4
END = 10  # two whole cycles and two steps more
DTYPES = [torch.float32, torch.bfloat16]
# (optimizer, dtype, steps before saving, in eval mode): every phase, with and without eval mode, and before any step.
CASES = list(itertools.product(OPTIMIZERS, DTYPES, (0, *range(L, 2 * L)), (False, True)))


def continue_all(rank: int) -> list[dict[str, Any]]:
    """What the new process does: load every case, resume it, and return the weights at its end."""
    results = []
    for (name, dtype, steps, _), saved in zip(CASES, torch.load("cases.pt", weights_only=True), strict=True):
        params = parameters(dtype, seed=99)
        # Hyper-parameters and seed come from the file.
        opt = getattr(deeprelax, name)(params, inner_steps=2, gamma=9.0)
        for p, value in zip(params, saved["weights"], strict=True):
            p.data.copy_(value)
        opt.load_state_dict(saved["opt"])
        opt.train()
        run(opt, params, range(steps, END))
        results.append({"weights": values(params), "phase": opt.phase, "gamma": opt.gamma, "state": opt.state_dict()})
    return results


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every case, saved here and resumed in one new process."""
    path, cases = tmp_path_factory.mktemp("runs"), []
    for name, dtype, steps, in_eval in CASES:
        opt, params = started(name, steps, dtype=dtype)
        if in_eval:
            opt.eval()
        cases.append({"weights": values(params), "opt": opt.state_dict()})
    torch.save(cases, path / "cases.pt")
    (results,) = processes(1, "continue_all", path, program="test_state_dict", GROUP="0")
    return list(results)


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: "-".join(map(str, CASES[i])))
def test_a_run_continued_in_a_new_process_equals_the_uninterrupted_run(case: int, continued: list[dict[str, Any]]):
    (name, dtype, steps, in_eval), result = CASES[case], continued[case]
    opt, params = started(name, dtype=dtype)
    if in_eval and steps == 0:  # Heat's train() before the first gradient already moves to x + w
        opt.eval()
        opt.train()
    elif steps == 0:
        opt.train()
    run(opt, params, range(END))
    assert same_bits(result["weights"], params)
    assert (result["phase"], result["gamma"]) == (opt.phase, opt.gamma)
    assert plain(result["state"]) == plain(opt.state_dict())


@pytest.mark.parametrize("in_eval", [False, True], ids=["training", "eval"])
@pytest.mark.parametrize("steps", range(L, 2 * L))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_deepcopy_and_pickle_of_model_and_optimizer_continue_bit_for_bit(
    name: str, dtype: torch.dtype, steps: int, in_eval: bool
):
    opt, params = started(name, steps, dtype=dtype)
    happened = opt.outer_step_happened
    if in_eval:
        opt.eval()
    copies = [copy.deepcopy((params, opt)), pickle.loads(pickle.dumps((params, opt)))]
    opt.train()
    run(opt, params, range(steps, END))
    for its_params, its_opt in copies:
        assert its_opt.outer_step_happened == happened
        assert all(a is b for a, b in zip(its_opt.param_groups[0]["params"], its_params, strict=True))
        its_opt.train()
        run(its_opt, its_params, range(steps, END))
        assert same_bits(its_params, params)
        assert plain(its_opt.state_dict()) == plain(opt.state_dict())


def test_a_copied_optimizer_supports_what_the_original_does(name: str):
    opt, params = started(name, 2)
    for its_params, its_opt in (copy.deepcopy((params, opt)), pickle.loads(pickle.dumps((params, opt)))):
        assert its_opt.defaults == opt.defaults
        its_opt.load_state_dict(opt.state_dict())
        late = torch.nn.Parameter(torch.ones(3))
        its_opt.add_param_group({"params": [late]})
        assert its_opt.param_groups[1].keys() == its_opt.param_groups[0].keys()
        run(its_opt, [*its_params, late], range(2, 5))
        assert f"{name} (" in repr(its_opt)


def test_a_copy_shares_no_memory_with_the_original(name: str):
    opt, params = started(name, 2)
    _, copied = copy.deepcopy((params, opt))
    before = plain(copied.state_dict())
    run(opt, params, range(2, 7))
    assert plain(copied.state_dict()) == before


@pytest.mark.parametrize("capturable", [False, True])
def test_the_clock_is_saved_as_plain_numbers(name: str, capturable: bool):
    opt, _ = started(name, 6, capturable=capturable, **({} if name == "HJ" else {"seed": 2**64 - 1}))
    torch.optim.lr_scheduler.StepLR(opt, 2)  # notes initial_lr in the group
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    group = torch.load(file, weights_only=True)["param_groups"][0]
    assert group["lr"] == group["initial_lr"] == SETTINGS[name]["lr"]
    clock = {"step": 6, "phase": 2, "gamma": opt.gamma, "training": True, "seed": 2**64 - 1}
    clock |= {"seed": group["seed"]} if name == "HJ" else {}
    assert {key: (type(group[key]), group[key]) for key in clock} == {key: (type(v), v) for key, v in clock.items()}
    assert all(isinstance(value, int | float | str | bool | list | tuple) for value in group.values())
    assert "backend" not in group


def test_state_has_each_parameters_shape_from_construction_on(name: str):
    opt, params = started(name)
    reference = torch.optim.SGD(params, lr=0.1).state_dict()
    for steps in (range(0), range(2)):
        run(opt, params, steps)
        saved = opt.state_dict()
        assert saved["param_groups"][0]["params"] == reference["param_groups"][0]["params"]
        assert sorted(saved["state"]) == list(range(len(params)))
        for key, entry in saved["state"].items():
            assert "x" in entry
            assert all(t.shape == (() if n == "missed" else params[key].shape) for n, t in entry.items())


def test_saving_one_parameters_state_does_not_save_the_flat_buffer(name: str):
    params = [torch.nn.Parameter(torch.ones(100)), torch.nn.Parameter(torch.ones(50_000))]
    opt = make(name, params)
    run(opt, params, range(2))
    for save in (torch.save, pickle.dump):
        file = io.BytesIO()
        save(opt.state_dict()["state"][0], file)
        assert len(file.getvalue()) < 100 * 4 * 5 + 5000
    pointers = [t.untyped_storage().data_ptr() for entry in opt.state.values() for t in entry.values()]
    assert len(set(pointers)) == len(pointers)
    assert all(t.untyped_storage().nbytes() == t.numel() * t.itemsize for e in opt.state.values() for t in e.values())
