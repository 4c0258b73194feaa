"""The root of the CUDA kernels' noise is exact, whatever a GPU's approximation of its reciprocal is."""

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent.parent / "csrc"
PROGRAM = """
#include <cstdio>
#include "scalar.h"
using namespace deeprelax;
namespace deeprelax::DR_ISA {
float shorter(float v, float r) { return fused(fused(-v * r, v * r, v), 0.5f * r, v * r); }
}
int main() {
  for (uint32_t bits = 0x3f800000u; bits < 0x40800000u; ++bits) {  // every float in [1, 4)
    const float v = DR_ISA::as_float(bits);
    const uint32_t nearest = DR_ISA::as_uint(static_cast<float>(1 / std::sqrt(static_cast<double>(v))));
    for (int ulp = -4; ulp <= 4; ++ulp) {
      if (DR_ISA::ROOT(v, DR_ISA::as_float(nearest + ulp)) != std::sqrt(v)) return 1;
    }
  }
}
"""


def failed(tmp_path: Path, root: str) -> bool:
    """Whether some root is not the nearest float32."""
    source, program = tmp_path / "root.cpp", tmp_path / "root"
    source.write_text(PROGRAM.replace("ROOT", root))
    flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-march=native", f"-I{CSRC}"]
    subprocess.run(["g++", *flags, str(source), "-o", str(program)], check=True)
    return subprocess.run([str(program)], check=False).returncode != 0


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_every_root_is_exact_from_any_approximation_within_4_ulp(tmp_path: Path) -> None:
    """Scaling by powers of 4 changes neither the steps nor their rounding, so [1, 4) stands for all normals."""
    assert not failed(tmp_path, "root_from")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_root_with_one_step_less_would_be_noticed(tmp_path: Path) -> None:
    assert failed(tmp_path, "shorter")
