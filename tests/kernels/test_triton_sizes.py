"""The table of the Triton kernels' sizes, and the script that is to choose them on a GPU."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from interpreter import INTERPRETED, interpreted, run_interpreted

pytest.importorskip("triton")

import tune_triton
from gpu_bench import triton_ahead
from gpu_bench.timing import Contestant, HostTimer, Sample
from gpu_bench.triton_ahead import Ahead
from gpu_bench.triton_candidates import DTYPES, OPTIMIZERS, Work, candidates, kinds

from deeprelax.benchmark.traffic import bytes_moved
from deeprelax.kernels.triton import kernels as triton_kernels
from deeprelax.kernels.triton.sizes import SIZES, Kind, Sizes

CPU = torch.device("cpu")

if not INTERPRETED:

    def test_the_sweep_runs_in_the_interpreter() -> None:
        run_interpreted(__file__)


class MadeUpTimer:
    """Runs the work; says that a copy takes 4 ms and the calls what ``seconds`` says, else 10 ms."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.order = seconds, list[str]()

    def __call__(self, name: str, contestant: Contestant) -> Sample:
        self.order.append(name)
        contestant.enqueue()
        return Sample(4e-3 if name == "copy" else self.seconds.get(name, 10e-3), 1e-5, False)


HJ: Kind = ("hj", 4, False)


@interpreted
def test_every_kind_of_kernel_is_measured_beside_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_triton, "CALLS", 1)  # the interpreter is slow
    for kind in kinds():
        present = SIZES[kind]
        chosen = [present, Sizes(256, present.per_thread, 1)]
        timer = MadeUpTimer({str(present): 10e-3, str(chosen[1]): 5e-3})
        found = tune_triton.sweep(kind, chosen, 300, CPU, timer, 1)
        assert [(row["block"], row["present"]) for row in found["rows"]] == [(256, False), (present.block, True)]
        moved = bytes_moved(OPTIMIZERS[kind[0]], DTYPES[kind[1]], "inner")
        assert found["rows"][0]["of_copy"]["median"] == pytest.approx(moved / 8 * 4 / 5)
        assert found["line"] == tune_triton.line(kind, chosen[1])
        everyone = ["copy", *map(str, chosen)]
        assert timer.order[:6] == 2 * everyone  # two rounds warm up
        assert sorted(timer.order[6:]) == sorted(everyone)


@interpreted
def test_a_candidate_that_fails_does_not_take_the_others_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bad, real = Sizes(512, 4, 4), Work.run

    def run(self: Work, backend: Any) -> None:
        if backend._sizes[HJ] == bad:
            raise RuntimeError("out of resource: made up")
        real(self, backend)

    monkeypatch.setattr(Work, "run", run)
    found = tune_triton.sweep(HJ, [SIZES[HJ], bad, Sizes(256, 4, 1)], 300, CPU, HostTimer(), 1)
    assert {row["block"] for row in found["rows"]} == {SIZES[HJ].block, 256}
    assert [(e["block"], "made up" in e["error"]) for e in found["errors"]] == [(512, True)]
    assert "1 failed: " in tune_triton.said(found)
    found = tune_triton.sweep(HJ, [bad], 300, CPU, HostTimer(), 1)
    assert (found["rows"], found["line"]) == ([], None)
    assert "nothing was measured" in tune_triton.said(found)


