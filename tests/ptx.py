"""What a 16-byte access of a kernel of ``triton/kernels.py`` depends on, read from its PTX."""

from __future__ import annotations

import re
from collections import defaultdict

# Parameters of ``update``, by number; those that lead to a chunk and the scalars are left out.
OPERANDS = {1: "weights", 2: "grads", 3: "x", 4: "y", 5: "acc", 6: "m", 7: "v", 8: "q"}
REGISTER = r"%(?:rd|rs|r|p|f|fd)\d+|\w+_param_\d+"
FAST = re.compile(r"(ld|st)\.global\.(?:v4\.b32|v2\.b64)")


class Flow:
    """Which registers every register was made from."""

    def __init__(self, ptx: str) -> None:
        self.lines = [line.strip() for line in ptx.splitlines() if not re.match(r"\s*(?://|\.|$|\$L__tmp)", line)]
        self.sources: dict[str, set[str]] = defaultdict(set)
        for line in self.lines:
            made = re.match(rf"(?:@!?%p\d+ )?(?!st\.|bra\b)[\w.]+\s+({{.*?}}|{REGISTER})\s*,(.*)", line)
            for register in re.findall(REGISTER, made[1]) if made else []:
                self.sources[register] |= set(re.findall(REGISTER, made[2])) if made else set()

    def behind(self, register: str) -> set[str]:
        """Everything that went into it, itself included."""
        found, open_ = set(), [register]
        while open_:
            if (r := open_.pop()) not in found:
                found.add(r)
                open_ += self.sources.get(r, ())
        return found

    def operands(self, register: str) -> set[str]:
        """Which of the operands' addresses went into it."""
        numbers = [int(r.rpartition("_")[2]) for r in self.behind(register) if "_param_" in r]
        return {OPERANDS[n] for n in numbers if n in OPERANDS}

    def tested(self, predicate: str) -> set[str]:
        """Whose alignment to 16 bytes the predicate depends on."""
        behind = self.behind(predicate)
        masked = [re.match(r"and\.b(?:32|64)\s+(%\w+), (%\w+), 15;", line) for line in self.lines]
        return {name for m in masked if m and m[1] in behind for name in self.operands(m[2])}


def conditions(ptx: str) -> set[tuple[str, frozenset[str], frozenset[str]]]:
    """Of every 16-byte access: "ld" or "st", its operand (several where two places in the cycle end in one store), and
    whose alignment decides that it is made."""
    flow, guard, found = Flow(ptx), "", set()
    for line in flow.lines:
        if branch := re.match(r"@!?(%p\d+) bra", line):
            guard = branch[1]
        if access := FAST.search(line):
            address = re.search(r"\[ (%\w+)", line)
            assert address
            found.add((access[1], frozenset(flow.operands(address[1])), frozenset(flow.tested(guard))))
    return found
