"""The shapes that a step is measured on are those of the models they are named after."""

from __future__ import annotations

import builtins
import re

import pytest
import torch

from deeprelax.benchmark import shapes


def test_the_built_in_resnet50_is_torchvisions() -> None:
    pytest.importorskip("torchvision")
    assert shapes.resnet50_shapes() == shapes.torchvision_shapes("resnet50")


def test_the_decoder_is_gpt3_xl() -> None:
    """Brown et al. 2020, table 2.1: 24 layers of width 2048; 12 matrices' worth of weights a layer, 13 of biases and
    norms, and the embeddings."""
    decoder = shapes.named("decoder-1.3b")
    matrices = [shape for shape in decoder.shapes if len(shape) == 2]
    in_matrices = sum(a * b for a, b in matrices)
    assert in_matrices == 24 * 12 * 2048**2 + (50257 + 2048) * 2048
    assert decoder.elements - in_matrices == 24 * 13 * 2048 + 2 * 2048
    assert len(decoder.shapes) == 24 * 12 + 4


@pytest.mark.parametrize("model", ["vgg16", "regnet_y_16gf"])  # the second computes its widths with tensors
def test_a_torchvision_model_has_its_parameters_and_takes_no_memory(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = pytest.importorskip("torchvision.models")
    built = []
    get_model = models.get_model
    monkeypatch.setattr(models, "get_model", lambda *a, **k: built.append(get_model(*a, **k)) or built[0])
    found = shapes.named(model)
    assert {p.device.type for p in built[0].parameters()} == {"meta"}
    assert found.elements == sum(p.numel() for p in built[0].parameters()) > 8e7
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


def test_shapes_are_read_from_text() -> None:
    assert shapes.typed("64x3x7x7, 64,1").shapes == ((64, 3, 7, 7), (64,), (1,))


@pytest.mark.parametrize("text", ["", "4x", "x4", "4,,4", "4 x 4", "0", "4x0", "-1", "4.5", "1e6", "٣"])
def test_text_that_is_not_a_list_of_shapes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a shape; expected sizes joined by x"):
        shapes.typed(text)


def test_an_unknown_model_is_refused_with_near_names_and_what_to_do() -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match=r"'resnet5O' \(near: .*resnet50.*\); .*--shapes"):
        shapes.named("resnet5O")


@pytest.fixture(params=[RuntimeError("operator torchvision::nms does not exist"), ModuleNotFoundError("no")], ids=type)
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Exception:
    """What importing torchvision raises."""
    real, error = builtins.__import__, request.param

    def refuse(name: str, *arguments: object, **keywords: object) -> object:
        if name.startswith("torchvision"):
            raise error
        return real(name, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    return error


def test_a_broken_torchvision_is_reported_with_its_cure(
    broken: Exception,
) -> None:
    assert shapes.named("resnet50").elements == 25_557_032
    cure = rf"install the torchvision built for torch {re.escape(torch.__version__)}"
    with pytest.raises(RuntimeError, match=rf"'densenet121' .*{broken}.*{cure}.*decoder-1.3b.*--shapes 4096x4096") as e:
        shapes.named("densenet121")
    assert "near" not in str(e.value)


@pytest.mark.parametrize(("typed", "meant"), [("resnt50", "resnet50"), ("decoder-13b", "decoder-1.3b")])
def test_a_mistyped_model_is_recognised_without_torchvision(typed: str, meant: str, broken: Exception) -> None:
    with pytest.raises(RuntimeError, match=rf"'{typed}' is not built in \(near: {meant}\), and torchvision"):
        shapes.named(typed)
