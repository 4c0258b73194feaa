// abi(): names, values and offsets of abi.h for tests/kernels/test_abi.py.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <type_traits>

#include "abi.h"

namespace deeprelax {

// Adds to `structs` the size of a struct and a description of each of its fields.
#define DR_DESCRIBE_FIELD(type, name) \
  fields[#name] =                     \
      pybind11::make_tuple(offsetof(Self, name), sizeof(Self::name), std::is_floating_point_v<decltype(Self::name)>);
#define DR_DESCRIBE(structs, struct_name, Struct, FIELDS)              \
  {                                                                    \
    using Self = Struct;                                               \
    pybind11::dict fields;                                             \
    FIELDS;                                                            \
    structs[struct_name] = pybind11::make_tuple(sizeof(Self), fields); \
  }

// rules, dtypes and flags: {name: value}; structs: {name: (size, {field: (offset, size, is floating-point)})}.
inline pybind11::dict describe_abi() {
  namespace py = pybind11;
  py::dict rules, dtypes, flags, structs, all;
#define DR_DESCRIBE_RULE(Rule, header) rules[#header] = rules.size();
  DR_RULES(DR_DESCRIBE_RULE)
#define DR_DESCRIBE_DTYPE(type, name) dtypes[#name] = dtypes.size();
  DR_DTYPES(DR_DESCRIBE_DTYPE)
#define DR_DESCRIBE_FLAG(name, python, bit) flags[#python] = py::int_(static_cast<uint32_t>(name));
  DR_FLAGS(DR_DESCRIBE_FLAG)
  DR_DESCRIBE(structs, "Scalars", Scalars<double>, DR_SCALARS(DR_DESCRIBE_FIELD, double))
  DR_DESCRIBE(structs, "NarrowScalars", Scalars<float>, DR_SCALARS(DR_DESCRIBE_FIELD, float))
  DR_DESCRIBE(structs, "DeviceScalars", DeviceScalars, DR_DEVICE_SCALARS(DR_DESCRIBE_FIELD))
  DR_DESCRIBE(structs, "Hyper", Hyper, DR_HYPER(DR_DESCRIBE_FIELD))
  DR_DESCRIBE(structs, "ClockWords", ClockWords, DR_CLOCK_WORDS(DR_DESCRIBE_FIELD))
  DR_DESCRIBE(structs, "Sources", Sources, DR_SOURCES(DR_DESCRIBE_FIELD))
  DR_DESCRIBE(structs, "CpuLaunch", CpuLaunch, DR_CPU_LAUNCH(DR_DESCRIBE_FIELD))
  DR_DESCRIBE(structs, "CudaLaunch", CudaLaunch, DR_CUDA_LAUNCH(DR_DESCRIBE_FIELD))
  all["rules"] = rules;
  all["dtypes"] = dtypes;
  all["flags"] = flags;
  all["structs"] = structs;
  return all;
}

}  // namespace deeprelax
