"""Writes the figures of README.md and of the docs from the stored results. Run: python tools/readme.py"""

from __future__ import annotations

import inspect
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from deeprelax.experiments.compare import report as compare_report
from deeprelax.experiments.compare import runner
from deeprelax.experiments.compare.contestants import CONTESTANTS
from deeprelax.experiments.compare.tasks import PRESETS
from deeprelax.experiments.report import TITLES, with_spread
from deeprelax.experiments.runs import OPTIMIZERS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench" / "gpu"))  # if this file is loaded by its path

import report  # noqa: E402

BEGIN, END = "<!-- bench: written by tools/readme.py -->\n", "<!-- /bench -->"
GPU_BEGIN, GPU_END = "<!-- gpu: written by tools/readme.py -->\n", "<!-- /gpu -->"
SPEED_BEGIN, SPEED_END = "<!-- speed: written by tools/readme.py -->\n", "<!-- /speed -->"
WORKERS_BEGIN, WORKERS_END = "<!-- workers: written by tools/readme.py -->\n", "<!-- /workers -->"
SHARDED_BEGIN, SHARDED_END = "<!-- sharded: written by tools/readme.py -->\n", "<!-- /sharded -->"
CENTRES_BEGIN, CENTRES_END = "<!-- centres: written by tools/readme.py -->\n", "<!-- /centres -->"
COMPARE_BEGIN, COMPARE_END = "<!-- compare: written by tools/readme.py -->\n", "<!-- /compare -->"
RECIPES_BEGIN, RECIPES_END = "<!-- recipes: written by tools/readme.py -->\n", "<!-- /recipes -->"
DEFAULTS_BEGIN, DEFAULTS_END = "<!-- defaults: written by tools/readme.py -->\n", "<!-- /defaults -->"
TRAIN_BEGIN, TRAIN_END = "<!-- train: written by tools/readme.py -->\n", "<!-- /train -->"


def table(result: dict[str, Any], source: str) -> str:
    """Markdown for one machine."""
    machine = result["machine"]
    lines = [
        f"**{machine['cpu']}, {machine['threads']} threads, fp32, {machine['instruction_set']}** (torch "
        f"{machine['versions']['torch']}, {result['date']}, `{source}`):",
        "",
    ]
    for w in result["workloads"]:
        if w["elements"] < 100_000:
            continue
        lines += [
            f"| {w['name']} | ns/parameter | GB/s | × fused AdamW |",
            "|---|---|---|---|",
            *(
                f"| {r['name']} | {r['ns_per_parameter']:.2f} | {r['gb_per_s']:.1f} | {r['by_fused_adamw']:.2f} |"
                for r in w["contestants"]
            ),
            "",
        ]
    lines += host(result["workloads"])
    lines += ["| target | bound | measured |", "|---|---|---|"]
    for w in result["workloads"]:
        for t in w["targets"]:
            bound = f"{'≥' if t['at_least'] else '≤'} {t['bound']:g}"
            missed = "" if t["met"] else " (missed)"
            lines.append(f"| {t['promise']} | {bound} | {t['measured']:.2f}{missed} |")
    return "\n".join(lines) + "\n"


SHOWN = ("EntropySGD", "EntropySGD, noise", "HJ", "Heat", "torch.optim.AdamW(fused=True)")
SGD = "torch.optim.SGD(momentum, fused=True)"


