"""``bench/gpu.py`` measures what it says: its parts on the CPU, small, with emulated kernels and a made-up clock."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import deeprelax
from deeprelax import kernels
from deeprelax.benchmark.traffic import bytes_moved, peer_bytes_moved
from deeprelax.kernels import Backend, Flag
from deeprelax.kernels.reference import Eager

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import sanitize  # noqa: E402
from emulated_gpu import CPU, TINY, MadeUpTimer  # noqa: E402
from gpu_bench import host_part, kernels_part, machine, parts, steps_part, sweep_part  # noqa: E402
from gpu_bench.calls import (  # noqa: E402
    CONFIGURATIONS,
    COPY_BYTES,
    EXTRAS,
    FP32,
    KINDS,
    RULES,
    Configuration,
    Extra,
    Memory,
    Rule,
)
from gpu_bench.context import Context, Scale  # noqa: E402
from gpu_bench.record import Budget, Record  # noqa: E402
from gpu_bench.timing import Contestant, Sample, Timer  # noqa: E402
from updates import Watched  # noqa: E402


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The CUDA kernels' code on CPU tensors, for optimizers that ask for "cuda" too."""
    module = pytest.importorskip("deeprelax._cuda")
    from deeprelax.kernels.cuda import Cuda

    backend, real = Cuda(module, emulated=True), kernels.get
    for place in ("deeprelax.optim.bucket.get", "deeprelax.optim.device_clock.get"):
        monkeypatch.setattr(place, lambda name, device: backend if name == "cuda" else real(name, device))
    return backend


@pytest.fixture
def context(emulated: Backend, tmp_path: Path) -> Context:
    return make_context({"cuda": emulated}, tmp_path, MadeUpTimer())


def make_context(backends: dict[str, Backend], folder: Path, timer: Timer, seconds: float = 1e6) -> Context:
    record = Record(folder / "out", {"gpu": "none"})
    return Context(CPU, backends, timer, lambda: None, record, Budget(seconds), TINY)


def rows(context: Context, part: str, key: str = "rows", **wanted: Any) -> list[dict[str, Any]]:
    found = context.record.results(part)[key]
    return [r for r in found if all(r[name] == value for name, value in wanted.items())]


def test_every_kernel_is_measured_in_every_configuration_and_kind_of_call(context: Context) -> None:
    kernels_part.run(context)
    assert not context.record.data["parts"]["kernels"].get("errors")
    for rule in RULES:
        for configuration in CONFIGURATIONS:
            for kind in KINDS:
                found = rows(context, "kernels", rule=rule.name, configuration=configuration.name, kind=kind)
                assert len(found) == 1
                moved = bytes_moved(rule.optimizer, configuration.dtype, kind, weight_decay=configuration.weight_decay)
                assert found[0]["bytes_per_element"] == moved
                # In twice the time of a copy, which moves 8 bytes an element.
                assert found[0]["of_copy"]["median"] == pytest.approx(moved / 8 / 2)
                assert found[0]["gb_per_s"] == pytest.approx(moved * TINY.elements / 2e-3 / 1e9)
    names = {"copy", *(f"{rule.name} [cuda]" for rule in RULES)}
    for configuration in ("fp32", "bf16"):
        for size in TINY.sizes:
            found = rows(context, "kernels", "sizes", elements=size, configuration=configuration)
            assert {r["name"] for r in found} == names
    (hj,) = rows(context, "kernels", "sizes", elements=128, configuration="bf16", name="HJ [cuda]")
    moved = bytes_moved("HJ", torch.bfloat16, "inner")
    assert hj["gb_per_s"] == pytest.approx(moved * 128 / 2e-3 / 1e9)


def test_the_copys_bandwidth_is_that_of_the_largest_one_and_not_a_faster_small_ones(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: Any) -> list[dict[str, Any]]:
        configuration, size = _[2], _[3]
        named = {"name": "copy", "configuration": configuration.name, "elements": size}
        return [{**named, "gb_per_s": 9000.0 if size == 128 else 4000.0}]

    monkeypatch.setattr(kernels_part, "over_sizes", measured)
    kernels_part.run(context)
    assert context.record.results("kernels")["copy_gb_per_s"] == 4000.0


