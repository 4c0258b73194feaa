"""``flatten=True``: one buffer for the weights, and nobody who saves or looks at the model notices."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import make, parameters, run, same_bits, started, values
from torch import Tensor, nn
from torch.nn import Parameter


class Model(nn.Module):
    """Eight tensors of several layouts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.conv = nn.Conv2d(1, 6, 5)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6).to(memory_format=torch.channels_last)
        self.wide = nn.Conv2d(6, 4, 3).to(memory_format=torch.channels_last)
        self.line = nn.Linear(100, 10)


def storages(tensors: list[Tensor]) -> list[int]:
    return [t.untyped_storage().data_ptr() for t in tensors]


def test_values_shapes_strides_and_objects_stay():
    model = Model()
    before = [(p, p.detach().clone(), p.stride(), p.requires_grad, type(p)) for p in model.parameters()]
    make("HJ", model.parameters(), flatten=True)
    for (p, value, strides, requires_grad, kind), q in zip(before, model.parameters()):
        assert p is q
        assert same_bits([p], [value])
        assert (p.stride(), p.requires_grad, type(p), p.is_leaf) == (strides, requires_grad, kind, True)


def test_the_weights_are_in_one_buffer_each_with_its_own_storage():
    params = list(Model().parameters())
    make("HJ", params, flatten=True)
    steps = [b.data_ptr() - a.data_ptr() for a, b in itertools.pairwise(params)]
    assert all(s >= p.numel() * 4 and s % 128 == 0 for s, p in zip(steps, params))
    assert sum(steps) < sum(p.numel() * 4 + 256 for p in params)
    assert len(set(storages(params))) == len(params)
    assert [p.untyped_storage().nbytes() for p in params] == [p.numel() * 4 for p in params]


@pytest.mark.parametrize("flatten", [False, True])
def test_torch_pickle_and_safetensors_save_the_model_in_its_own_size(name: str, flatten: bool, tmp_path: Path):
    model = Model()
    opt = make(name, model.parameters(), flatten=flatten)
    run(opt, list(model.parameters()), range(5))
    opt.eval()
    size = sum(p.numel() * 4 for p in model.parameters())
    for save in (torch.save, pickle.dump):
        for what in (model, model.state_dict()):
            file = io.BytesIO()
            save(what, file)
            assert size <= len(file.getvalue()) < size + 10_000
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    safetensors.torch.save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "tensors.safetensors"
    )
    torch.save(model.state_dict(), tmp_path / "model.pt")
    for loaded in (
        safetensors.torch.load_file(tmp_path / "model.safetensors"),
        safetensors.torch.load_file(tmp_path / "tensors.safetensors"),
        torch.load(tmp_path / "model.pt", weights_only=True),
    ):
        assert list(sorted(loaded)) == sorted(model.state_dict())
        assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


def test_flatten_on_and_off_give_the_same_bits(name: str):
    flat, apart = parameters(), parameters()
    one, two = make(name, flat, flatten=True), make(name, apart, flatten=False)
    run(one, flat, range(7))
    run(two, apart, range(7))
    assert same_bits(flat, apart)
    assert [p.stride() for p in flat] == [p.stride() for p in apart]


def test_parts_of_a_larger_storage_gaps_and_empty_ones_stay_where_they_are():
    base = torch.randn(30)
    stay = [Parameter(base[:10]), Parameter(torch.randn(4, 6)[:, ::2]), Parameter(torch.ones(0))]
    where = [p.data_ptr() for p in stay]
    moved = Parameter(torch.randn(5))
    was = moved.data_ptr()
    opt = make("HJ", [*stay, moved], flatten=True)
    assert [p.data_ptr() for p in stay] == where
    assert moved.data_ptr() != was
    run(opt, [*stay, moved], range(5))
    assert torch.equal(base[:10], stay[0])


def test_a_parameter_in_shared_memory_stays():
    p = Parameter(torch.randn(10).share_memory_())
    where = p.data_ptr()
    make("HJ", [p, Parameter(torch.ones(3))], flatten=True)
    assert p.data_ptr() == where
    assert p.is_shared()


@pytest.mark.parametrize("alias", ["a detached tensor", "a view", "a numpy array", "the numpy array it was made of"])
def test_a_parameter_whose_memory_other_code_holds_is_not_moved(alias: str):
    array = np.ones(10, dtype=np.float32)
    p = Parameter(torch.from_numpy(array) if alias == "the numpy array it was made of" else torch.ones(10))
    held = {
        "a detached tensor": lambda: p.detach(),
        "a view": lambda: p.data.view(2, 5)[1],
        "a numpy array": lambda: p.detach().numpy(),
        "the numpy array it was made of": lambda: array,
    }[alias]()
    opt = make("HJ", [p, Parameter(torch.ones(3))], flatten=True)
    run(opt, [p], range(5))
    seen = torch.as_tensor(held).flatten()
    assert torch.equal(p.detach()[-seen.numel() :], seen)


def test_each_dtype_has_its_own_buffer():
    params = [Parameter(torch.ones(8, dtype=d)) for d in (torch.float32, torch.bfloat16, torch.float64, torch.float32)]
    opt = make("HJ", params, flatten=True)
    assert [p.dtype for p in params] == [torch.float32, torch.bfloat16, torch.float64, torch.float32]
    run(opt, params, range(5))
    assert all(torch.isfinite(p).all() for p in params)


def test_a_copied_optimizer_flattens_its_own_parameters_only(name: str):
    opt, params = started(name, 2, flatten=True)
    where = [p.data_ptr() for p in params]
    for copied, its_opt in (copy.deepcopy((params, opt)), pickle.loads(pickle.dumps((params, opt)))):
        before = values(params)
        assert len(set(storages(copied[:3]))) == 3
        run(its_opt, copied, range(2, 4))
        assert same_bits(params, before)
        assert [p.data_ptr() for p in params] == where


def test_a_cast_model_is_flattened_again():
    params = [Parameter(torch.randn(100)), Parameter(torch.randn(7))]
    opt = make("HJ", params, flatten=True)
    run(opt, params, range(4))
    for p in params:
        p.grad = None
        p.data = p.data.double()
    run(opt, params, range(4, 8))
    assert params[1].data_ptr() - params[0].data_ptr() == 1024
