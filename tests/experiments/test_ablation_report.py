"""The ablation compares runs that differ in what was switched off and in nothing else, and says what seeds allow."""

from __future__ import annotations

from typing import Any

import pytest
from test_table1_report import stored

from deeprelax.experiments.table1 import ablation_report, store
from deeprelax.experiments.table1.ablation_report import VARIANTS
from deeprelax.experiments.table1.protocol import ABLATION


def entropy(variants: Any, error: float, epochs: int, seeds: int = 1, **about: Any) -> list[store.Stored]:
    return [
        stored("lenet", "entropy-sgd", seed, [error], epochs=epochs, variant=variant, **about)
        for variant in variants
        for seed in range(seeds)
    ]


def test_the_variants_are_those_of_the_protocol() -> None:
    assert set(VARIANTS) == {"", *ABLATION}
    for variant, (scoping, noise) in VARIANTS.items():
        off = ABLATION.get(variant, {})
        assert ("scoping" in off, "temperature" in off) == (scoping == "off", noise == "off")


@pytest.mark.parametrize(
    "other", [{"epochs": 80}, {"autocast": "bf16"}, {"tf32": True}, {"device": "B"}, {"data": "e"}]
)
def test_the_four_variants_are_of_one_length_precision_and_device(other: dict[str, Any]) -> None:
    """A full row of another length is not compared with three short ablations, however many more runs it has."""
    runs = entropy([""], 0.005, **{"epochs": 3, "seeds": 6, **other}) + entropy(ABLATION, 0.02, epochs=3)
    assert ablation_report.markdown(runs, "authors").splitlines()[2:6] == [
        "| LeNet | on | on | not run | 0 | | |",
        "| LeNet | off | on | 2.00 @ 3 | 1 | 1 of 6 seeds, 3 of 80 effective epochs | A, fp32 |",
        "| LeNet | on | off | 2.00 @ 3 | 1 | 1 of 6 seeds, 3 of 80 effective epochs | A, fp32 |",
        "| LeNet | off | off | 2.00 @ 3 | 1 | 1 of 6 seeds, 3 of 80 effective epochs | A, fp32 |",
    ]
    runs += entropy([""], 0.03, epochs=3)
    assert (
        "| LeNet | on | on | 3.00 @ 3 | 1 | 1 of 6 seeds, 3 of 80 effective epochs | A, fp32 |"
        in ablation_report.markdown(runs, "authors")
    )
    assert not ablation_report.is_whole(runs, "authors", "lenet")


def test_a_full_ablation_comes_before_a_short_one() -> None:
    runs = entropy(VARIANTS, 0.03, epochs=3) + entropy(VARIANTS, 0.005, epochs=80, seeds=6)
    assert ablation_report.markdown(runs, "authors").count("0.50 ± 0.00 @ 80 | 6 | nothing in") == 4
    assert ablation_report.is_whole(runs, "authors", "lenet")
    assert not ablation_report.is_whole(runs, "paper", "lenet")


def test_a_variants_missing_and_diverged_seeds_are_in_its_row() -> None:
    runs = entropy(["", "no-noise"], 0.005, epochs=80, seeds=3)
    runs += [stored("lenet", "entropy-sgd", s, [0.9], epochs=80, variant="no-noise", ended="diverged") for s in (3, 4)]
    table = ablation_report.markdown(runs, "authors")
    assert "| LeNet | on | off | 0.50 ± 0.00 @ 80 | 3 | 3 of 6 seeds, 2 diverged | A, fp32 |" in table


def test_without_a_variant_there_is_no_ablation_table() -> None:
    assert ablation_report.markdown(entropy([""], 0.03, epochs=3), "authors") == ""


@pytest.mark.parametrize(
    ("seeds", "said"), [(1, "one seed: no difference here shows an effect"), (3, "3 seeds: ± is one")]
)
def test_the_page_says_what_its_number_of_seeds_shows(seeds: int, said: str) -> None:
    text = ablation_report.markdown(entropy(VARIANTS, 0.03, epochs=3, seeds=seeds), "authors")
    assert f"LeNet: {said}" in text
    assert "In 3 effective epochs scoping makes 70 steps and leaves γ at 1.00 γ₀." in text