def test_settings_without_traffic_of_their_own_are_measured_beside_the_plain_call(context: Context) -> None:
    kernels_part.run(context)
    found = rows(context, "kernels", "extras")
    assert {(r["extra"], r["configuration"]) for r in found} == {(e.name, c) for e in EXTRAS for c in ("fp32", "bf16")}
    assert all(r["by_plain"] == 1 for r in found)
    (row,) = rows(context, "kernels", "extras", extra="captured, GradScaler", configuration="bf16")
    assert row["of_copy"]["median"] == pytest.approx(24 / 8 / 2)
    context.record.save()
    assert "| weight decay [cuda] | bf16 |" in (context.record.folder / "gpu.md").read_text()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: extra.name)
def test_an_extra_is_the_inner_call_that_its_name_says(extra: Extra, dtype: torch.dtype, emulated: Backend) -> None:
    moved = []
    for backend, of in ((emulated, extra), (Eager(), extra), (emulated, EXTRAS[0])):
        torch.manual_seed(0)
        memory = Memory(2**9, CPU)
        memory.extra(backend, RULES[0], of, dtype)()
        moved.append([memory.wide["w"], memory.narrow["w"], memory.x, memory.y, memory.average])
    assert all(map(torch.equal, moved[0], moved[1]))
    same_as_plain = all(map(torch.equal, moved[0], moved[2]))
    assert same_as_plain == (extra == EXTRAS[0])
    grads = memory._bound(emulated, RULES[0], dtype, 2**9, 0, extra.shift)[1]
    assert grads[0] is not None
    assert (grads[0].data_ptr() % 16 == 0) == (extra.name != "gradient unaligned")


def test_a_cycles_bandwidth_weighs_its_calls_by_how_often_they_come(context: Context) -> None:
    kernels_part.run(context)
    (hj,) = rows(context, "kernels", "cycles", rule="HJ", configuration="fp32")
    assert hj["bytes_per_element"] == pytest.approx((20 + 3 * 20 + 16) / 5)
    assert hj["of_copy"] == pytest.approx((20 + 3 * 20 + 16) / 5 / 8 / 2)
    times = {"first": 1.0, "inner": 2.0, "last": 4.0}
    assert Rule("", "HJ", False, 5).per_cycle(times) == pytest.approx((1 + 2 + 2 + 2 + 4) / 5)


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda c: c.name)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_is_timed_is_the_reference_call(rule: Rule, configuration: Configuration, emulated: Backend) -> None:
    """First, inner and last differ, and each changes the memory as the reference does, on its own slice alone."""
    seen = []
    for kind in KINDS:
        call = rule.call(kind, configuration.weight_decay)
        ends = call.flags & Flag.FIRST, call.flags & Flag.LAST
        assert tuple(map(bool, ends)) == (kind == "first", kind == "last")
        memories = []
        for backend in (emulated, Eager()):
            torch.manual_seed(0)
            memories.append(Memory(2**9, CPU))
            memories[-1].launch(backend, rule, call, configuration.dtype, 2**8, 1)()
        found, expected = ([m.wide["w"], m.narrow["w"], m.x, m.y, m.average] for m in memories)
        assert all(map(torch.equal, found, expected))
        torch.manual_seed(0)
        untouched = Memory(2**9, CPU)
        assert torch.equal(found[2][: 2**8], untouched.x[: 2**8])
        seen.append(torch.cat([t.float() for t in found]))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_noise_is_drawn_where_the_name_says_so() -> None:
    scales = {rule.name: getattr(rule.call("inner"), "noise_scale", 0.0) for rule in RULES}
    assert {name for name, scale in scales.items() if scale} == {"EntropySGD, noise", "Heat"}


H200_CACHE = 60 * 2**20


