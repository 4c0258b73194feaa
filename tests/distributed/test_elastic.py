"""Elastic-SGD and Parle: the equations, what workers share, and what happens when one is gone."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simulation
import torch
from scenarios import trained
from simulation import OPTIONS, parameters, take_step
from torch import Tensor, nn
from torch.nn import Parameter
from workers import Thread, processes, threads

import deeprelax

pytestmark = pytest.mark.usefixtures("one_thread")


def run(kind: str, worker: Thread, steps: int = 9, **options: Any) -> list[Tensor]:
    params = parameters()
    opt = getattr(deeprelax, kind)(params, **{**OPTIONS[kind], **options}, replicas=worker)
    for number in range(steps):
        take_step(opt, params, worker.rank, number)
    return [p.detach().clone() for p in params]


def same(a: list[Tensor], b: Any) -> bool:
    return all(np.array_equal(np.asarray(s), np.asarray(t)) for s, t in zip(a, b, strict=True))


@pytest.mark.parametrize("backend", ["eager", "cpu"])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kind", ["ElasticSGD", "Parle"])
def test_workers_follow_the_equations_bit_for_bit(kind: str, size: int, backend: str) -> None:
    theirs = simulation.elastic(size)[0] if kind == "ElasticSGD" else simulation.parle(size)
    ours = threads(size, lambda worker: run(kind, worker, backend=backend))
    assert all(same(a, b) for a, b in zip(ours, theirs, strict=True)), ours


def test_overlap_moves_the_centre_of_elastic_sgd_a_cycle_late() -> None:
    ours = threads(3, lambda worker: run("ElasticSGD", worker, overlap=True))
    assert all(same(a, b) for a, b in zip(ours, simulation.elastic(3, late=True)[0], strict=True))
    assert not same(ours[0], simulation.elastic(3)[0][0])


@pytest.fixture(scope="module", params=[2, 3])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What the processes of a group over gloo made of both optimizers."""
    return processes(request.param, "bits", tmp_path_factory.mktemp("bits"))


def test_processes_over_gloo_give_the_bits_of_the_equations(group: list[Any]) -> None:
    weights, centres = simulation.elastic(len(group))
    together = simulation.parle(len(group))
    for rank, found in enumerate(group):
        in_order = found["elastic True"]
        assert same(in_order["params"], weights[rank])
        assert all(same(a, b) for a, b in zip(in_order["centres"], centres))
        assert same(found["parle"]["params"], together[rank])
        plain = found["elastic False"]["params"]
        if len(group) == 2:
            assert same(plain, weights[rank])
        assert all(np.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in zip(plain, weights[rank]))
        assert same(found["elastic mesh"]["params"], plain)
        lossy = zip(found["elastic bf16"]["params"], weights[rank])
        assert all(np.allclose(a, b, rtol=0, atol=2e-2) for a, b in lossy)


def test_all_processes_hold_one_centre_and_eval_shows_it(group: list[Any]) -> None:
    for name in ("elastic True", "elastic False", "elastic bf16"):
        first = group[0][name]
        for found in group[1:]:
            assert all(same(a, b) for a, b in zip(found[name]["centres"], first["centres"]))
        for found in group:
            assert same(found[name]["shown"], first["centres"][-1])
            assert not same(found[name]["params"], first["centres"][-1])
    mean = [torch.stack(each).mean(0) for each in zip(*(found["parle"]["params"] for found in group))]
    for found in group:
        assert same(found["parle"]["shown"], group[0]["parle"]["shown"])
        assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(found["parle"]["shown"], mean))


def test_an_outer_step_makes_one_collective_and_no_other_step_any(group: list[Any]) -> None:
    ordered = 2 if len(group) == 3 else 1
    for found in group:
        for name, each in (("elastic False", 1), ("elastic True", ordered), ("elastic bf16", 1)):
            assert found[name]["calls"][1:] == [0, each, 0, 0, each, 0, 0, each]
        assert sum(found["parle"]["calls"][1:]) == 3 * ordered


@pytest.mark.parametrize(
    ("kind", "comm_dtype", "itemsize"), [("ElasticSGD", None, 4), ("ElasticSGD", torch.bfloat16, 2), ("Parle", None, 4)]
)
def test_bytes_sent_per_gradient_are_those_of_ddp_divided_by_l(kind: str, comm_dtype: Any, itemsize: int) -> None:
    """DDP sends every gradient whole; the buffer has four numbers more."""
    sent = 0

    def mean_(flat: Tensor) -> None:
        nonlocal sent
        sent += flat.numel() * flat.element_size()

    p, options = Parameter(torch.zeros(64, 64)), {} if comm_dtype is None else {"comm_dtype": comm_dtype}
    replicas: Any = SimpleNamespace(rank=0, size=2, mean_=mean_)
    opt = getattr(deeprelax, kind)([p], inner_steps=20, seed=0, replicas=replicas, **options)
    opt._shared.exchange.joined = True
    for _ in range(40):
        p.grad = torch.ones_like(p)
        opt.step()
    assert sent == 40 * itemsize * p.numel() / 20 + 2 * 4 * itemsize