def speed(result: dict[str, Any], source: str) -> str:
    """Five rows of ``table``, and for how many tensors ``step()`` takes less time than fused SGD's."""
    machine, large = result["machine"], [w for w in result["workloads"] if w["elements"] >= 100_000]
    heads = [f"{w['name']}: ns/parameter | × fused SGD with momentum" for w in large]
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "---|---|" * len(heads)]
    for name in SHOWN:
        cells = []
        for w in large:
            rows = {r["name"]: r["ns_per_parameter"] for r in w["contestants"]}
            cells += [f"{rows[name]:.2f}", f"{rows[name] / rows[SGD]:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    small = [w for w in result["workloads"] if w["elements"] < 100_000]
    slower = [w["shapes"] for w in small if ratio(w, "EntropySGD") > 1]
    least, most = (f"{w['shapes']:,}" for w in (small[0], small[-1]))
    where = f"above {max(slower):,} tensors" if slower else f"at every number of tensors measured ({least} to {most})"
    return "\n".join(
        [
            *lines,
            "",
            f"{machine['cpu']}, {machine['threads']} threads, fp32, {machine['instruction_set']}, medians of one run "
            f"(`{source}`). On small tensors `EntropySGD.step()` takes less time than fused SGD's {where}.",
            "",
        ]
    )


def ratio(workload: dict[str, Any], name: str) -> float:
    """That contestant's time over fused SGD's."""
    return float(next(r["by_fused_sgd"] for r in workload["contestants"] if r["name"] == name))


def host(workloads: list[dict[str, Any]]) -> list[str]:
    """Host time of ``step()`` on small tensors: a column for each number of them."""
    small = [w for w in workloads if w["elements"] < 100_000]
    counts = [f"{w['shapes']:,} tensor{'s' * (w['shapes'] > 1)}" for w in small]
    lines = [f"| µs of `step()` (× fused SGD) | {' | '.join(counts)} |", "|---|" + "---|" * len(small)]
    for name in ("EntropySGD", "HJ", "Heat", "torch.optim.SGD(fused=True)", "torch.optim.AdamW(fused=True)"):
        rows = [next(r for r in w["contestants"] if r["name"] == name) for w in small]
        cells = [f"{r['microseconds']:.0f} ({r['by_fused_sgd']:.2f})" for r in rows]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def draw(rows: report.Results, path: Path) -> None:
    """Plot the bandwidth of inner calls and of a copy over their size, a panel per dtype; nothing without rows."""
    inner = [r for r in report.only(rows, "bandwidth", kind=None) if "rule" in r]
    panels = sorted({r["dtype"] for r in inner}, reverse=True)
    if not panels:
        return
    figure = Figure(figsize=(1 + 6.5 * len(panels), 5), layout="constrained")
    names = [rule.name for rule in report.RULES]
    for ax, dtype in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels):
        here = report.only(inner, "bandwidth", dtype=dtype)
        for rule, backend in dict.fromkeys((r["rule"], r["backend"]) for r in here):
            found = report.only(here, "bandwidth", rule=rule, backend=backend)
            points = sorted((r["elements"], r["gb_per_s"]) for r in found)
            style = {"linestyle": "-" if backend == "cuda" else "--", "label": f"{rule} [{backend}]"}
            color = f"C{names.index(rule)}" if rule in names else "black"  # of the copy
            ax.plot(*zip(*points), marker=".", color=color, **style)
        ax.set(title=f"inner call, {dtype}", xlabel="elements of one launch", ylabel="GB/s, reads and writes")
        ax.set_xscale("log", base=2)
        ax.set_ylim(bottom=0)
        ax.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def on_gpu(source: Path) -> str:
    """Markdown for one ``make gpu``: what it was run with, the targets, and the picture, if any."""
    folder = source.parent
    lines = [*report.summary(report.load(folder)), f"`{folder.relative_to(ROOT)}/gpu.md` has every row.", ""]
    if (folder / "bandwidth.png").exists():
        lines += [f"![bandwidth over size](../{(folder / 'bandwidth.png').relative_to(ROOT)})", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


NO_GPU = """No run on a GPU has been stored yet: the table is still owed. These commands make it:

```
make gpu OUT=out COMMIT=$(git rev-parse HEAD)    # with an NVIDIA H200, nvcc and torch; no .git there: write the hash
mkdir -p bench/results/nvidia-h200
cp out/gpu/* bench/results/nvidia-h200/
python tools/readme.py
```

"""

NO_SIZES = """How much one program of the Triton kernels does (`kernels/triton/sizes.py`) has not been measured on a GPU
either: the sizes in that file were chosen by reasoning. This command measures the fastest ones, and prints what
that file should say:

```
make gpu SCRIPTS=tune OUT=out         # on a machine with a GPU and nvcc
```
"""


def no_gpu() -> str:
    """What to run where no result has been stored."""
    return NO_GPU + "\n".join(report.targets(report.judge([]))).rstrip("\n") + "\n"


def owed_sizes(results: Path) -> str:
    """What to run until a measurement of Triton's sizes is stored."""
    stored = (report.only(report.load(path.parent), "tune") for path in results.glob("*/rows.jsonl"))
    return "" if any(stored) else "\n" + NO_SIZES


def between(text: str, begin: str, end: str, new: str) -> str:
    """``text`` with ``new`` between the two marks."""
    head, rest = text.split(begin)
    return head + begin + new + end + rest.split(end)[1]


def training(result: dict[str, Any], source: str) -> str:
    """Markdown for one ``deeprelax train``: table and picture."""
    machine = result["machine"]
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in result["runs"]:
        runs.setdefault(run["settings"]["optimizer"], []).append(run)
    lines = [
        "| optimizer | validation error (%) | training loss (nats) | effective epochs | s per run | ms per step() |",
        "|---|---|---|---|---|---|",
    ]
    for name, of_name in runs.items():
        error = with_spread([100 * r["validation_error"][-1] for r in of_name], 2)
        loss = with_spread([r["training_loss"][-1] for r in of_name], 4)
        seconds = statistics.mean(r["seconds"] for r in of_name)
        step = statistics.mean(r["step_ms"] for r in of_name)
        epochs = of_name[0]["settings"]["epochs"]
        lines.append(f"| {TITLES[name]} | {error} | {loss} | {epochs} | {seconds:.1f} | {step:.2f} |")
    seeds = len(next(iter(runs.values())))
    about = f"{machine['cpu']}, threads: {machine['threads']}, torch {machine['versions']['torch']}"
    picture = f"![validation error and training loss over effective epochs]({source.replace('.json', '.png')})"
    return "\n".join([*lines, "", f"{seeds} seeds; {about}; `{source}`", "", picture]) + "\n"


def comparison(source: Path) -> str:
    """Markdown for one ``deeprelax compare``: the tables, and the picture next to its runs."""
    runs = runner.Results(source).all
    machine = source.parent.parent.name
    lines = [compare_report.table([r for r in runs if r["run"]["preset"] == "small"])]
    lines += [f"`{source.relative_to(ROOT)}` ({machine}), three seeds; curves, with bands over the seeds:", ""]
    lines += [f"![curves of all optimizers](../{(source.parent / 'curves.png').relative_to(ROOT)})", ""]
    if long := [r for r in runs if r["run"]["preset"] == "long"]:
        lines += ["After 100,000 gradients, one seed:", "", compare_report.table(long)]
    return "\n".join(lines)


KINDS = {
    "digits-mlp": "An MLP without batch norm (digits)",
    "digits-cnn": "A CNN without batch norm (digits)",
    "mnist-cnn": "A CNN with batch norm (MNIST)",
    "cifar-resnet": "A ResNet (CIFAR-10)",
    "text-transformer": "A transformer (characters)",
}


def call(run: runner.Run) -> str:
    """The contestant of that run as a line of Python: arguments that are not defaults, or that a search sets."""
    (opt,) = CONTESTANTS[run.optimizer].make([torch.nn.Parameter(torch.zeros(1))], run.rate, run.other)
    group, own = opt.param_groups[0], inspect.signature(type(opt)).parameters
    set_here = {name: group[name] for name in own if name in group and name not in ("params", "seed")}
    shown = [
        f"{name}={value!r}"
        for name, value in set_here.items()
        if value != own[name].default or (name in ("lr", "gamma", "momentum") and 0 < value < math.inf)
    ]
    return f"opt = deeprelax.{run.optimizer}(model.parameters(), {', '.join(shown)})"


def recipes(source: Path) -> str:
    """Markdown for one ``deeprelax compare``: for each kind of network a block of Python."""
    results = [r for r in runner.Results(source).all if r["run"]["preset"] == "small"]
    chosen, parts = runner.best(results), []
    for task, title in KINDS.items():
        unit = "nats per character" if task == "text-transformer" else "% error"
        reached = {
            name: statistics.mean(curve[-1] for curve in compare_report.curves_of(results, chosen[task, name]))
            for name in CONTESTANTS
        }
        lines = [f"## {title}", "", "```python"]
        for name in ("HJ", "EntropySGD", "EntropyAdamW"):
            lines += [f"# {compare_report.number(reached[name], task)} {unit}", call(chosen[task, name])]
        best = min((name for name in CONTESTANTS if name not in compare_report.OURS), key=lambda name: reached[name])
        lines += ["```", ""]
        theirs = [f"{name} {compare_report.number(reached[name], task)}" for name in ("SGD, Nesterov", "AdamW", best)]
        gradients = PRESETS["small"][task.partition("-")[0]][0]
        lines += [f"After {gradients} gradients. For comparison: {'; '.join(dict.fromkeys(theirs))} {unit}.", ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def defaults(result: dict[str, Any], source: str) -> str:
    """Markdown for one ``tools/choose_defaults.py``: the errors of all settings, those of the defaults in bold."""
    lines = ["| | lr | gamma | temperature | error with batch norm (%) | without batch norm (%) |", "|---" * 6 + "|"]
    for rows in zip(result["defaults"], result["plain"], strict=True):
        name, options = rows[0]["optimizer"], rows[0]["options"]
        own = inspect.signature(OPTIMIZERS[name]).parameters
        errors = [row.get("failed") or f"{100 * row['validation_error']:.1f}" for row in rows]
        if all(value == own[key].default for key, value in options.items()):
            errors = [f"**{error}**" for error in errors]
        settings = [f"{options[key]:g}" if key in options else "" for key in ("lr", "gamma", "temperature")]
        lines.append(f"| {TITLES[name]} | {' | '.join([*settings, *errors])} |")
    return "\n".join([*lines, "", f"{len(result['seeds'])} seeds; `{source}`.", ""])


def workers(result: dict[str, Any], source: str) -> str:
    """Markdown for one ``bench/workers.py``: what was measured, and what the model predicts for larger groups."""
    machine, measured = result["machine"], result["measured"]
    counts = list(measured)
    lines = ["| | " + " | ".join(f"{n} processes: ms per step | × DDP | × no exchange" for n in counts) + " |"]
    lines.append("|---" * (1 + 3 * len(counts)) + "|")
    for rows in zip(*measured.values()):
        cells = [f"{r['ms']:.1f} | {r['by_ddp']:.2f} | {r['by_alone']:.2f}" for r in rows]
        lines.append(f"| {rows[0]['name']} | " + " | ".join(cells) + " |")
    sizes = list(next(iter(result["model"].values())))
    lines += ["", f"Modelled, not measured: a latency of {1e6 * result['latency']:g} µs per message, "]
    lines[-1] += f"{result['bandwidth'] / 1e9:g} GB/s per link, a ring all-reduce, "
    lines[-1] += "during which only `overlap` computes, and the computing time measured above:"
    lines += ["", "| ms per step | " + " | ".join(f"{int(n):,} workers" for n in sizes) + " |"]
    lines.append("|---" * (1 + len(sizes)) + "|")
    for name, times in result["model"].items():
        lines.append(f"| {name} | " + " | ".join(f"{times[n]:.2f}" for n in sizes) + " |")
    about = f"{machine['cpu']}, one thread per process, torch {machine['versions']['torch']}, {result['date']}"
    lines += ["", f"{result['elements']:,} parameters, L = {result['inner_steps']}; {about}; `{source}`.", ""]
    return "\n".join(lines)


# The most time: of a step on DTensors by one on plain tensors and by SGD's, and of a part's kernel by a whole one's.
BY_TENSORS, BY_SGD, BY_WHOLE = 1.5, 0.5, 1.15


def sharded(result: dict[str, Any], source: str) -> str:
    """Markdown for one ``bench/sharded.py``: the host's time, and the kernels'."""

    def judged(ratio: float, bound: float) -> str:
        return f"{ratio:.2f}{' (missed)' * (ratio > bound)}"

    heads = f"| `step()` on {result['tensors']} DTensors | µs | × plain tensors | × SGD on DTensors |"
    lines = [heads, "|---" * 4 + "|"]
    for row in result["host"]:
        ours = not row["name"].startswith("torch")
        cells = [judged(row["by_tensors"], BY_TENSORS), judged(row["by_sgd"], BY_SGD)] if ours else ["", "1"]
        name = row["name"] + ", new gradients" * row["new_gradients"]
        lines.append(f"| {name} | {row['us']:.0f} | {' | '.join(cells)} |")
    kinds = list(dict.fromkeys(row["name"] for row in result["kernels"]))
    lines += ["", f"| kernels' time of a part, × a whole parameter's | {' | '.join(kinds)} |"]
    lines.append("|---" * (1 + len(kinds)) + "|")
    for part in dict.fromkeys(row["part"] for row in result["kernels"]):
        cells = [judged(row["by_whole"], BY_WHOLE) for row in result["kernels"] if row["part"] == part]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    machine = result["machine"]
    about = f"{machine['cpu']}, one thread, fp32, {machine['instruction_set']}, torch {machine['versions']['torch']}"
    bounds = f"Bounds: {BY_TENSORS:g}, {BY_SGD:g} and {BY_WHOLE:g}."
    parts = f"Parts have {result['elements']:,} elements, which stay in the cache."
    return "\n".join([*lines, "", f"{bounds} {parts} {about}, {result['date']}; `{source}`.", ""])


def centres(result: dict[str, Any], source: str) -> str:
    """Markdown for ``deeprelax train`` under torchrun, next to one worker's Entropy-SGD in the same file."""
    lines = ["| | workers | error of the centre (%) | each worker's own (%) |", "|---|---|---|---|"]
    for name in dict.fromkeys(run["settings"]["optimizer"] for run in result["runs"]):
        runs = [run for run in result["runs"] if run["settings"]["optimizer"] == name]
        own = [100 * error for run in runs for error in run["worker_error"]]
        error = with_spread([100 * run["validation_error"][-1] for run in runs], 2)
        workers = len(runs[0]["worker_error"]) or 1
        lines.append(f"| {TITLES[name]} | {workers} | {error} | {with_spread(own, 2) if own else ''} |")
    epochs, count = result["runs"][0]["settings"]["epochs"], len(runs)
    return "\n".join([*lines, "", f"Digits, {epochs} effective epochs for each worker, {count} seeds; `{source}`.", ""])


def of_file(show: Callable[[dict[str, Any], str], str]) -> Callable[[Path], str]:
    """The same for the file of a result."""
    return lambda path: show(json.loads(path.read_text()), str(path.relative_to(ROOT)))


# For each page its marks, the stored results, and the function that writes what stands between the marks.
PAGES: dict[str, list[tuple[str, str, str, Callable[[Path], str]]]] = {
    "README.md": [
        (SPEED_BEGIN, SPEED_END, "amd-epyc-avx512-2-threads/cpu.json", of_file(speed)),
        (TRAIN_BEGIN, TRAIN_END, "*/digits.json", of_file(training)),
    ],
    "docs/workers.md": [
        (WORKERS_BEGIN, WORKERS_END, "*/workers.json", of_file(workers)),
        (CENTRES_BEGIN, CENTRES_END, "*/workers-digits.json", of_file(centres)),
    ],
    "docs/recipes.md": [
        (RECIPES_BEGIN, RECIPES_END, "*/compare/runs.jsonl", recipes),
        (DEFAULTS_BEGIN, DEFAULTS_END, "choose_defaults.json", of_file(defaults)),
    ],
    "docs/comparison.md": [(COMPARE_BEGIN, COMPARE_END, "*/compare/runs.jsonl", comparison)],
    "docs/benchmarks.md": [
        (BEGIN, END, "*/cpu.json", of_file(table)),
        (SHARDED_BEGIN, SHARDED_END, "*/sharded.json", of_file(sharded)),
        (GPU_BEGIN, GPU_END, "*/rows.jsonl", on_gpu),
    ],
}


def rendered(page: str) -> str:
    """The page with the stored results filled in."""
    text = (ROOT / page).read_text()
    stored = ROOT / "bench" / "results"
    for begin, end, pattern, show in PAGES[page]:
        results = sorted(stored.glob(pattern))
        new = "\n".join(show(path) for path in results)
        if show is on_gpu:
            new = (new or no_gpu()) + owed_sizes(stored)
        text = between(text, begin, end, new)
    return text


def main() -> None:
    for source in (ROOT / "bench" / "results").glob("*/rows.jsonl"):
        draw(report.load(source.parent), source.parent / "bandwidth.png")
    for page in PAGES:
        (ROOT / page).write_text(rendered(page))


if __name__ == "__main__":
    main()
