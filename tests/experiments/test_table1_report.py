"""The table and the figure say what they stand on: seeds, epochs and devices, and nothing is filled in."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from rich.console import Console

from deeprelax.experiments.table1 import figure2, protocol, store
from deeprelax.experiments.table1 import report as table1_report
from deeprelax.experiments.table1.protocol import OPTIMIZERS


def stored(
    model: str, optimizer: str, seed: int, errors: list[float], *, epochs: int, ended: str | None = "finished",
    variant: str = "", device: str = "A", preset: str = "authors", autocast: str = "", tf32: bool = False,
    data: str = "d", gradients: int | None = None,
) -> store.Stored:  # fmt: skip
    """A run as it would be read; ``gradients`` of an epoch, else those of all images."""
    settings = protocol.run(
        preset, model, optimizer, seed, epochs=epochs, variant=variant, autocast=autocast, tf32=tf32
    ).settings()
    per_epoch = gradients or {"lenet": 468, "allcnn": 390}[model]
    ats = [epochs * (k + 1) / len(errors) for k in range(len(errors))]
    records = [
        {
            "effective_epoch": ats[k], "gradients": round(ats[k] * per_epoch), "validation_error": error,
            "training_loss": 2 * error, "lr": 1.0, "gamma": settings["options"].get("gamma"), "seconds": 10.0 * (k + 1),
        }
        for k, error in enumerate(errors)
    ]  # fmt: skip
    machine = {"gpu": device, "cpu": "CPU", "threads": 1, "instruction_set": "avx2", "versions": {"torch": "1"}}
    return store.Stored({"run": settings, "machine": machine, "data": data}, records, ended)


def test_a_row_says_what_it_lacks_and_nothing_is_filled_in() -> None:
    runs = [stored("lenet", "hj", seed, [0.2, error], epochs=70) for seed, error in enumerate((0.01, 0.03))]
    runs += [
        stored("lenet", "hj", 2, [0.2], epochs=70, ended=None),
        stored("lenet", "hj", 3, [0.9], epochs=70, ended="diverged"),
    ]
    runs += [stored("lenet", "hj", 0, [0.5], epochs=3)]  # a shorter one is not mixed in
    runs += [stored("lenet", "hj", 4, [0.5], epochs=70, device="B")]  # nor is another device's
    (row,) = table1_report.rows(runs, "authors")
    assert row.value == "2.00 ± 1.41 @ 70"
    assert row.caveats == ["2 of 6 seeds", "1 diverged", "1 not at their end"]
    table = table1_report.markdown([row])
    assert table.count("not run") == 7
    lacks = "2 of 6 seeds, 1 diverged, 1 not at their end"
    assert f"| LeNet | HJ | 0.50 ± 0.01 @ 70 | 2.00 ± 1.41 @ 70 | 2 | {lacks} | A, fp32 | 20 |" in table
    complete = [stored("lenet", "sgd", seed, [0.005], epochs=67) for seed in range(6)]
    assert table1_report.rows(complete, "authors")[0].caveats == []


def hj(epochs: int, seeds: int = 1, **about: Any) -> list[store.Stored]:
    return [stored("lenet", "hj", seed, [0.01], epochs=epochs, **about) for seed in range(seeds)]


@pytest.mark.parametrize(
    "others",
    [
        hj(90, ended=None), hj(90), hj(90, seeds=9),
        hj(70, seeds=9, autocast="bf16"), hj(70, seeds=9, tf32=True),
    ],
    ids=["begun only", "one longer seed", "longer", "bf16", "tf32"],
)  # fmt: skip
def test_a_complete_row_is_not_changed_by_other_runs(others: list[store.Stored]) -> None:
    for runs in (hj(70, seeds=6) + others, others + hj(70, seeds=6)):
        (row,) = table1_report.rows(runs, "authors")
        assert (row.value, row.caveats) == ("1.00 ± 0.00 @ 70", [])


def test_a_finished_row_is_not_erased_by_one_that_was_begun() -> None:
    (row,) = table1_report.rows(hj(3) + hj(70, seeds=6, ended=None), "authors")
    assert row.value == "1.00 @ 3"


@pytest.mark.parametrize(
    ("runs", "caveats"),
    [
        (hj(90, seeds=6), ["90 effective epochs instead of 70"]),
        (hj(3, seeds=6) + hj(70, tf32=True), ["1 of 6 seeds", "tf32 instead of fp32"]),  # before a short run
        (hj(70, seeds=4) + hj(70, seeds=2, data="e"), ["4 of 6 seeds"]),
        (hj(70, seeds=6, gradients=234), ["234 gradients an epoch instead of 468: not all images"]),
    ],
    ids=["another length", "another precision", "other images", "fewer images"],
)
def test_a_row_names_how_its_runs_are_not_the_papers(runs: list[store.Stored], caveats: list[str]) -> None:
    (row,) = table1_report.rows(runs, "authors")
    assert row.caveats == caveats


def test_settings_that_are_not_the_presets_are_named_and_come_last(tmp_path: Path) -> None:
    found = hj(70, seeds=6)
    for run in found:
        run.settings["options"]["lr"] = 0.51
    (row,) = table1_report.rows(found, "authors")
    assert row.caveats == ["settings other than the preset's"]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        assert "HJ, other settings (6 seeds)" in figure2.draw(found, "authors", tmp_path)[1].read_text()
    (row,) = table1_report.rows(found + hj(3), "authors")
    assert (row.value, row.seeds) == ("1.00 @ 3", 1)


def test_a_row_with_a_run_resumed_elsewhere_names_both_machines() -> None:
    runs = hj(70, seeds=6)
    elsewhere = {"machine": {**runs[0].header["machine"], "gpu": "B"}, "how": {}}
    runs[2] = dataclasses.replace(runs[2], gone_on=[{"gone_on_at": 100, **elsewhere}])
    (row,) = table1_report.rows(runs, "authors")
    assert row.caveats == ["1 resumed on another machine or version"]
    assert row.device == "A and B"


def test_every_row_has_its_number_of_seeds() -> None:
    (row,) = table1_report.rows(hj(70, seeds=8), "authors")
    line = "1.00 ± 0.00 @ 70 | 8 | nothing in seeds, epochs, images, settings and precision |"
    assert line in table1_report.markdown([row])


@pytest.mark.parametrize(("changes", "named"), [({"autocast": "bf16"}, "bf16"), ({"tf32": True}, "tf32")])
def test_another_precision_is_not_the_papers(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    runs = hj(70, seeds=6, **changes)
    (row,) = table1_report.rows(runs, "authors")
    assert row.caveats == [f"{named} instead of fp32"]
    assert f"| {named} instead of fp32 | A, {named} |" in table1_report.markdown([row])
    screen = io.StringIO()
    Console(file=screen, width=160).print(table1_report.table([row], ["lenet"]))
    assert f"{named} instead of fp32" in screen.getvalue()
    assert f"A, {named}" in screen.getvalue()
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text
        drawn = figure2.draw(runs, "authors", tmp_path)[1].read_text()
    assert f"HJ in {named} (6 seeds)" in drawn
    assert f"A, {named}" in drawn


@pytest.mark.parametrize(("seeds", "bands"), [(1, False), (2, True)])
def test_figure2_draws_panels_with_runs_and_bands_over_seeds(seeds: int, bands: bool, tmp_path: Path) -> None:
    runs = [stored("lenet", "hj", seed, [0.5, 0.2 + 0.1 * seed], epochs=9) for seed in range(seeds)]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        drawn = figure2.draw(runs, "authors", tmp_path)[1].read_text()
    assert "LeNet on MNIST" in drawn
    assert "CIFAR-10" not in drawn
    assert ("bands" in drawn) == bands == ("FillBetween" in drawn)


def test_figure2_has_three_panels_and_the_same_bytes_for_the_same_runs(tmp_path: Path) -> None:
    runs = [
        stored(m, o, s, [0.5, 0.2 + 0.1 * s, 0.1], epochs=9)
        for m in protocol.MODELS
        for o in OPTIMIZERS
        for s in (0, 1)
    ]
    first, second = (figure2.draw(runs, "authors", tmp_path / name) for name in "ab")
    assert [path.suffix for path in first] == [".png", ".svg"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    chosen = [r for r in runs if (r.settings["model"], r.settings["optimizer"]) == ("lenet", "hj")]
    mean, deviation = pytest.approx(0.25), pytest.approx(0.1 / 2**0.5)
    assert figure2.curve(chosen, "validation_error")[1] == (6.0, mean, deviation, 2)