def run_command(out: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    given = ["--device", "cpu", "--elements", "300", "--rounds", "1", "--out", str(out), *arguments]
    done = CliRunner().invoke(tune_triton.main, given, catch_exceptions=False)
    return json.loads(out.read_text()), done.output


@interpreted
def test_the_sweep_stores_every_candidate_and_prints_the_line_of_the_best(tmp_path: Path) -> None:
    found, output = run_command(tmp_path / "new/sizes.json", "--rule", "hj", "--dtype", "bfloat16")
    (hj,) = found["kinds"]
    assert (hj["rule"], hj["bytes"], hj["noise"], found["complete"]) == ("hj", 2, False, True)
    assert len(hj["rows"]) == len(list(candidates(("hj", 2, False))))
    assert hj["line"] in output
    namespace: dict[str, Any] = {"Sizes": Sizes}
    (line,) = eval("{" + output + "}", namespace).items()  # as it stands, it belongs into the table
    assert line[0] == ("hj", 2, False)
    assert line[1] in candidates(line[0])


@interpreted
def test_what_a_sweep_has_is_written_as_each_kind_ends_and_a_kind_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen, order = tmp_path / "sizes.json", list[int](), list[Kind]()

    def sweep(kind: Kind, *_: Any) -> dict[str, Any]:
        order.append(kind)
        seen.append(len(json.loads(out.read_text())["kinds"]) if out.exists() else 0)
        if len(order) == 2:
            raise RuntimeError("no memory: made up")
        return {**tune_triton.named(kind), "rows": [], "errors": [], "line": None}

    monkeypatch.setattr(tune_triton, "sweep", sweep)
    found, output = run_command(out)
    assert seen == list(range(len(kinds())))
    assert [kind[1] for kind in order] == [4] * 5 + [2] * 5 + [8] * 5
    assert "made up" in found["kinds"][1]["errors"][0]["error"]
    assert "made up" in output
    assert found["complete"]


@pytest.mark.parametrize(("seconds", "changed"), [(9.98e-3, False), (9.9e-3, True)])
def test_present_sizes_are_kept_unless_others_gain_more_than_noise(seconds: float, changed: bool) -> None:
    other, present = Sizes(256, 4, 1), SIZES[HJ]
    samples = {str(present): [Sample(10e-3, 0, False)] * 3, str(other): [Sample(seconds, 0, False)] * 3}
    assert tune_triton.choose(HJ, [other, present], samples) == (other if changed else present)
    assert tune_triton.choose(HJ, [other], samples) == other


def test_kinds_with_targets_come_first_and_can_be_chosen() -> None:
    # Those that no other part measures are left out: OuterLoop's pass, and EntropyAdamW with noise.
    left_out = {kind for kind in SIZES if kind[0] == "outer" or kind[::2] == ("entropy_adamw", True)}
    assert set(kinds()) == set(SIZES) - left_out
    assert kinds(("hj",)) == [("hj", 4, False), ("hj", 2, False), ("hj", 8, False)]
    assert kinds((), ("float32",)) == [kind for kind in kinds() if kind[1] == 4]
    assert kinds(("heat",), ("bfloat16", "float64")) == [("heat", 2, True), ("heat", 8, True)]


def note(kind: Kind, sizes: Sizes) -> None:
    """What stands in for the compiler: fails for a block of 512."""
    if sizes.block == 512:
        raise RuntimeError("made up")
    Path(os.environ["NOTED"], f"{kind[1]}-{sizes.block}").touch()


@pytest.mark.skipif(INTERPRETED, reason="once is enough")
def test_candidates_are_compiled_ahead_in_other_processes_and_one_that_fails_is_left_for_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTED", str(tmp_path))
    first, second = ("hj", 4, False), ("hj", 2, False)
    work = {first: [Sizes(n, 4, 1) for n in (256, 512, 1024)], second: [Sizes(2048, 8, 1)]}
    ahead = Ahead(work, 1, note)
    try:
        ahead.wait(first)
        assert {"4-256", "4-1024"} <= {path.name for path in tmp_path.iterdir()}
        ahead.wait(second)
        assert {path.name for path in tmp_path.iterdir()} == {"4-256", "4-1024", "2-2048"}
    finally:
        ahead.stop()


@pytest.mark.skipif(INTERPRETED, reason="needs the compiler")
def test_what_is_compiled_ahead_is_what_will_be_run_and_nothing_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a driver that knows which GPU it has, and that cannot launch."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class NoLaunch:
        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    compiled = []
    monkeypatch.setattr(driver, "_active", NoLaunch())
    monkeypatch.setattr(triton_ahead, "Work", lambda kind, elements, device: Work(kind, elements, CPU))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    kernel, real = triton_kernels.update, triton_kernels.update._do_compile

    def compile_(*arguments: Any) -> Any:
        compiled.append(real(*arguments))
        return compiled[-1]

    monkeypatch.setattr(kernel, "_do_compile", compile_)
    kernel.device_caches.clear()
    try:
        triton_ahead.compile_one(HJ, Sizes(512, 4, 4))
        assert [c.metadata.num_warps for c in compiled] == [4]
        full = Work(HJ, 2**14, CPU)  # another size finds it
        launch = full.launch(full.backend(Sizes(512, 4, 4)))
        kernel.warmup(grid=launch.grid, **launch.arguments, **launch.options)
        assert len(compiled) == 1
    finally:
        kernel.device_caches.clear()


def test_the_sweep_says_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(tune_triton.main, [])
    assert done.exit_code == 2
    assert "there is no GPU to measure on" in done.output


@pytest.mark.parametrize("kind", SIZES)
def test_a_thread_accesses_16_bytes_of_weights(kind: Kind) -> None:
    for sizes in (SIZES[kind], *candidates(kind)):
        assert sizes.block // (32 * sizes.warps) * kind[1] >= 16


def test_the_present_sizes_are_among_the_candidates() -> None:
    assert all(present in candidates(kind) for kind, present in SIZES.items())


@pytest.mark.parametrize("sizes", [(1000, 4, 4), (1024, 2, 8), (1024, 8, 8), (1024, 4, 3), (0, 4, 8)])
def test_sizes_that_no_kernel_can_have_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be powers of two"):
        Sizes(*sizes)
