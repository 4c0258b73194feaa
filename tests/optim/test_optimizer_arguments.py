"""A user's mistake is an error that names the thing, and nothing is changed by it."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from conftest import OPTIMIZERS, SETTINGS, make, parameters, run, same_bits, set_gradients, started, values
from torch import nn
from torch.nn import Parameter

import deeprelax
from deeprelax import kernels
from deeprelax.kernels.reference import EagerUpdate

NAN, INF = math.nan, math.inf
SHARED = {
    "lr": [-0.1, NAN, INF, "1"],
    "inner_steps": [0, -1, 2.5, NAN, "1"],
    "gamma": [0.0, -1.0, NAN, INF, "1"],
    "scoping": [-0.1, 1.0, NAN, "1"],
    "momentum": [-0.1, NAN, INF, "1"],
    "weight_decay": [-0.1, NAN, INF, "1"],
    "maximize": ["1"],
}
OWN = {
    "EntropySGD": {
        "inner_lr": [-0.1, NAN, INF],
        "alpha": [-0.1, 1.1, NAN],
        "temperature": [-0.1, NAN, INF],
        "inner_momentum": [-0.1, NAN, INF],
        "coupling": ["none", None],
    },
    "HJ": {"alpha": [-0.1, 1.1, NAN]},
    "Heat": {},
    "EntropyAdamW": {
        "gamma": [0.0, -1.0, NAN],
        "alpha": [-0.1, 1.1, NAN],
        "temperature": [-0.1, NAN, INF],
        "outer_lr": [-0.1, NAN, INF],
        "eps": [-0.1, NAN],
        "betas": [(0.9, 1.0), (-0.1, 0.9), (0.9,), (NAN, 0.9)],
    },
}
OWN["ElasticSGD"] = {key: values for key, values in OWN["EntropySGD"].items() if key != "alpha"}
OWN["Parle"] = {**OWN["EntropySGD"], "rho": [0.0, NAN], "rho_min": [-1.0], "gamma_min": [0.0]}
INVALID = [(o, key, v) for o in OPTIMIZERS for key, vs in {**SHARED, **OWN[o]}.items() for v in vs]


@pytest.mark.parametrize(("name", "key", "value"), INVALID)
def test_an_invalid_hyper_parameter_is_refused_by_name_and_value(name: str, key: str, value: Any, unchanged: Any):
    message = rf"{key}.*{value!r}"
    with pytest.raises(ValueError, match=message):
        make(name, [Parameter(torch.ones(2))], **{key: value})
    with pytest.raises(ValueError, match=message):
        make(name, [{"params": [Parameter(torch.ones(2))], key: value}])
    opt, params = started(name, 2)
    set_gradients(params, 2)
    good, weights = opt.param_groups[0][key], values(params)
    opt.param_groups[0][key] = value
    with pytest.raises(ValueError, match=message):
        opt.step()
    opt.param_groups[0][key] = good
    assert same_bits(params, weights)
    assert opt.phase == 2


@pytest.mark.parametrize("lr", [torch.tensor([0.1, 0.2]), torch.tensor(math.nan), torch.tensor(-1.0), "fast"])
def test_an_lr_that_is_not_a_step_size_is_refused_by_name(name: str, lr: Any):
    with pytest.raises((ValueError, TypeError), match="lr"):
        make(name, [Parameter(torch.ones(2))], lr=lr)


def test_values_on_the_edge_are_allowed(name: str):
    edge: dict[str, Any] = {"lr": 0, "momentum": 0, "weight_decay": 0, "scoping": 0.0, "inner_steps": 1}
    edge["nesterov"] = False
    if name not in ("Heat", "ElasticSGD"):
        edge["alpha"] = 1
    if "inner_momentum" in SETTINGS[name]:
        edge |= {"inner_lr": 0, "temperature": 0, "inner_momentum": 0}
    if name == "EntropyAdamW":
        edge |= {"outer_lr": 0, "temperature": 0, "betas": (0, 0), "eps": 0}
    params = parameters()
    before = values(params)
    opt = make(name, params, **edge)
    run(opt, params, range(2))
    opt.eval()
    assert same_bits(params, before), "with lr = 0, x stays"


def test_nesterov_without_momentum_is_refused(name: str):
    if name == "EntropyAdamW":  # its default is Nesterov's form: momentum=0 alone switches it off
        make(name, [Parameter(torch.ones(2))], nesterov=True, momentum=0.0)
        return
    off = {"momentum": 0.0} | ({"inner_momentum": 0.0} if "inner_momentum" in SETTINGS[name] else {})
    with pytest.raises(ValueError, match=r"nesterov.*momentum"):
        make(name, [Parameter(torch.ones(2))], nesterov=True, **off)
    if name == "EntropySGD":
        make(name, [Parameter(torch.ones(2))], nesterov=True, momentum=0.0, inner_momentum=0.5)


def test_unknown_arguments_are_refused(name: str):
    with pytest.raises(TypeError, match="dampening"):
        make(name, [Parameter(torch.ones(2))], dampening=0.5)
    with pytest.raises(TypeError):
        getattr(deeprelax, name)([Parameter(torch.ones(2))], 0.1, 5)


@pytest.mark.parametrize("seed", [1.5, "7", True])
@pytest.mark.parametrize("name", ["EntropySGD", "Heat"])
def test_a_seed_that_is_not_an_integer_is_refused(name: str, seed: Any):
    with pytest.raises(TypeError, match="seed"):
        make(name, [Parameter(torch.ones(2))], seed=seed)


def test_an_unstable_explicit_coupling_warns_once_with_both_numbers():
    params = parameters()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt = make("EntropySGD", params, inner_lr=0.125, gamma=0.0635, scoping=0.5, inner_steps=2)
        run(opt, params, range(2))  # 0.125 / 0.0635 is below 2 until scoping halves gamma
        make("EntropySGD", parameters(), inner_lr=0.5, gamma=0.25, coupling="implicit")
        make("EntropySGD", parameters(), inner_lr=0.499, gamma=0.25)
    with pytest.warns(UserWarning, match=r"0\.125.*0\.03175|0\.0318.*0\.125|0\.125.*0\.0318"):
        run(opt, params, range(2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(opt, params, range(3, 9))
    with pytest.warns(UserWarning, match="coupling"):
        make("EntropySGD", parameters(), inner_lr=0.5, gamma=0.25)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_a_parameter_of_a_dtype_that_cannot_be_trained_is_refused_by_name(name: str, dtype: torch.dtype):
    p = Parameter(torch.zeros(3, dtype=dtype), requires_grad=False)
    with pytest.raises(TypeError, match=rf"table.*{dtype}"):
        make(name, [("table", p)])


def test_a_sparse_or_a_lazy_parameter_is_refused_by_name(name: str):
    sparse = torch.zeros(3).to_sparse().requires_grad_()
    for p in (sparse, nn.LazyLinear(3).weight):
        with pytest.raises(TypeError, match="odd"):
            make(name, [("odd", p)])


def wrong_gradients(p: Parameter) -> dict[str, Any]:
    def sparse() -> None:
        p.grad = torch.ones(2, 3).to_sparse()

    def shape(*size: int) -> None:
        p.grad = torch.ones(2, 3)
        p.grad.data = torch.ones(size)

    def dtype() -> None:
        p.grad = torch.ones(2, 3)
        p.grad.data = torch.ones(2, 3, dtype=torch.float64)

    return {
        "sparse": sparse,
        "another size": lambda: shape(7),
        "flat": lambda: shape(6),
        "transposed": lambda: shape(3, 2),
        "dtype": dtype,
    }


@pytest.mark.parametrize("kind", ["sparse", "another size", "flat", "transposed", "dtype"])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_gradient_that_does_not_fit_is_an_error_that_names_the_parameter(
    name: str, kind: str, steps: int, unchanged: Any
):
    good, p = Parameter(torch.ones(4)), Parameter(torch.ones(2, 3))
    opt = make(name, [("good", good), ("bad", p)])
    run(opt, [good, p], range(steps))
    same = unchanged(opt, [good, p])
    good.grad = torch.ones(4)
    wrong_gradients(p)[kind]()
    with pytest.raises(RuntimeError, match=r"^bad"):
        opt.step()
    p.grad = None
    assert same()


def test_an_unknown_backend_is_refused_with_the_names_of_all(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"quantum.*cpu.*eager"):
        make("HJ", [Parameter(torch.ones(2))], backend="quantum")
    with pytest.raises(ValueError, match="quantum"):
        kernels.why_not("quantum")
    monkeypatch.setenv("DEEPRELAX_BACKEND", "quantum")
    with pytest.raises(ValueError, match="quantum"):
        make("HJ", [Parameter(torch.ones(2))])


def test_a_backend_that_does_not_work_here_is_refused_with_the_reason():
    missing = [n for n in kernels.NAMES if n not in kernels.available()]
    for backend in missing:
        reason = kernels.why_not(backend)
        assert "looked for" in reason
        with pytest.raises(RuntimeError, match=backend) as error:
            make("HJ", [Parameter(torch.ones(2))], backend=backend)
        assert reason in str(error.value)
    assert "eager" in kernels.available()
    assert all(kernels.why_not(n) == "" for n in kernels.available())


@pytest.mark.parametrize(("version", "works"), [("3.5.1", False), ("3.6.0", True), ("4.0.0+git", True)])
def test_a_triton_too_old_to_give_the_same_bits_is_refused(
    version: str, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", version)
    kernels._load.cache_clear()
    try:
        assert (f"triton 3.6 or newer and found {version}" in kernels.why_not("triton")) != works
    finally:
        kernels._load.cache_clear()


def test_the_environment_chooses_the_backend_where_the_user_does_not(monkeypatch: pytest.MonkeyPatch):
    calls, original = [], EagerUpdate.run
    monkeypatch.setattr(EagerUpdate, "run", lambda self, *args: (calls.append(self), original(self, *args))[1])

    def by_the_reference(**options: Any) -> bool:
        calls.clear()
        started("HJ", 1, **options)
        return bool(calls)

    monkeypatch.setenv("DEEPRELAX_BACKEND", "eager")
    assert by_the_reference()
    if "cpu" in kernels.available():
        assert not by_the_reference(backend="cpu")
        monkeypatch.delenv("DEEPRELAX_BACKEND")
        assert not by_the_reference()
