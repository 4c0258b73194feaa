"""``bench/workers.py`` and ``bench/sharded.py``: every row is there, and the contestants do what their names say."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.utils import parameters_to_vector
from workers import processes

import deeprelax
from deeprelax.optim.relaxation import Relaxation

ROOT = Path(__file__).parents[2]


def script(name: str) -> Any:
    """A file of bench/ as a module: tests/distributed has modules of the same names."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_worker(rank: int) -> dict[str, Any]:
    """``bench/workers.py`` as one of two processes: its rows, and every contestant's weights at first, after each step
    of a cycle, and then at x."""
    bench, weights = script("workers"), {}
    made = bench.contestants

    def contestants(width: int) -> dict[str, Any]:
        found = made(width)
        for name, (model, opt) in found.items():
            held = weights[name] = [parameters_to_vector(model.parameters()).detach()]
            for _ in range(bench.L):
                bench.train(model, opt, *bench.batch(), steps=1)
                held.append(parameters_to_vector(model.parameters()).detach())
            if isinstance(opt, Relaxation):
                opt.eval()
                held.append(parameters_to_vector(model.parameters()).detach())
                opt.train()
        return found

    bench.contestants, bench.os = contestants, SimpleNamespace(environ=os.environ, _exit=sys.exit)
    os.environ.update(STORE=str(Path("store").absolute()), RANK=str(rank))
    sys.argv = ["workers.py", "--out=rows.json", "--width=4", "--rounds=1"]
    with pytest.raises(SystemExit):
        bench.main()
    return {"rows": json.loads(Path("rows.json").read_text()), "weights": weights}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two workers, under torchft's lighthouse."""
    pytest.importorskip("torchft", reason="torchft has no wheel for this system")
    from torchft.coordination import LighthouseServer

    server, folder = LighthouseServer("127.0.0.1:0", min_replicas=2), tmp_path_factory.mktemp("workers")
    settings = {"program": Path(__file__).stem, "GROUP": "0", "TORCHFT_LIGHTHOUSE": server.address()}
    found = processes(2, "one_worker", folder, **settings)
    server.shutdown()
    return found


def test_workers_exchange_as_often_as_their_names_say(pair: list[dict[str, Any]]) -> None:
    one, two = (worker["weights"] for worker in pair)
    # After which steps both have the same weights: 0 is the start, 21 a look at x.
    equal = {name: [k for k, both in enumerate(zip(one[name], two[name])) if torch.equal(*both)] for name in one}
    assert equal == {
        "DDP + SGD": list(range(21)),
        "PostLocalSGDOptimizer": [0, 1],  # once in L steps, the first time at once
        "DiLoCo of torchft": [0, 20],
        "ElasticSGD": [0, 21],
        "Parle": [0, 21],
        "Parle, overlap": [0, 21],
        "EntropySGD with noise, no exchange": [0],
    }
    for held in one.values():
        assert torch.equal(held[0], one["DDP + SGD"][0])
        assert all(not torch.equal(before, after) for before, after in itertools.pairwise(held[:21]))


def test_workers_writes_a_row_for_every_contestant(
    pair: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes that it starts are stood for by two that have run."""
    bench, rows, started = script("workers"), pair[0]["rows"], []

    class Started:
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            started.append((env["WORLD_SIZE"], env["RANK"]))
            Path(command[command.index("--out") + 1]).write_text(json.dumps(rows))

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(bench, "subprocess", SimpleNamespace(Popen=Started))
    monkeypatch.setattr(sys, "argv", ["workers.py", "--out", str(tmp_path / "w.json"), "--width", "4"])
    bench.main()
    assert started == [("2", "0"), ("2", "1"), ("3", "0"), ("3", "1"), ("3", "2")]
    result = json.loads((tmp_path / "w.json").read_text())
    assert result["measured"] == {"2": rows, "3": rows}
    assert [row["name"] for row in rows] == list(pair[0]["weights"])
    assert all(min(row["ms"], row["by_ddp"], row["by_alone"]) > 0 for row in rows)
    assert rows[0]["by_ddp"] == rows[-1]["by_alone"] == 1
    assert result["elements"] == len(pair[0]["weights"]["Parle"][0])
    ddp, elastic, overlap = (list(times.values()) for times in result["model"].values())
    assert all(rows[-1]["ms"] <= a <= b < c for a, b, c in zip(overlap, elastic, ddp, strict=True))


def sharded_once(rank: int) -> dict[str, Any]:
    """What ``bench/sharded.py`` writes, the tables of its kernels, and whether DTensors are updated as tensors."""
    bench, tables = script("sharded"), []
    table, bench.TENSORS = bench.Table, 3

    def recorded(weights: list[Tensor], *rest: Any) -> Any:
        tables.append((weights[0].numel(), *rest[1:]))
        return table(weights, *rest)

    bench.Table, bench.dist.destroy_process_group = recorded, lambda: None
    sys.argv = ["sharded.py", "--rounds=1", "--out=sharded.json"]
    bench.main()
    updated = {}
    for name, options in bench.OPTIMIZERS.items():
        for mesh in (None, DeviceMesh("cpu", [0])):
            torch.manual_seed(0)
            params = bench.parameters(mesh)
            assert all(isinstance(t, DTensor) == (mesh is not None) for p in params for t in (p, p.grad))
            getattr(deeprelax, name)(params, **options).step()
            local = [p.to_local() if isinstance(p, DTensor) else p for p in params]
            updated.setdefault(name, []).append(torch.cat(local).detach())
    return {"result": json.loads(Path("sharded.json").read_text()), "tables": tables, "updated": updated}


def test_sharded_writes_every_row_and_measures_what_it_says(tmp_path: Path) -> None:
    (found,) = processes(1, "sharded_once", tmp_path, program=Path(__file__).stem, GROUP="0")
    result, names = found["result"], ["EntropySGD", "HJ"]
    sgd, rows = "torch.optim.SGD(foreach=True)", result["host"] + result["kernels"]
    assert all(value > 0 for row in rows for value in row.values() if isinstance(value, float))
    host = [(row["name"], row["new_gradients"]) for row in result["host"]]
    assert host == [(name, new) for new in (False, True) for name in (*names, sgd)]
    assert all(row["by_sgd"] == 1 for row in result["host"] if row["name"] == sgd)
    runs = [(length, 2 * length) for length in (128, 512, 129, 513)]
    parts = ["whole", *(f"from element {k} on" for k in (1, 2, 3)), *(f"every other run of {n}" for n, _ in runs)]
    assert [(row["name"], row["part"]) for row in result["kernels"]] == [
        (name, part) for name in names for part in parts
    ]
    places = [([k], [None]) for k in range(4)] + [([0], [run]) for run in runs]
    assert [table[1:] for table in found["tables"]] == 2 * places
    for tensors, dtensors in found["updated"].values():
        assert torch.equal(tensors, dtensors)