def test_overlapping_the_exchange_changes_no_bit_of_parle(group: list[Any]) -> None:
    assert all(same(found["parle"]["params"], found["parle overlap"]["params"]) for found in group)


@pytest.mark.parametrize("kind", ["ElasticSGD", "Parle"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_any_number_of_workers_resumes_from_a_centre(kind: str, size: int, group: list[Any]) -> None:
    found = group[0]["elastic True" if kind == "ElasticSGD" else "parle"]
    saved, shown = found["saved"], found["shown"]

    def resume(worker: Thread) -> Any:
        params = [Parameter(t.clone()) for t in shown]
        opt = getattr(deeprelax, kind)(params, **OPTIONS[kind], replicas=worker)
        opt.load_state_dict(copy.deepcopy(saved))
        take_step(opt, params, worker.rank, 9)
        return [opt.state[p]["x"].clone() for p in params], opt.phase, float(opt.gamma)

    for x, phase, gamma in threads(size, resume):
        assert same(x, shown)
        assert (phase, gamma) == (1, found["saved"]["param_groups"][0]["gamma"])


def test_parle_with_one_worker_is_entropy_sgd_bit_for_bit() -> None:
    options = {**OPTIONS["Parle"], "temperature": 1e-3, "momentum": 0.5, "gamma_min": 1e-9}
    alone = threads(1, lambda worker: run("Parle", worker, **options))[0]
    theirs = {name: value for name, value in options.items() if name not in ("gamma_min", "rho", "rho_min")}
    params = parameters()
    opt = deeprelax.EntropySGD(params, **theirs)
    for number in range(9):
        take_step(opt, params, 0, number)
    assert same(alone, [p.detach() for p in params])


def test_without_a_tie_the_workers_of_parle_are_independent() -> None:
    free = threads(2, lambda worker: run("Parle", worker, steps=6, rho=np.inf, rho_min=np.inf))
    tied = threads(2, lambda worker: run("Parle", worker, steps=6))
    options = {n: v for n, v in OPTIONS["Parle"].items() if n not in ("gamma_min", "rho", "rho_min")}
    options["temperature"] = 0.0
    for rank in range(2):
        params = parameters()
        opt = deeprelax.EntropySGD(params, **options)
        for number in range(6):  # before gamma_min counts
            take_step(opt, params, rank, number)
        assert same(free[rank], [p.detach() for p in params])
        assert not same(tied[rank], free[rank])


def test_workers_draw_their_own_noise_also_in_a_captured_step() -> None:
    def noise(worker: Thread, capturable: bool) -> Tensor:
        p = Parameter(torch.zeros(1000))
        options = {"inner_lr": 0.1, "inner_steps": 9, "temperature": 1.0, "seed": 3, "capturable": capturable}
        opt = deeprelax.ElasticSGD([p], replicas=worker, **options)
        p.grad = torch.zeros(1000)
        opt.step()
        return p.detach().clone()

    host = threads(3, lambda worker: noise(worker, False))
    device = threads(3, lambda worker: noise(worker, True))
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert abs(torch.corrcoef(torch.stack([host[a], host[b]]))[0, 1]) < 0.15
    assert same(host, device)


def mean_force(kind: str, x: float, inner_lr: float) -> float:
    """The springs' mean force on a centre held at x, over a time of 40 after one of 4: f = (x² - 1)², γ = 0.1,
    temperature 2, three workers of 4,096 elements; for Entropy-SGD, one of as many elements in all."""
    forces = []
    for rank in range(3 if kind == "ElasticSGD" else 1):
        p = Parameter(torch.full((4096 if kind == "ElasticSGD" else 3 * 4096,), x, dtype=torch.float64))
        options: dict[str, Any] = {"lr": 0.0, "inner_steps": 10**6, "gamma": 0.1, "temperature": 2.0, "scoping": 0.0}
        if kind == "ElasticSGD":
            options["replicas"] = SimpleNamespace(rank=rank, size=3, mean_=lambda flat: None)
        opt = getattr(deeprelax, kind)([p], inner_lr=inner_lr, seed=5, **options)
        if kind == "ElasticSGD":
            opt._shared.exchange.joined = True
        found = []
        for number in range(round(44 / inner_lr)):
            p.grad = 4 * p.detach() * (p.detach() ** 2 - 1)
            opt.step()
            if number * inner_lr >= 4:
                found.append(float(((x - p.detach()) / 0.1).mean()))
        forces.append(np.mean(found))
    return float(np.mean(forces))


def test_the_springs_force_is_the_gradient_of_local_entropy() -> None:
    """``expected`` is the discrete chain's, by its transition matrix; the gap to ∇f_γ is of the order of η′."""
    x, expected = 1.2, 1.3170
    forces = [mean_force("ElasticSGD", x, inner_lr) for inner_lr in (0.04, 0.02, 0.01)]
    assert forces[-1] == pytest.approx(expected, abs=0.007)
    assert mean_force("EntropySGD", x, 0.01) == pytest.approx(expected, abs=0.007)
    y = np.linspace(-4, 4, 20001)
    density = np.exp(-((y * y - 1) ** 2 + (x - y) ** 2 / 0.2))
    exact = (x - (y * density).sum() / density.sum()) / 0.1
    gaps = [force - exact for force in forces]
    assert min(gaps[0] / gaps[1], gaps[1] / gaps[2]) >= 1.6


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("ElasticSGD", {"gamma": 0.25}, "differ in gamma"),
        ("Parle", {"inner_steps": 4}, "differ in inner_steps"),
        ("ElasticSGD", {"weights": 1.0}, r"params'\]\[1\] holds other values"),
        ("Parle", {"parameters": 1}, "differ in the number of parameters"),
    ],
)
def test_workers_that_differ_are_refused_on_all_of_them(kind: str, changes: dict[str, Any], said: str) -> None:
    def work(worker: Thread) -> None:
        params, options = parameters(), dict(OPTIONS[kind])
        if worker.rank == 1:
            params = params[: changes.get("parameters", 2)]
            with torch.no_grad():
                params[-1] += changes.get("weights", 0.0)
            options |= {name: value for name, value in changes.items() if name in options}
        opt = getattr(deeprelax, kind)(params, **options, replicas=worker)
        take_step(opt, params, worker.rank, 0)

    for error in threads(2, work):
        assert isinstance(error, ValueError), error
        assert re.search(said, str(error)), error


