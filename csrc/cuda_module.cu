// The Python module deeprelax._cuda: launches the kernels on the stream that Python passes in. Stateless.
#include <pybind11/pybind11.h>

#include <string>

#include "cuda.h"
#include "describe.h"
#include "options.h"

namespace py = pybind11;
using namespace deeprelax;

namespace {

#define DR_NAME(_, name) #name,
constexpr const char* kRules[] = {DR_RULES(DR_NAME)};
constexpr const char* kDTypes[] = {DR_DTYPES(DR_NAME)};

#define DR_RUN(Rule, header) cuda::run<cuda::Rule>,
constexpr decltype(&cuda::run<cuda::HJ>) kRun[] = {DR_RULES(DR_RUN)};
#define DR_ADVANCE(Rule, header) cuda::advance<cuda::Rule>,
constexpr decltype(&cuda::advance<cuda::HJ>) kAdvance[] = {DR_RULES(DR_ADVANCE)};

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Throws if `error` is one.
void raise(int error, const std::string& what) {
  if (error == cudaSuccess) return;
  const auto code = static_cast<cudaError_t>(error);
  throw std::runtime_error(what + ": " + cudaGetErrorString(code) + " (" + cudaGetErrorName(code) + ")");
}

// Elements per block, for weights of that type.
int chunk(uint32_t dtype) {
#define DR_BYTES(P, name) sizeof(P),
  using cuda::bfloat16, cuda::float16;
  constexpr int kBytes[] = {DR_DTYPES(DR_BYTES)};
  return cuda_chunk(kBytes[dtype]);
}

// `describe` names the work if it fails.
template <class Work, class Describe>
void on_device(int device, bool emulated, Work work, Describe describe) {
  if (emulated) {
    work(Do::kEmulate);
    return;
  }
  int error;
  {
    py::gil_scoped_release released;
    // torch has made the device current in its own CUDA runtime; this module links another one statically.
    int current = -1;
    error = cudaGetDevice(&current);
    if (!error && current != device) error = cudaSetDevice(device);
    if (!error) error = work(Do::kLaunch);
  }
  if (error) raise(error, describe() + " on cuda:" + std::to_string(device));
}

void start(const CudaLaunch& launch, const DeviceScalars& scalars, const DeviceScalars* ticked, uint32_t options,
           uintptr_t stream) {
  on_device(
      launch.device, launch.emulated,
      [&](Do what) { return kRun[launch.rule](launch, scalars, ticked, options, at<CUstream_st>(stream), what); },
      [&] {
        return std::string(kRules[launch.rule]) + "<" + kDTypes[launch.dtype] + ">, " +
               std::to_string(launch.n_chunks) + " chunks of " + std::to_string(chunk(launch.dtype)) +
               " elements or fewer";
      });
}

void run(uintptr_t launch, uintptr_t scalars_address, uintptr_t stream) {
  DeviceScalars scalars;
  scalars.wide = *at<const Scalars<double>>(scalars_address);
  scalars.wide.flags = cuda::options_of(scalars.wide);
  scalars.narrow = cuda::rounded<float>(scalars.wide);
  start(*at<const CudaLaunch>(launch), scalars, nullptr, scalars.wide.flags, stream);
}

// What the host knows of the options of a call whose scalars are on the device.
uint32_t options_of(const Hyper& hyper) {
  uint32_t options = hyper.flags;
  if (hyper.temperature != 0) options |= kNoise;
  if (hyper.inner_momentum != 0) options |= kInnerMomentum;
  if (hyper.inner_steps == 1) options |= kPhase;
  return options;
}

void run_ticked(uintptr_t launch, uintptr_t hyper, uintptr_t ticked, uintptr_t stream) {
  start(*at<const CudaLaunch>(launch), {}, at<const DeviceScalars>(ticked), options_of(*at<const Hyper>(hyper)),
        stream);
}

void tick(unsigned rule, uintptr_t hyper, uintptr_t sources, uintptr_t clock, uintptr_t scalars, int device,
          bool emulated, uintptr_t stream) {
  on_device(
      device, emulated,
      [&](Do what) {
        return kAdvance[rule](*at<const Hyper>(hyper), *at<const Sources>(sources), at<ClockWords>(clock),
                              at<DeviceScalars>(scalars), at<CUstream_st>(stream), what);
      },
      [&] { return std::string("tick of ") + kRules[rule] + ", one thread"; });
}

// Loads every kernel for weights of that type, and the clocks'.
void load(uint32_t dtype, int device) {
  CudaLaunch launch{};
  launch.dtype = dtype;
  on_device(
      device, false,
      [&](Do) {
        int error = 0;
        for (const auto advance : kAdvance)
          if (!error) error = advance({}, {}, nullptr, nullptr, nullptr, Do::kLoad);
        for (const auto run : kRun)
          if (!error) error = run(launch, {}, nullptr, 0, nullptr, Do::kLoad);
        return error;
      },
      [&] { return std::string("loading the kernels for ") + kDTypes[dtype]; });
}

// Why no GPU can be used; empty if one can.
std::string problem() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
  return count == 0 ? "the driver sees no GPU" : "";
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of deeprelax. Stateless; addresses and sizes are integers; see kernels/cuda.py.";
  m.def("run", &run, "One update of a CudaLaunch with Scalars, both by address, in place: one launch.");
  m.def("run_ticked", &run_ticked, "The same with the scalars that tick() has derived on the device.");
  m.def("tick", &tick, "Derives the scalars of the next call from a clock on the device, and advances the clock.");
  m.def("load", &load, "Loads the kernels for weights of a type onto a device, where they are not there yet.");
  m.def("problem", &problem, "Why no GPU can be used here; empty if one can.");
  m.def("abi", &describe_abi, "Names, values and offsets of csrc/abi.h.");
  m.def("chunk", &chunk, "Elements of a block, for weights of a type.");
  m.attr("tensors") = kCudaTensors;
  m.attr("leads") = kCudaLeads;
  m.attr("compiler") = std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__) + "." +
                       std::to_string(__CUDACC_VER_BUILD__);
#ifdef DR_CUDA_ARCHITECTURES
  m.attr("architectures") = DR_CUDA_ARCHITECTURES;
#endif
}
