"""Workers under torchft's manager, one killed and one joining."""

from __future__ import annotations

import hashlib
import os
import pickle
from typing import Any

import pytest
import torch

pytest.importorskip("torchft", reason="torchft has no wheel for this system")
from quorum import OPTIONS
from torchft.coordination import LighthouseServer
from workers import processes


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What each worker held after every outer step."""
    folder = tmp_path_factory.mktemp("quorum")
    os.environ.setdefault("RUST_LOG", "error")
    lighthouse = LighthouseServer("127.0.0.1:0", min_replicas=1, join_timeout_ms=30000, heartbeat_timeout_ms=2000)
    try:
        ended = processes(4, "worker", folder, 200.0, "quorum", GROUP="0", LIGHTHOUSE=lighthouse.address())
    finally:
        lighthouse.shutdown()
    assert ended == [True, True, None, None]
    return {rank: pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(4)}


def digest(tensors: list[torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()


def test_the_others_continue_with_equal_centres_after_a_kill(held: dict[int, Any]) -> None:
    assert held[0].keys() == held[1].keys()
    assert max(held[2]) == 3 < max(held[3]) < max(held[0])
    for step in held[0]:
        assert len({digest(found[step]["centre"]) for found in held.values() if step in found}) == 1
    assert len({digest(found["centre"]) for found in held[0].values()}) == len(held[0])


def test_the_centre_follows_the_mean_of_the_workers_that_took_part(held: dict[int, Any]) -> None:
    """Once a committed step, also where the exchange had to be repeated without the worker that was killed in it."""
    for step in range(2, max(held[0]) + 1):
        found = [worker[step] for worker in held.values() if step in worker and not worker[step]["joining"]]
        assert {each["size"] for each in found} == {len(found)}
        for k, x in enumerate(held[0][step - 1]["centre"]):
            mean = torch.stack([each["point"][k] for each in found]).mean(0)
            expected = x + OPTIONS["lr"] / OPTIONS["gamma"] * (mean - x)
            torch.testing.assert_close(held[0][step]["centre"][k], expected)


def test_a_new_worker_begins_at_the_others_centre(held: dict[int, Any]) -> None:
    joined = [(rank, step) for rank, worker in held.items() for step, found in worker.items() if found["joining"]]
    assert joined[-1] == (3, min(held[3]))
    assert [step for _, step in joined[:-1]] == [1, 1]  # two of the first three, which began with other weights
    for rank, step in joined:
        assert digest(held[rank][step]["point"]) == digest(held[rank][step]["centre"])
