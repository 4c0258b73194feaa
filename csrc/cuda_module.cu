// The Python module deeprelax._cuda: launches the kernels on the stream that Python passes in. Stateless.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "cuda.h"
#include "module.h"

namespace py = pybind11;
using namespace deeprelax;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Nothing if there was no error.
void raise(int error, const std::string& what) {
  if (error == cudaSuccess) return;
  const auto code = static_cast<cudaError_t>(error);
  throw std::runtime_error(what + ": " + cudaGetErrorString(code) + " (" + cudaGetErrorName(code) + ")");
}

// Where a launch goes: device, stream, and whether it is emulated on the host.
using Where = std::tuple<int, uintptr_t, bool>;

constexpr const char* kRules[] = {"entropy_sgd", "hj", "heat"};
constexpr const char* kDTypes[] = {"float64", "float32", "bfloat16", "float16"};

template <class Launch>
void on_device(const Where& where, Do what, const std::string& name, Launch launch) {
  const auto [device, stream, emulated] = where;
  if (emulated) {
    if (what == Do::kLaunch) launch(nullptr, Do::kEmulate);
    return;
  }
  const std::string place = name + " on cuda:" + std::to_string(device);
  py::gil_scoped_release released;
  // torch has made it current, but this runtime, linked statically, is not torch's.
  raise(cudaSetDevice(device), place);
  raise(launch(at<CUstream_st>(stream), what), place);
}

int one_call(const CudaCall& call, CUstream_st* stream, Do what) {
  switch (call.rule) {
    case Rule::kEntropySGD:
      return cuda_entropy_sgd(call, stream, what);
    case Rule::kHJ:
      return cuda_hj(call, stream, what);
    case Rule::kHeat:
      return cuda_heat(call, stream, what);
  }
  return cudaErrorInvalidValue;
}

void run(int rule, int dtype, uint32_t flags, const std::array<double, kReals>& reals, std::array<uint32_t, 3> stream,
         uintptr_t ticked, bool fast, const std::array<uintptr_t, 4>& tables, int64_t n_chunks,
         const std::array<uintptr_t, 5>& buffers, const Where& where) {
  CudaCall call{};
  call.rule = static_cast<Rule>(rule);
  call.dtype = static_cast<DType>(dtype);
  call.numbers = numbers_of(reals.data(), flags, stream.data());
  call.ticked = at<const Numbers>(ticked);
  call.fast = fast;
  call.weights = at<const int64_t>(tables[0]);
  call.grads = at<const int64_t>(tables[1]);
  call.tensors = at<const Tensor>(tables[2]);
  call.chunks = at<const CudaChunk>(tables[3]);
  call.n_chunks = n_chunks;
  call.x = at<void>(buffers[0]);
  call.y = at<void>(buffers[1]);
  call.average = at<void>(buffers[2]);
  call.momentum = at<void>(buffers[3]);
  call.velocity = at<void>(buffers[4]);
  const std::string name = std::string(kRules[rule]) + "<" + kDTypes[dtype] + ">, " + std::to_string(n_chunks) +
                           " chunks of " + std::to_string(kCudaChunk) + " elements or fewer";
  on_device(where, Do::kLaunch, name, [&](CUstream_st* on, Do what) { return one_call(call, on, what); });
}

void tick(int rule, const TickSettings& settings, const TickSources& sources, uintptr_t clock, uintptr_t numbers,
          const Where& where) {
  const std::string name = std::string("tick of ") + kRules[rule] + ", one thread";
  on_device(where, Do::kLaunch, name, [&](CUstream_st* on, Do what) {
    return cuda_tick(static_cast<Rule>(rule), cuda::settings_of(settings), cuda::sources_of(sources),
                     at<cuda::Clock>(clock), at<Numbers>(numbers), on, what);
  });
}

// Every kernel for weights of that type, and the clock's.
void load(int dtype, const Where& where) {
  on_device(where, Do::kLoad, std::string("loading the kernels for ") + kDTypes[dtype], [&](CUstream_st* on, Do what) {
    CudaCall call{};
    call.dtype = static_cast<DType>(dtype);
    int error = cuda_tick(call.rule, {}, {}, nullptr, nullptr, on, what);
    for (Rule rule : {Rule::kEntropySGD, Rule::kHJ, Rule::kHeat}) {
      call.rule = rule;
      if (!error) error = one_call(call, on, what);
    }
    return error;
  });
}

// Why no GPU can be used, or an empty text.
std::string problem() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
  return count == 0 ? "the driver sees no GPU" : "";
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of deeprelax. Stateless; addresses and sizes are integers; see kernels/cuda_backend.py.";
  m.def("run", &run, "One call of an update rule on a table of tensors, in place: one launch.");
  m.def("tick", &tick, "Derives the scalars of the next call from a clock on the device, and advances the clock.");
  m.def("load", &load, "Loads the kernels for weights of a type onto a device, where they are not there yet.");
  m.def("problem", &problem, "Why no GPU can be used here; empty if one can.");
  m.attr("chunk") = kCudaChunk;
  m.attr("clock_bytes") = sizeof(cuda::Clock);
  m.attr("numbers_bytes") = sizeof(Numbers);
  m.attr("compiler") = std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__) + "." +
                       std::to_string(__CUDACC_VER_BUILD__);
#ifdef DR_CUDA_ARCHITECTURES
  m.attr("architectures") = DR_CUDA_ARCHITECTURES;
#endif
}
