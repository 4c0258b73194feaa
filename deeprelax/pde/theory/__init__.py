"""The paper's statements, each measured: ``STATEMENTS`` is what docs/theory.md shows and what the tests check."""

from deeprelax.pde.theory import (
    averages,
    lemma_2,
    lemma_3,
    lemma_5,
    remark_6,
    remark_11,
    remark_13,
    remark_14,
    sampled,
    section_2,
    section_4_2,
    theorem_9,
    theorem_12,
)

STATEMENTS = [
    module.STATEMENT
    for module in (
        section_2,
        lemma_2,
        lemma_3,
        lemma_5,
        remark_6,
        theorem_9,
        averages,
        remark_11,
        section_4_2,
        theorem_12,
        remark_13,
        remark_14,
        sampled,
    )
]