def test_gradients_that_are_the_same_on_all_workers_are_noticed() -> None:
    def work(worker: Thread) -> Any:
        params = parameters()
        opt = deeprelax.ElasticSGD(params, **OPTIONS["ElasticSGD"], replicas=worker)
        take_step(opt, params, 0, 0)
        return opt._shared.warned

    with pytest.warns(UserWarning, match="workers' gradients are the same"):
        assert all("equal gradients" in warned for warned in threads(2, work))


@pytest.mark.parametrize("kind", ["ElasticSGD", "Parle"])
def test_all_workers_finish_together(kind: str) -> None:
    def work(worker: Thread) -> Any:
        params = parameters()
        opt = getattr(deeprelax, kind)(params, **OPTIONS[kind], replicas=worker)
        for number in range(5):
            take_step(opt, params, worker.rank, number)
        return opt.finish(), [p.detach().clone() for p in params], opt.phase

    found = threads(2, work)
    assert [(finished, phase) for finished, _, phase in found] == [(True, 0)] * 2, found
    assert same(found[0][1], found[1][1]) == (kind == "ElasticSGD")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loaded", ["before the first step", "after restart()", "after an outer step"])
def test_finish_keeps_weights_that_no_step_has_taken_yet(loaded: str, dtype: torch.dtype) -> None:
    def work(worker: Thread) -> Tensor:
        p = Parameter(torch.zeros(3, dtype=dtype))
        opt = deeprelax.ElasticSGD([p], inner_steps=2, seed=1, replicas=worker)
        for number in range({"before the first step": 0, "after restart()": 1, "after an outer step": 2}[loaded]):
            p.grad = torch.full_like(p, 1.0 + worker.rank + number)
            opt.step()
        if loaded == "after restart()":
            opt.restart()
        with torch.no_grad():
            p.fill_(5.0)
        opt.finish()
        return p.detach().clone()

    for found in threads(2, work):
        assert torch.equal(found, torch.full((3,), 5.0, dtype=dtype)), found


