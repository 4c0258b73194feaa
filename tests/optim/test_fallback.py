"""Without a compiled backend the first step says that the reference makes the updates."""

import warnings

import pytest
import torch
from conftest import make

from deeprelax import kernels


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    why_not = kernels.why_not
    monkeypatch.setattr(kernels, "why_not", lambda name: "no g++ was found" if name == "cpu" else why_not(name))


def steps(name: str, **options: object) -> list[str]:
    """The warnings of two steps; construction has none."""
    p = torch.nn.Parameter(torch.ones(3))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        opt = make(name, [p], **options)
        before = len(said)
        for _ in range(2):
            p.grad = torch.ones(3)
            opt.step()
    assert before == 0
    return [str(warning.message) for warning in said]


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_one_warning_at_the_first_step_says_why(name: str) -> None:
    (said,) = steps(name)
    assert "the eager reference makes the updates, about 15 times slower" in said
    assert "cpu: no g++ was found" in said


@pytest.mark.usefixtures("no_compiler")
def test_requesting_the_reference_does_not_warn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps(name, backend="eager") == []
    monkeypatch.setenv("DEEPRELAX_BACKEND", "eager")
    assert steps(name) == []


def test_the_compiled_backend_does_not_warn(name: str) -> None:
    pytest.importorskip("deeprelax._cpu")
    assert steps(name) == []
