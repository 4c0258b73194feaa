"""What ``bench/gpu.py`` measures with: the clock of a device, and the builder of variants."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))

from gpu_bench import variants  # noqa: E402
from gpu_bench.timing import Contestant, DeviceTimer, HostTimer, Sample, measure  # noqa: E402


class MadeUpEvent:
    """An event of a device that is a clock with hands moved by the test."""

    def __init__(self, device: list[float], done: bool) -> None:
        self.device, self.done, self.at = device, done, 0.0

    def record(self) -> None:
        self.at = self.device[0]

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: MadeUpEvent) -> float:
        return end.at - self.at


@pytest.mark.parametrize("done", [False, True])
def test_the_device_is_kept_busy_for_twice_as_long_as_the_host_took(
    done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    milliseconds, host, busy = [0.0], iter([0.0, 0.25, 1.0, 1.004]), []
    monkeypatch.setattr("time.perf_counter", lambda: next(host))
    timer = DeviceTimer(busy.append, lambda: MadeUpEvent(milliseconds, done))

    def enqueue() -> None:
        milliseconds[0] += 12

    samples = [timer("a", Contestant(enqueue, 4)) for _ in range(2)]
    assert busy == [DeviceTimer.FIRST, DeviceTimer.MOST]
    assert samples[0] == Sample(pytest.approx(3e-3), pytest.approx(0.0625), done)


def test_contestants_alternate_and_none_comes_always_after_the_same_one() -> None:
    order: list[str] = []

    def note(name: str) -> Callable[[], None]:
        return lambda: order.append(name)

    measure({name: Contestant(note(name), 1) for name in "abc"}, HostTimer(), rounds=20, warm_up=0)
    rounds = [order[k : k + 3] for k in range(0, 60, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    for name in "abc":
        before = {order[k - 1] for k in range(1, 60) if order[k] == name}
        assert before >= set("abc") - {name}


def test_the_constants_that_variants_set_are_in_the_headers() -> None:
    headers = "".join(path.read_text() for path in (ROOT / "csrc").glob("*.h"))
    for macros in variants.VARIANTS.values():
        assert all(f"#ifndef {name}\n" in headers for name in macros)


def test_a_variant_is_compiled_with_its_constants_and_a_failure_says_what_nvcc_said(tmp_path: Path) -> None:
    if variants.nvcc() is None:
        pytest.skip("no nvcc")
    given = {"good": {"DR_CUDA_CHUNK_BYTES": "2048"}, "bad": {"DR_CUDA_CHUNK_BYTES": "no_number"}}
    builder = variants.Builder(tmp_path, "90", given, sources=("module",))
    builder.wait(120)
    assert (tmp_path / "variant0" / "module.o").stat().st_size > 1000
    built = dict((name, why) for name, _, why in builder.built())
    assert "no_number" in built["bad"]


def test_variants_that_were_given_up_or_failed_leave_those_that_were_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler of one line: "bad" fails, "slow" is still at it when the time is over."""
    compiler = tmp_path / "nvcc"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *BAD*) echo no; exit 1;; *SLOW*) sleep 600;; esac\n'
        'for out; do :; done; exec touch "$out"\n'  # what is last on the command line
    )
    compiler.chmod(0o755)
    monkeypatch.setattr(variants, "nvcc", lambda: str(compiler))
    given = {"bad": {"BAD": "1"}, "slow": {"SLOW": "1"}, "good": {}}
    builder = variants.Builder(tmp_path, "90", given, sources=("module",))
    builder.wait(2)
    variants.store(builder.built(), tmp_path / "variants.json")
    loaded: list[Path] = []
    monkeypatch.setattr(variants, "load", loaded.append)
    monkeypatch.setattr(variants, "Cuda", lambda module: "a backend")
    found = dict(variants.stored(tmp_path / "variants.json"))
    assert list(found) == list(given)
    for name in ("bad", "slow"):
        with pytest.raises(RuntimeError, match=r"nvcc failed|given up"):
            found[name]()
    assert found["good"]() == "a backend"
    assert loaded == [tmp_path / "variant2" / "_cuda.so"]
