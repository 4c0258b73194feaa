"""docs/reproduction.md says of each row whether it is the paper's, and of what is missing how to run it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from test_table1_report import stored

from deeprelax.experiments.table1 import protocol, reproduction, search, store
from deeprelax.experiments.table1 import report as table1_report
from deeprelax.experiments.table1.protocol import PAPER


def rows_of(runs: list[store.Stored]) -> list[table1_report.Row]:
    return table1_report.rows(runs, "authors")


@pytest.mark.parametrize(
    ("center", "said"),
    [(0.005, "matches: +0.00 points"), (0.008, "does not match: +0.30 points"), (0.0047, "does not match: -0.03")],
)
def test_a_full_row_matches_within_two_deviations_and_not_beyond(center: float, said: str) -> None:
    """Of the difference: the paper's 0.01 and ours, 0, add up to 0.02."""
    runs = [stored("lenet", "hj", seed, [center], epochs=70) for seed in range(6)]
    assert reproduction.verdict(rows_of(runs)[0]).startswith(said)


def test_no_statement_is_made_about_a_row_with_one_seed_or_fewer_epochs() -> None:
    short = rows_of([stored("lenet", "hj", seed, [0.005], epochs=69) for seed in range(6)])[0]
    single = rows_of([stored("lenet", "hj", 0, [0.005], epochs=70)])[0]
    assert reproduction.verdict(short) == "no statement: 69 of 70 effective epochs"
    assert reproduction.verdict(single) == "no statement: 1 of 6 seeds"


def test_a_statement_names_the_seeds_if_there_are_fewer() -> None:
    few = rows_of([stored("lenet", "hj", seed, [0.008], epochs=70) for seed in range(5)])[0]
    assert reproduction.verdict(few).startswith("with 5 of 6 seeds does not match: +0.30 points")


def test_the_page_opens_with_rows_of_the_papers_length_alone(tmp_path: Path) -> None:
    runs = [stored("lenet", "hj", seed, [0.005], epochs=70) for seed in range(6)]
    runs += [stored("lenet", "sgd", seed, [0.009], epochs=67) for seed in range(2)]
    runs += [stored("lenet", "entropy-sgd", 0, [0.005], epochs=80), stored("lenet", "heat", 0, [0.006], epochs=3)]
    write(runs, tmp_path / "machine" / "reproduction")
    opening = reproduction.rendered(tmp_path).partition("Written by")[0]
    assert "LeNet with HJ (authors preset, 6 of 6 seeds)" in opening
    assert "Of these 3 rows 1 lie within two standard deviations of the paper's error and 1 do not" in opening
    assert "do not; 1 cannot be compared." in opening
    assert "Not run at that length: LeNet with Heat, All-CNN with Entropy-SGD" in opening
    assert "All-CNN with SGD; below are shorter runs of LeNet with Heat.\n" in opening
    assert [line.split(" | ")[1] for line in opening.splitlines() if line.startswith("| LeNet")] == [
        "Entropy-SGD",
        "HJ",
        "SGD",
    ]


