"""How much work one program of a Triton kernel does, for each kind of kernel."""

from __future__ import annotations

from dataclasses import dataclass

from ..scalars import RULES


@dataclass(frozen=True, slots=True)
class Sizes:
    """The work of one program.

    Attributes:
        block: elements taken at once.
        per_thread: consecutive elements of a thread; at least the 4 of one Philox call, and 16 bytes of weights.
        warps: of 32 threads each.
        passes: blocks, one after the other.
    """

    block: int
    per_thread: int
    warps: int
    passes: int = 1

    def __post_init__(self) -> None:
        powers = all(n > 0 and n & (n - 1) == 0 for n in (self.block, self.per_thread, self.warps))
        if not powers or self.per_thread not in (4, 8) or self.block < 32 * self.warps * self.per_thread:
            raise ValueError(
                f"block, per_thread and warps must be powers of two, per_thread 4 or 8, and block at least "
                f"32 * warps * per_thread; these are {self}"
            )


# (rule, bytes of a weight, whether noise is drawn)
Kind = tuple[str, int, bool]

# By the bytes of a weight. Not measured on a GPU. They give every thread one access of 16 bytes to each operand
# (two where it has 4 of float64 or 8 of float32), which needs the fewest registers, and narrow weights two passes,
# since a pass of theirs moves half the bytes.
BY_BYTES = {8: Sizes(1024, 4, 8), 4: Sizes(1024, 4, 8), 2: Sizes(1024, 8, 4, 2)}

# Those that measured better: `make gpu` measures the sizes above, `make gpu SCRIPTS=tune` others, and prints the lines
# to put here.
TUNED: dict[Kind, Sizes] = {}

SIZES: dict[Kind, Sizes] = {
    (rule.name, size, noise): sizes
    for rule in RULES.values()
    for size, sizes in BY_BYTES.items()
    for noise in rule.draws
} | TUNED
