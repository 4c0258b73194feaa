// The Python module deeprelax._cpu: picks an instruction set at run time and shares the chunks among threads.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu.h"
#include "exchange.h"
#include "module.h"

namespace py = pybind11;
using namespace deeprelax;

namespace {

struct InstructionSet {
  const char* name;
  Run run;
  Normals normals;
};

// What this processor can run of what this library holds, narrowest first.
std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> sets{{"baseline", baseline::run, baseline::normals}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool f16c = __builtin_cpu_supports("f16c");
  if (f16c && __builtin_cpu_supports("avx2")) sets.push_back({"avx2", avx2::run, avx2::normals});
  if (f16c && __builtin_cpu_supports("avx512f")) sets.push_back({"avx512", avx512::run, avx512::normals});
#endif
  return sets;
}

InstructionSet find(const std::string& name) {
  for (const InstructionSet& set : instruction_sets())
    if (set.name == name) return set;
  throw py::value_error("instruction set '" + name + "' is not available on this processor");
}

// GOMP_parallel of the OpenMP runtime that torch has loaded: its threads are awake after a backward pass, and a second
// pool of ours would fight them for the cores. The symbol is part of the ABI of GNU's, LLVM's and Intel's runtimes.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// Units 0 … count - 1, `grain` at a time, taken by whichever thread is free.
template <class Body>
struct Work {
  Body body;
  int64_t count, grain;
  std::atomic<int64_t> next{0};