def write(runs: list[store.Stored], folder: Path) -> None:
    (folder / "runs").mkdir(parents=True)
    for number, run in enumerate(runs):
        lines = [run.header, *run.records, *([{"ended": run.ended}] if run.ended else [])]
        (folder / "runs" / f"{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_page_names_what_was_not_run_with_its_command(tmp_path: Path) -> None:
    write([stored("lenet", "hj", seed, [0.005], epochs=70) for seed in range(6)], tmp_path / "machine" / "reproduction")
    missing = reproduction.rendered(tmp_path).partition("## What was not run")[2]
    assert "python tools/reproduce_gpu.py --data DIR --budget-minutes 25" in missing
    command = "deeprelax reproduce table1 --data DIR --device cuda --preset authors"
    assert f"`{command} --models lenet --optimizers entropy-sgd,heat,sgd`" in missing
    assert "--preset authors --models allcnn --optimizers entropy-sgd,heat,hj,sgd`" in missing
    assert "The ablation at full length: LeNet, All-CNN." in missing


def test_the_page_says_which_rows_collapse_at_the_papers_schedule(tmp_path: Path) -> None:
    """A run may have stopped after ten effective epochs; one of other epochs, or that stopped before, says nothing."""
    runs = [stored("lenet", "hj", seed, [0.01 - 0.001 * seed] * 35, epochs=70) for seed in range(2)]
    begun = {
        "entropy-sgd": [0.155, 0.887, 0.887, 0.887, 0.887],
        "sgd": [0.012, 0.014, 0.01, 0.009, 0.017],
        "heat": [0.02, 0.9, 0.9, 0.9],
    }
    for optimizer, errors in begun.items():
        paper = PAPER["lenet", optimizer].epochs
        whole = stored("lenet", optimizer, 0, [*errors, *[0.9] * (paper // 2 - len(errors))], epochs=paper // 2 * 2)
        whole.header["run"].update(protocol.run("authors", "lenet", optimizer, 0).settings())
        runs.append(dataclasses.replace(whole, records=whole.records[: len(errors)], ended=None))
    runs.append(stored("lenet", "sgd", 1, [0.01, 0.9, 0.9, 0.9, 0.9], epochs=10))
    write(runs, tmp_path / "machine" / "reproduction")
    some = stored("allcnn", "hj", 0, [0.7, 0.6] * 14 + [0.6], epochs=145, gradients=15)
    some.header["run"]["evaluate_every"] = 5
    write([dataclasses.replace(some, records=some.records[:2])], tmp_path / "machine" / "reproduction" / "first")
    page = reproduction.rendered(tmp_path).partition("## The first 10 effective epochs")[2].partition("\n## ")[0]
    assert "| LeNet | HJ | authors | 468 | 2 | 1.00 | 1.00 |  | 1.00 | 1.00 | 1.00 |" in page
    assert "| LeNet | SGD | authors | 468 | 1 | 1.20 | 1.40 |  | 1.00 | 0.90 | 1.70 |" in page
    assert "| All-CNN | HJ | authors | 15 | 1 |  |  | 70.00 |  |  | 60.00 |" in page
    assert "Collapsed, with an error more than twice an earlier one: LeNet with Entropy-SGD (authors preset)." in page
    assert "Not run so far: LeNet with Heat (authors preset); All-CNN with Entropy-SGD, Heat, SGD (authors" in page


def test_runs_of_a_search_have_a_table_for_each_preset(tmp_path: Path) -> None:
    folder = tmp_path / "machine" / "reproduction"
    write([], folder)
    runs = [stored("lenet", "hj", 0, [e], epochs=3, preset=p) for p, e in (("authors", 0.01), ("paper", 0.02))]
    write(runs, folder / "found")
    page = reproduction.rendered(tmp_path)
    for preset, value in (("authors", "1.00 @ 3"), ("paper", "2.00 @ 3")):
        _, heading, table = page.partition(f"## The same with what the search below chose, {preset} preset, machine")
        assert heading
        assert table.partition("\n## ")[0].count(f"| LeNet | HJ | 0.50 ± 0.01 @ 70 | {value} |") == 1


def test_a_search_is_stored_with_every_trial_and_its_machine(tmp_path: Path) -> None:
    trials = []
    for number, (lr, error, ended) in enumerate([(0.1, 0.012, "finished"), (0.3, 0.25, "diverged")]):
        trial = stored("lenet", "hj", 0, [error], epochs=3, variant=f"trial{number}", ended=ended)
        trial.header["data"] = "0123abcd 300 for training, 50 held out"
        trial.header["run"]["options"] |= {"lr": lr, "gamma": 0.01}
        trial.header["run"]["drops"] = [[0.5, 0.2], [0.75, 0.04]]
        trials.append(trial)
    folder = tmp_path / "results" / "machine" / "reproduction"
    write(trials, tmp_path / "search")
    write([], folder)
    search.write(tmp_path, "authors", 3).rename(folder / "search-authors.json")
    page = reproduction.rendered(tmp_path / "results").partition("## Search, authors preset, machine")[2]
    assert "| LeNet | HJ | 0.1 | 0.01 | 0.50, 0.75 | 1404 | **1.20** |" in page
    assert "| LeNet | HJ | 0.3 | 0.01 | 0.50, 0.75 | 1404 | diverged |" in page
    assert "LeNet: 300 for training, 50 held out; bold:" in page
    assert "Produced with: A, CPU" in page


def test_rows_of_another_precision_and_half_an_ablation_are_missing(tmp_path: Path) -> None:
    runs = [stored("lenet", "hj", seed, [0.005], epochs=70, autocast="bf16") for seed in range(6)]
    runs += [
        stored("lenet", "entropy-sgd", seed, [0.005], epochs=80, variant=variant)
        for variant in ("", "no-scoping")
        for seed in range(6)
    ]
    write(runs, tmp_path / "machine" / "reproduction")
    page = reproduction.rendered(tmp_path)
    assert "| 0.50 ± 0.00 @ 70 | no statement: bf16 instead of fp32 |" in page
    missing = page.partition("## What was not run")[2]
    assert "--preset authors --models lenet --optimizers heat,hj,sgd`" in missing
    assert "The ablation at full length: LeNet, All-CNN." in missing


def test_the_page_says_what_the_bits_depend_on(tmp_path: Path) -> None:
    run = stored("lenet", "hj", 0, [0.01], epochs=3)
    run.header["machine"] |= {"cpu_model": "family 25, model 1", "cpu_capability": "AVX2", "commit": "abc"}
    run.header["how"] = {"backend": "cuda", "captured": True, "evaluation": "tf32"}
    write([run, stored("lenet", "sgd", 0, [0.01], epochs=3)], tmp_path / "machine" / "reproduction")
    page = reproduction.rendered(tmp_path)
    said = "A, CPU (family 25, model 1), 1 thread, torch 1, AVX2, {}, evaluated in tf32, commit abc"
    assert f"Produced with: {said.format('steps by cuda, replayed from a graph')}." in page
    assert "CPU (which one of that name is not recorded)" in page
    assert "collapsed: 15.5 % error after 2, 88.7 % after 4" in " ".join(page.split())


def test_the_page_names_every_machine_that_a_run_was_on(tmp_path: Path) -> None:
    runs = [stored("lenet", "hj", seed, [0.005], epochs=70) for seed in range(6)]
    elsewhere = {"gone_on_at": 100, "machine": {**runs[0].header["machine"], "gpu": "B"}, "how": {}}
    write(runs, tmp_path / "machine" / "reproduction")
    path = tmp_path / "machine" / "reproduction" / "runs" / "2.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], json.dumps(elsewhere), *lines[1:]]) + "\n")
    page = reproduction.rendered(tmp_path)
    assert "| 0.50 ± 0.00 @ 70 | no statement: 1 resumed on another machine or version |" in page
    assert "Produced with: A, CPU" in page
    assert "Produced with: B, CPU" in page


def test_the_page_says_so_when_nothing_is_left(tmp_path: Path) -> None:
    runs = []
    for preset in ("authors", "paper"):
        for (model, optimizer), paper in PAPER.items():
            variants = ("", "no-scoping", "no-noise", "no-scoping-no-noise") if optimizer == "entropy-sgd" else ("",)
            for variant in variants:
                for seed in range(6):
                    run = stored(
                        model, optimizer, seed, [paper.error / 100], epochs=paper.epochs, variant=variant, preset=preset
                    )
                    runs.append(run)
    write(runs, tmp_path / "machine" / "reproduction")
    page = reproduction.rendered(tmp_path)
    assert page.endswith("Nothing is left.\n")
    assert "not run" not in page.partition("## What was not run")[0]
