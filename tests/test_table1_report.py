"""The table and the figure say what they stand on: seeds, epochs and devices, and nothing is filled in."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeprelax.experiments import figure2, protocol, store, table1_report
from deeprelax.experiments.protocol import OPTIMIZERS


def stored(
    model: str, optimizer: str, seed: int, errors: list[float], *, epochs: int, ended: str | None = "finished",
    variant: str = "", device: str = "A",
) -> store.Stored:  # fmt: skip
    """A run as it would be read."""
    settings = protocol.run("authors", model, optimizer, seed, epochs=epochs, variant=variant).settings()
    records = [
        {
            "effective_epoch": epochs * (k + 1) / len(errors), "gradients": k, "validation_error": error,
            "training_loss": 2 * error, "lr": 1.0, "gamma": None, "seconds": 10.0 * (k + 1),
        }
        for k, error in enumerate(errors)
    ]  # fmt: skip
    return store.Stored({"run": settings, "machine": {"gpu": device}, "data": "d"}, records, ended)


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
    assert f"| LeNet | HJ | 0.50 ± 0.01 @ 70 | 2.00 ± 1.41 @ 70 | {lacks} | A, fp32 | 20 |" in table
    complete = [stored("lenet", "sgd", seed, [0.005], epochs=67) for seed in range(6)]
    assert table1_report.rows(complete, "authors")[0].caveats == []


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