def test_small_sizes_rotate_over_several_times_what_the_cache_holds() -> None:
    """Between two calls on the same slice, of whatever contestants, even copies have moved 4 times the cache."""
    full = Scale()
    memory = Memory.__new__(Memory)
    memory.elements, memory._cache = full.elements, H200_CACHE
    for size in full.sizes:
        calls = kernels_part.calls_together(size)
        slices = memory.slices(size, calls)
        assert slices * size <= full.elements
        between = (slices - calls) * size * COPY_BYTES
        assert between >= 4 * H200_CACHE or (slices - 1) * size == full.elements - size


def test_no_call_is_on_memory_that_the_one_before_has_left_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, emulated: Backend
) -> None:
    """Contestants and rounds go on where the one before has ended."""
    seen: list[int] = []

    class Noting(Watched):
        def before(self, rule: Any, table: Any, scalars: Any) -> None:
            seen.append(table.weights[0].storage_offset() // 128)

    memory = Memory(2**11, CPU, cache=128 * COPY_BYTES)  # of one slice's copy
    assert memory.slices(128, 3) == 7
    kernel = memory.contestant(Noting(), RULES[2], RULES[2].call("inner"), torch.float32, 128, 3)
    copies = memory.copies(128, 3)
    monkeypatch.setattr(Tensor, "copy_", lambda to, source: seen.append(to.storage_offset() // 128))
    for contestant in (copies, kernel, copies, kernel):
        contestant.enqueue()
    assert seen == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]


def test_every_slice_is_launched_on_before_it_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a table uploads when it is first used must not be in a sample."""
    events: list[Any] = []

    class Noting(Watched):
        def before(self, rule: Any, table: Any, scalars: Any) -> None:
            events.append((rule.name, table.dtype, table.weights[0].storage_offset()))

    class Timing(MadeUpTimer):
        def __call__(self, name: str, contestant: Contestant) -> Sample:
            events.append("timed")
            return super().__call__(name, contestant)

    context = make_context({"noting": Noting()}, tmp_path, Timing())
    memory = Memory(2**11, CPU, cache=128 * COPY_BYTES)
    monkeypatch.setattr(kernels_part, "calls_together", lambda size: 3)
    kernels_part.over_sizes(context, memory, FP32, 128)
    before = events[: events.index("timed")]
    assert len(set(before)) == 4 * 7  # both kinds of Entropy-SGD are one rule


def test_whole_steps_are_compared_with_adamw_in_proportion_to_bytes(context: Context) -> None:
    steps_part.run(context)
    assert not context.record.data["parts"]["steps"].get("errors")
    adamw = peer_bytes_moved(steps_part.ADAMW, torch.float32)
    for workload in TINY.workloads:
        for captured in (False, True):
            group = rows(context, "steps", workload=workload.name, captured=captured, backend="cuda")
            assert {r["name"] for r in group} == {rule.name for rule in RULES} | set(steps_part.PEERS)
            (hj,) = (r for r in group if r["name"] == "HJ")
            assert hj["by_adamw"] == pytest.approx(0.5)
            assert hj["by_adamw_per_byte"] == pytest.approx(0.5 / (19.2 / adamw))


def test_plain_torch_is_measured_in_two_processes_of_which_one_compiles(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(steps_part.PLAIN, steps_part.COMPILED, steps_part.EagerEntropySGD)
    seen = []
    for of in (parts.PLAIN, parts.COMPILED):
        parts.measure(f"steps/{of}", context, Path())
        seen.append([r["name"] for r in rows(context, "steps", backend="plain torch")])
    assert seen == [[steps_part.ADAMW, *list(steps_part.PLAIN)[:2]], [steps_part.ADAMW, steps_part.COMPILED]]


def test_a_whole_cycle_of_steps_is_timed(emulated: Backend) -> None:
    params = steps_part.parameters(TINY.workloads[0], CPU)
    for rule in RULES:
        opt = steps_part.make(rule, params, "cuda", False)
        for p in params:
            p.grad = torch.ones_like(p)
        contestant = steps_part.steps(opt.step, rule.length)
        contestant.enqueue()
        assert contestant.calls == rule.length
        assert opt.outer_step_happened
        assert opt.phase == 0


def test_host_time_is_measured_by_that_of_fused_sgd(context: Context) -> None:
    host_part.run(context)
    results = context.record.results("host")
    names = {r["name"] for r in results["rows"]}
    ours = [f"{name} [cuda]" for name in host_part.OPTIMIZERS]
    stay = {host_part.SGD, *ours}
    assert names == stay | {f"{name}, new gradients" for name in stay} | {
        f"{name} [cuda, capturable]" for name in host_part.OPTIMIZERS
    }
    assert all(r["by_sgd"] > 0 for r in results["rows"])
    for name in (host_part.SGD, host_part.SGD + ", new gradients"):
        assert next(r for r in results["rows"] if r["name"] == name)["by_sgd"] == 1
    judged = {r["name"] for r in results["rows"] if r["judged"]}
    assert judged == {*ours, *(f"{name}, new gradients" for name in ours)}
    assert any("relaxation.py" in line for line in results["profiles"]["HJ [cuda]"])


def test_new_gradients_are_uploaded_at_every_step_and_putting_them_in_place_is_not_timed(emulated: Backend) -> None:
    """Each set is where it was two steps ago, and not where it was one ago."""
    now, seen = [0.0], list[tuple[int, ...]]()
    opt = deeprelax.HJ([torch.nn.Parameter(torch.ones(3)) for _ in range(2)], backend="eager")
    for p in opt.param_groups[0]["params"]:
        p.grad = torch.ones(3)
    exchange = host_part.Exchange(opt)

    def before() -> None:
        now[0] += 100.0
        exchange()

    def step() -> None:
        now[0] += 1.0
        seen.append(tuple(p.grad.data_ptr() for p in opt.param_groups[0]["params"]))

    timer = host_part.QueueTimer(lambda: None, {"new": before}, clock=lambda: now[0])
    assert timer("new", Contestant(step, 1)) == pytest.approx((1.0, 1.0, False))
    assert len(seen) == host_part.STEPS
    assert all(seen[i] != seen[i + 1] for i in range(len(seen) - 1))
    assert all(seen[i] == seen[i + 2] for i in range(len(seen) - 2))
    assert timer("as before", Contestant(step, 1)) == pytest.approx((1.0, 1.0, False))
    assert len(set(seen[host_part.STEPS :])) == 1


def test_variants_are_measured_beside_the_kernels_as_built(context: Context, emulated: Backend) -> None:
    """One that could not be built, or fails in one rule, does not take those after it along."""

    def no_variant() -> Backend:
        raise RuntimeError("nvcc failed: made up")

    given: list[tuple[str, Callable[[], Backend]]]
    given = [("bad", no_variant), ("broken", BrokenBackend), ("other", lambda: emulated)]
    sweep_part.run(context, given)
    found = {(r["variant"], r["rule"], r["configuration"]) for r in rows(context, "sweep")}
    whole = {(v, rule.name, c) for v in (sweep_part.BUILT, "other") for rule in RULES for c in ("fp32", "bf16")}
    assert found - whole == {
        ("broken", rule.name, c) for rule in RULES if rule.name != "Heat" for c in ("fp32", "bf16")
    }
    assert whole <= found
    errors = context.record.data["parts"]["sweep"]["errors"]
    assert [e["what"] for e in errors] == ["bad: building it", "broken: Heat, fp32", "broken: Heat, bf16"]
    assert "made up" in errors[0]["traceback"]


def a_run(context: Context, folder: Path, seconds: float = 100.0) -> parts.Run:
    return parts.Run([], [], context.record, Budget(seconds), folder, contextlib.ExitStack(), "90")


TUNER = """
import sys
assert sys.argv[1] == "--out"
open(sys.argv[2], "w").write("the figures")
print("the best of all blocks")
"""


def test_the_triton_tuner_is_run_where_the_cuda_kernels_are_not_and_its_figures_are_among_the_results(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = tmp_path / "tune.py"
    tuner.write_text(TUNER)
    monkeypatch.setattr(parts, "TUNER", tuner)
    run = a_run(context, tmp_path)
    run.backends = ["triton"]
    _, sweep = run.prepare(["sweep"])["sweep"]
    sweep()
    said = context.record.results("sweep")["triton"]
    assert "the best of all blocks" in said
    assert "exit status 0" in said
    assert (context.record.folder / parts.TUNED).read_text() == "the figures"


def test_a_tuner_that_has_no_time_is_left_out_and_named(context: Context, tmp_path: Path) -> None:
    a_run(context, tmp_path, 30.5).tune(tmp_path / "tune.py", 25.0)
    assert context.record.results("sweep")["left_out"] == ["tune.py: 5 s were left"]


class Noting(Watched):
    """Notes which kernels it is asked for."""

    name = "noting"

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()
        self.ticked: set[Any] = set()

    def before(self, rule: Any, table: Any, scalars: Any) -> None:
        if scalars is None:
            self.ticked.add((rule.name, table.dtype))
        else:
            self.seen.add((rule.name, scalars.flags, scalars.weight_decay, table.dtype))


def test_all_that_will_be_measured_is_compiled_ahead_by_one_of_the_shards(tmp_path: Path) -> None:
    ahead, measured = Noting(), Noting()
    for shard in range(4):
        kernels_part.compile_ahead(make_context({"x": ahead}, tmp_path, MadeUpTimer()), shard, 4)
    kernels_part.run(make_context({"x": measured}, tmp_path, MadeUpTimer()))
    assert ahead.seen == measured.seen
    assert ahead.ticked == measured.ticked
    assert len(ahead.ticked) == 2
    assert len(ahead.seen) == len(RULES) * len(CONFIGURATIONS) * len(KINDS) + 1  # bf16 with weight decay


class BrokenBackend(Watched):
    """Fails in one rule."""

    name = "broken"

    def __init__(self) -> None:
        super().__init__(Eager())

    def before(self, rule: Any, table: Any, scalars: Any) -> None:
        if rule.name == "heat":
            raise RuntimeError("no heat here")


def test_a_kernel_that_fails_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    context = make_context({"broken": BrokenBackend()}, tmp_path, MadeUpTimer())
    kernels_part.run(context)
    assert {r["rule"] for r in rows(context, "kernels")} == {rule.name for rule in RULES} - {"Heat"}
    assert "no heat here" in context.record.data["parts"]["kernels"]["errors"][0]["traceback"]


def test_what_the_budget_does_not_allow_is_left_out_and_named(emulated: Backend, tmp_path: Path) -> None:
    context = make_context({"cuda": emulated}, tmp_path, MadeUpTimer(), seconds=15)
    kernels_part.run(context)
    assert context.record.results("kernels")["left_out"] == ["cuda: sizes from 128 on", "cuda: extras on fp32"]
    assert len(rows(context, "kernels")) == len(RULES) * len(CONFIGURATIONS) * len(KINDS)
    steps_part.run(context)
    assert "resnet50, tiny [cuda]" in context.record.results("steps")["left_out"]


def test_the_commit_is_that_of_the_repository() -> None:
    head = machine.output(["git", "rev-parse", "HEAD"])
    assert machine.about(None, CPU)["commit"].removesuffix(" with changes") == (head or "unknown")
    assert machine.output(["no-such-program"]) is None


def test_the_sanitizers_run_takes_every_rule_dtype_and_kind_of_call(emulated: Backend) -> None:
    seen = set()

    class Noting(Watched):
        def before(self, rule: Any, table: Any, scalars: Any) -> None:
            aligned = {w.data_ptr() % 16 == 0 for w in table.weights if w.numel()}
            place = scalars.flags & (Flag.FIRST | Flag.LAST)
            seen.add((rule.name, table.dtype, place, aligned == {True}))
            ends = (w.storage_offset() + w.numel() == w.untyped_storage().nbytes() // w.itemsize for w in table.weights)
            assert all(ends)

    count = sanitize.everything(Noting(emulated), 64, CPU)
    assert count > 100
    assert len(seen) == 4 * len(sanitize.DTYPES) * len(KINDS) * 2
