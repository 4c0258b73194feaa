"""The arithmetic that the CPU runs is the arithmetic that a CUDA compiler accepts, and it needs no torch."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"

KERNEL = """
#include "normal.h"
#include "philox.h"
#include "rules.h"

using namespace deeprelax::cuda;

template <class P>
__global__ void step(P* w, const P* g, float* x, float* z, Scalars<float> c, Stream stream, uint32_t index, long n) {
  long i = blockIdx.x * long(blockDim.x) + threadIdx.x;
  if (i >= n) return;
  uint32_t words[4];
  random_words(stream, index, i / 4, 0u, words);
  float cosine, sine, velocity = 0.0f, m = 0.0f;
  box_muller(words[i % 4 / 2 * 2], words[i % 4 / 2 * 2 + 1], cosine, sine);
  float y = load<float>(w + i);
  float d = force(load<float>(g + i), y, c);
  y = entropy_inner<false, true>(y, x[i], d, i % 2 ? sine : cosine, velocity, c);
  z[i] = average(z[i], y, c);
  x[i] = outer_step(take_x<P>(x[i], y), x[i] - z[i], m, c.outer);
  store(w + i, y);
}
template __global__ void step(float*, const float*, float*, float*, Scalars<float>, Stream, uint32_t, long);
template __global__ void step(bfloat16*, const bfloat16*, float*, float*, Scalars<float>, Stream, uint32_t, long);
template __global__ void step(float16*, const float16*, float*, float*, Scalars<float>, Stream, uint32_t, long);
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
def test_a_cuda_compiler_accepts_the_headers_and_fuses_nothing(tmp_path: Path):
    source, ptx = tmp_path / "step.cu", tmp_path / "step.ptx"
    source.write_text(KERNEL)
    command = ["nvcc", "-std=c++17", "-arch=sm_90", "--fmad=false", "-ptx", f"-I{CSRC}", str(source), "-o", str(ptx)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    code = ptx.read_text()
    assert "mul.rn.f32" in code or "mul.f32" in code
    assert "sqrt.rn.f32" in code
    assert "fma." not in code


def test_no_native_source_includes_torch():
    for path in [*CSRC.glob("*.h"), *CSRC.glob("*.cpp")]:
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)", path.read_text()), path.name
