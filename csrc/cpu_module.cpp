// The Python module deeprelax._cpu: picks an instruction set at run time and shares the chunks among threads.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "cpu.h"
#include "cpu_threads.h"
#include "describe.h"
#include "exchange.h"
#include "options.h"

namespace py = pybind11;
using namespace deeprelax;

namespace {

struct InstructionSet {
  const char* name;
  std::vector<Run> rules;
  Normals normals;
};

// The compiled instruction sets that this processor supports, narrowest first.
std::vector<InstructionSet> find_instruction_sets() {
#define DR_RUN_BASELINE(Rule, header) baseline::run<baseline::Rule>,
#define DR_RUN_AVX2(Rule, header) avx2::run<avx2::Rule>,
#define DR_RUN_AVX512(Rule, header) avx512::run<avx512::Rule>,
  std::vector<InstructionSet> sets{{"baseline", {DR_RULES(DR_RUN_BASELINE)}, baseline::normals}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool f16c = __builtin_cpu_supports("f16c");
  if (f16c && __builtin_cpu_supports("avx2")) sets.push_back({"avx2", {DR_RULES(DR_RUN_AVX2)}, avx2::normals});
  if (f16c && __builtin_cpu_supports("avx512f")) sets.push_back({"avx512", {DR_RULES(DR_RUN_AVX512)}, avx512::normals});
#endif
  return sets;
}

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = find_instruction_sets();
  return sets;
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void run(uintptr_t launch_address, uintptr_t scalars_address) {
  const CpuLaunch& launch = *at<const CpuLaunch>(launch_address);
  DeviceScalars scalars;
  scalars.wide = *at<const Scalars<double>>(scalars_address);
  scalars.wide.flags = baseline::options_of(scalars.wide);
  scalars.narrow = baseline::rounded<float>(scalars.wide);
  const Run chosen = instruction_sets()[launch.instruction_set].rules[launch.rule];
  const int64_t threads = launch.threads;
  const int64_t grain = threads > 1 ? launch.n_chunks / (launch.pieces * threads) : launch.n_chunks;
  py::gil_scoped_release released;
  share([&](int64_t begin, int64_t end) { chosen(launch, scalars, begin, end); }, launch.n_chunks, grain,
        launch.threads, launch.parallel);
}

void run_yardstick(const std::array<uintptr_t, 4>& buffers, bool update_w, int64_t size, int64_t grain,
                   unsigned threads, uintptr_t parallel) {
  py::gil_scoped_release released;
  share(
      [&](int64_t begin, int64_t end) {
        yardstick(at<const float>(buffers[0]), at<const float>(buffers[1]), at<float>(buffers[2]),
                  at<float>(buffers[3]), update_w, begin, end);
      },
      size, grain, threads, reinterpret_cast<Parallel>(parallel));
}

// `first` and `second` must have `expected.count` tensors each; as many addresses are written to `addresses`.
template <dlpack::Match (*Match)(const dlpack::Expected&, PyObject*, PyObject*, int64_t*)>
int match(uintptr_t expected_address, const py::list& first, const py::list& second, uintptr_t addresses) {
  const auto& expected = *at<const dlpack::Expected>(expected_address);
  for (const py::list& tensors : {first, second})
    if (expected.count != static_cast<int64_t>(tensors.size()))
      throw py::value_error("match: expected " + std::to_string(expected.count) + " tensors");
  return static_cast<int>(Match(expected, first.ptr(), second.ptr(), at<int64_t>(addresses)));
}

void normals(unsigned instruction_set, uintptr_t out, std::array<uint32_t, 3> draw, uint32_t index, int64_t start,
             int64_t count) {
  const Normals fill = instruction_sets().at(instruction_set).normals;
  py::gil_scoped_release released;
  fill(at<float>(out), draw[0], draw[1], index, draw[2], start, count);
}

std::vector<std::string> names() {
  std::vector<std::string> result;
  for (const InstructionSet& set : instruction_sets()) result.emplace_back(set.name);
  return result;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of deeprelax. Stateless; addresses and sizes are integers; see kernels/cpu.py.";
  m.def("run", &run, "One update of a CpuLaunch with Scalars, both by address, in place, without the GIL.");
  m.def("yardstick", &run_yardstick, "The benchmarks' yardstick: a plain loop that moves the words of an inner call.");
  m.def("match_parameters", &match<dlpack::match_parameters>,
        "Whether parameters are the planned ones, need gradients, and have the expected layouts; their addresses.");
  m.def("match_gradients", &match<dlpack::match_gradients>,
        "Whether the gradients of parameters have the expected layouts; the gradients and their addresses.");
  m.def("normals", &normals, "float32 normals of elements start ... start + count - 1 to the address `out`.");
  m.def("instruction_sets", &names, "Those that this processor can run, narrowest first.");
  m.def("abi", [] {
    py::dict abi = describe_abi();
    DR_DESCRIBE(abi["structs"], "Expected", dlpack::Expected, DR_EXPECTED(DR_DESCRIBE_FIELD))
    return abi;
  });
}