@pytest.mark.parametrize("kind", ["ElasticSGD", "Parle"])
@pytest.mark.parametrize("again", ["restart", "load"])
def test_a_restarted_run_is_not_moved_by_an_earlier_exchange(kind: str, again: str) -> None:
    def work(worker: Thread, before: int) -> list[Tensor]:
        params = parameters()
        opt = getattr(deeprelax, kind)(params, **OPTIONS[kind], replicas=worker, overlap=True)
        start, state = [p.detach().clone() for p in params], copy.deepcopy(opt.state_dict())
        for number in range(before):
            take_step(opt, params, worker.rank, number)
        with torch.no_grad():
            for p, held in zip(params, start):
                p.copy_(held)
        if again == "load":
            opt.load_state_dict(state)
        else:
            opt.restart()
            for group in opt.param_groups:
                group.update(gamma=0.5, **({"rho": 0.7} if kind == "Parle" else {}))
            for p in params:
                for name in opt.state[p].keys() - {"x", "y", "z"}:
                    opt.state[p][name].zero_()
        for number in range(4):
            take_step(opt, params, worker.rank, number)
        return [p.detach().clone() for p in params]

    assert all(same(a, b) for a, b in zip(threads(2, lambda w: work(w, 4)), threads(2, lambda w: work(w, 0))))


def test_weights_loaded_between_two_cycles_are_the_centre_with_overlap() -> None:
    def work(worker: Thread) -> bool:
        p = Parameter(torch.zeros(3))
        opt = deeprelax.ElasticSGD([p], inner_steps=2, seed=1, replicas=worker, overlap=True)
        for number in range(4):
            if number == 2:
                with torch.no_grad():
                    p.fill_(5.0)
            p.grad = torch.full((3,), 1.0 + worker.rank + number)
            opt.step()
        return torch.equal(opt.state[p]["x"], torch.full((3,), 5.0))

    with pytest.warns(UserWarning, match="is taken up as x"):
        assert threads(2, work) == [True, True]


@pytest.mark.parametrize("kind", ["ElasticSGD", "Parle"])
def test_batch_norm_recalibrated_at_the_centre_is_one_for_all_workers(kind: str) -> None:
    """They have gathered their own statistics, at their own weights and on their own data."""
    draw = torch.Generator().manual_seed(2)
    data = [torch.randn(8, 3, generator=draw) for _ in range(4)]
    first = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    models = [copy.deepcopy(first) for _ in range(3)]

    def work(worker: Thread) -> Any:
        model = models[worker.rank]
        opt = getattr(deeprelax, kind)(model.parameters(), **OPTIONS[kind], replicas=worker)
        for inputs in data:
            opt.zero_grad()
            model(inputs + worker.rank).square().mean().backward()
            opt.step()
        own = [b.clone() for b in model.buffers()]
        with opt.at_x(), deeprelax.recalibrate_batchnorm(model, data):
            centre = copy.deepcopy(model.state_dict())
        return own, centre, list(model.buffers())

    found = threads(3, work)
    twin = copy.deepcopy(first)
    twin.load_state_dict(found[0][1])
    deeprelax.recalibrate_batchnorm(twin, data)
    for own, centre, after in found:
        assert same(list(centre.values()), list(twin.state_dict().values()))
        assert same(own, after)
    assert not same(found[0][0], found[1][0])


def test_a_worker_with_fewer_batches_is_named_on_all_of_them(tmp_path: Path) -> None:
    for said in processes(3, "uneven", tmp_path):
        assert "1 of 3 workers have called finish()" in said


@pytest.mark.parametrize(("scenario", "within"), [("killed", 2), ("hung", 3 + 2)])
def test_a_lost_worker_is_an_error_on_the_others(scenario: str, within: float, tmp_path: Path) -> None:
    """Within two seconds, or the group's timeout of three and two more."""
    found = processes(3, scenario, tmp_path)
    assert found[2] is None
    for each in found[:2]:
        assert "the exchange with the other workers failed" in each["said"]
        assert each["seconds"] < within


@pytest.mark.parametrize("given", ["three", object()])
def test_other_replicas_are_refused_by_name(given: Any) -> None:
    with pytest.raises(TypeError, match="replicas must be None, a ProcessGroup"):
        deeprelax.ElasticSGD(parameters(), replicas=given)


@pytest.mark.parametrize("kind", ["ElasticSGD", "Parle"])
def test_several_processes_without_a_group_are_an_error(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"one of 3 processes .*init_process_group\(\) before"):
        getattr(deeprelax, kind)(parameters())


def test_without_a_process_group_there_is_one_worker() -> None:
    found = trained("ElasticSGD", 0)
    assert sum(found["calls"]) == 0
    assert same(found["params"], simulation.elastic(1)[0][0])
