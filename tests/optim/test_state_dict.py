"""A run that is saved, loaded and continued equals the uninterrupted run, bit for bit."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DTYPES, OPTIMIZERS, make, parameters, plain, run, same_bits, started, values

L = 4
END = 10  # two whole cycles and two steps more
# (optimizer, dtype, steps before saving, in eval mode): every phase, with and without eval mode, and before any step.
CASES = list(itertools.product(OPTIMIZERS, DTYPES, range(L, 2 * L), (False, True)))
CASES += list(itertools.product(OPTIMIZERS, DTYPES, (0,), (False, True)))


def other(params: list[Any]) -> list[Any]:
    """Parameters of the same kind with other values: what a new process has before loading."""
    return parameters(params[0].dtype, seed=99)


def load_weights(params: list[Any], saved: list[Any]) -> None:
    with torch.no_grad():
        for p, value in zip(params, saved, strict=True):
            p.copy_(value)


def continue_all(folder: Path) -> None:
    """What the new process does: load every case, continue it, write where it ends."""
    for path in sorted(folder.glob("case-*.pt")):
        saved = torch.load(path, weights_only=True)
        params = parameters(getattr(torch, saved["dtype"]), seed=99)
        # Hyper-parameters and seed come from the file.
        opt = getattr(__import__("deeprelax"), saved["name"])(params, inner_steps=2, gamma=9.0)
        load_weights(params, saved["weights"])
        opt.load_state_dict(saved["opt"])
        opt.train()
        run(opt, params, range(saved["steps"], END))
        result = {"weights": values(params), "phase": opt.phase, "gamma": opt.gamma, "state": opt.state_dict()}
        torch.save(result, folder / path.name.replace("case", "result"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case saved here and continued in one new process."""
    path = tmp_path_factory.mktemp("runs")
    for i, (name, dtype, steps, in_eval) in enumerate(CASES):
        opt, params = started(name, steps, dtype=dtype)
        if in_eval:
            opt.eval()
        saved = {"name": name, "dtype": str(dtype).removeprefix("torch."), "steps": steps}
        torch.save({**saved, "weights": values(params), "opt": opt.state_dict()}, path / f"case-{i:03}.pt")
    code = "import sys, pathlib; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/optim']; import test_state_dict as t; "
    code += "t.continue_all(pathlib.Path(sys.argv[2]))"
    command = [sys.executable, "-W", "ignore", "-c", code, str(Path(__file__).parent.parent), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return path


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_run_continued_in_a_new_process_equals_the_uninterrupted_run(name: str, dtype: torch.dtype, folder: Path):
    for steps, in_eval in itertools.product((0, *range(L, 2 * L)), (False, True)):
        opt, params = started(name, dtype=dtype)
        if in_eval and steps == 0:  # Heat's train() before the first gradient already moves to x + w
            opt.eval()
            opt.train()
        elif steps == 0:
            opt.train()
        run(opt, params, range(END))
        result = torch.load(folder / f"result-{CASES.index((name, dtype, steps, in_eval)):03}.pt", weights_only=True)
        assert same_bits(result["weights"], params), f"{steps} steps, eval mode {in_eval}"
        assert (result["phase"], result["gamma"]) == (opt.phase, opt.gamma)
        assert plain(result["state"]) == plain(opt.state_dict()), f"{steps} steps, eval mode {in_eval}"


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_narrow_models_state_stays_float32_when_saved(name: str, dtype: torch.dtype):
    opt, params = started(name, 6, dtype=dtype)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    opt = make(name, other(params))
    opt.load_state_dict(saved)
    for held in (saved, opt.state_dict(), {"state": opt.state}):
        assert {t.dtype for entry in held["state"].values() for t in entry.values()} <= {torch.float32, torch.int64}
    assert plain(opt.state_dict()) == plain(saved)
    x = opt.state_dict()["state"][0]["x"]
    assert not torch.equal(x, x.to(dtype).float()), "the state must hold more than the weights' digits"


def test_the_clock_is_saved_as_plain_numbers(name: str):
    params = parameters()
    opt = make(name, params, seed=2**64 - 1) if name != "HJ" else make(name, params)
    run(opt, params, range(6))
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    opt.load_state_dict(torch.load(file, weights_only=True))
    group = opt.param_groups[0]
    assert (type(group["step"]), group["step"], type(group["phase"]), group["phase"]) == (int, 6, int, 2)
    assert type(group["gamma"]) is float
    assert type(group["seed"]) is int
    assert type(group["training"]) is bool
    assert name == "HJ" or group["seed"] == 2**64 - 1
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