  void drain() {
    for (int64_t begin; (begin = next.fetch_add(grain, std::memory_order_relaxed)) < count;)
      body(begin, std::min(begin + grain, count));
  }
};

template <class Body>
void share(Body body, int64_t count, int64_t grain, unsigned threads, uintptr_t parallel) {
  Work<Body> work{body, count, std::max<int64_t>(grain, 1)};
  if (threads <= 1) return work.drain();
  if (parallel != 0)
    return reinterpret_cast<Parallel>(parallel)([](void* w) { static_cast<Work<Body>*>(w)->drain(); }, &work, threads,
                                                0);
  std::vector<std::thread> others;
  others.reserve(threads - 1);
  try {
    for (unsigned t = 1; t < threads; ++t) others.emplace_back([&work] { work.drain(); });
  } catch (const std::system_error&) {
    // No more threads to be had: those that started share the work.
  }
  work.drain();
  for (std::thread& t : others) t.join();
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Tables and buffers of a launch, as kernels/native.py sends them.
struct Memory {
  py::buffer weights, grads;
  uintptr_t tensors, chunks;
  int64_t n_chunks;
  std::array<uintptr_t, 5> buffers;
};

struct Threads {
  unsigned count;
  int64_t grain;
  uintptr_t parallel;
};

void run_numbers(const std::string& instruction_set, int rule, int dtype, const Numbers& numbers, const Memory& memory,
                 const Threads& threads) {
  if (numbers.flags & kSkip) return;
  Call call{};
  call.rule = static_cast<Rule>(rule);
  call.dtype = static_cast<DType>(dtype);
  call.numbers = numbers;
  const py::buffer_info w = memory.weights.request(), g = memory.grads.request();
  if (w.size != g.size || w.itemsize != 8 || g.itemsize != 8)
    throw py::value_error("run: weights and grads must be 64-bit addresses, as many of the one as of the other");
  call.weights = static_cast<const int64_t*>(w.ptr);
  call.grads = static_cast<const int64_t*>(g.ptr);
  call.tensors = at<const Tensor>(memory.tensors);
  call.chunks = at<const Chunk>(memory.chunks);
  call.n_chunks = memory.n_chunks;
  call.x = at<void>(memory.buffers[0]);
  call.y = at<void>(memory.buffers[1]);
  call.average = at<void>(memory.buffers[2]);
  call.momentum = at<void>(memory.buffers[3]);
  call.velocity = at<void>(memory.buffers[4]);
  const Run chosen = find(instruction_set).run;
  py::gil_scoped_release released;
  share([&](int64_t begin, int64_t end) { chosen(call, begin, end); }, call.n_chunks, threads.grain, threads.count,
        threads.parallel);
}

void run(const std::string& instruction_set, int rule, int dtype, uint32_t flags,
         const std::array<double, kReals>& reals, std::array<uint32_t, 3> stream, const py::buffer& weights,
         const py::buffer& grads, uintptr_t tensors, uintptr_t chunks, int64_t n_chunks,
         const std::array<uintptr_t, 5>& buffers, unsigned threads, int64_t grain, uintptr_t parallel) {
  run_numbers(instruction_set, rule, dtype, numbers_of(reals.data(), flags, stream.data()),
              {weights, grads, tensors, chunks, n_chunks, buffers}, {threads, grain, parallel});
}

// The same with the numbers that tick() has derived; `flags` are added to theirs.
void run_ticked(const std::string& instruction_set, int rule, int dtype, uint32_t flags, uintptr_t numbers,
                const py::buffer& weights, const py::buffer& grads, uintptr_t tensors, uintptr_t chunks,
                int64_t n_chunks, const std::array<uintptr_t, 5>& buffers, unsigned threads, int64_t grain,
                uintptr_t parallel) {
  Numbers derived = *at<const Numbers>(numbers);
  derived.flags |= flags;
  run_numbers(instruction_set, rule, dtype, derived, {weights, grads, tensors, chunks, n_chunks, buffers},
              {threads, grain, parallel});
}

void tick(int rule, const TickSettings& settings, const TickSources& sources, uintptr_t clock, uintptr_t numbers) {
  baseline::tick(static_cast<Rule>(rule), baseline::settings_of(settings), baseline::sources_of(sources),
                 *at<baseline::Clock>(clock), *at<Numbers>(numbers));
}

void stream_loop(const std::array<uintptr_t, 4>& buffers, bool update_w, int64_t size, int64_t grain, unsigned threads,
                 uintptr_t parallel) {
  py::gil_scoped_release released;
  share(
      [&](int64_t begin, int64_t end) {
        stream(at<const float>(buffers[0]), at<const float>(buffers[1]), at<float>(buffers[2]), at<float>(buffers[3]),
               update_w, begin, end);
      },
      size, grain, threads, parallel);
}

int match(const py::capsule& api, const py::list& tensors, std::array<int, 2> dtype, std::array<int32_t, 2> device,
          const py::buffer& layouts, const py::buffer& addresses) {
  const auto& exchange = *static_cast<const dlpack::ExchangeAPI*>(PyCapsule_GetPointer(api.ptr(), api.name()));
  if (exchange.major != 1 || exchange.tensor_from_object == nullptr) return static_cast<int>(dlpack::Match::kNo);
  const py::buffer_info out = addresses.request(true);
  if (out.itemsize != 8 || out.size != static_cast<py::ssize_t>(tensors.size()))
    throw py::value_error("match: one 64-bit address a tensor");
  const dlpack::DataType type{static_cast<uint8_t>(dtype[0]), static_cast<uint8_t>(dtype[1]), 1};
  const dlpack::Expected expected{type, {device[0], device[1]}, static_cast<const int64_t*>(layouts.request().ptr)};
  return static_cast<int>(dlpack::match(exchange, tensors.ptr(), expected, static_cast<int64_t*>(out.ptr)));
}

void normals(const std::string& instruction_set, uintptr_t out, std::array<uint32_t, 3> stream, uint32_t index,
             int64_t start, int64_t count) {
  const Normals fill = find(instruction_set).normals;
  py::gil_scoped_release released;
  fill(at<float>(out), stream[0], stream[1], index, stream[2], start, count);
}

std::vector<std::string> names() {
  std::vector<std::string> result;
  for (const InstructionSet& set : instruction_sets()) result.emplace_back(set.name);
  return result;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of deeprelax. Stateless; addresses and sizes are integers; see kernels/native.py.";
  m.def("run", &run, "One call of an update rule on a table of tensors, in place, without the GIL.");
  m.def("run_ticked", &run_ticked, "The same with the numbers that tick() has derived.");
  m.def("tick", &tick, "Derives the scalars of the next call from a clock in memory, and advances the clock.");
  m.def("stream", &stream_loop, "The benchmarks' yardstick: a plain loop over the streams of an inner call.");
  m.def("match", &match, "Whether tensors have the expected layouts; their addresses. See kernels/layout.py.");
  m.def("normals", &normals, "float32 normals of elements start ... start + count - 1 to the address `out`.");
  m.def("instruction_sets", &names, "Those that this processor can run, narrowest first.");
}
