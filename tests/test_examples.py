"""The programs of examples/ run as they stand, small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
RUNS = {
    "digits.py": (["--epochs", "2"], "epoch 2: ", "digits.pt"),
    "transformer.py": (["--gradients", "5"], "EntropyAdamW: 5 gradients", None),
    "elastic.py": (["--epochs", "2"], "% at the centre", None),
    "smoothing.py": ([], "local entropy", "smoothing.png"),
}


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs_and_says_how_far_it_is(name: str, tmp_path: Path) -> None:
    arguments, said, left = RUNS[name]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"] if name == "elastic.py" else []
    command = [sys.executable, *launcher, str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert said in done.stdout
    assert left is None or (tmp_path / left).stat().st_size > 1000


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(RUNS)
