// Reads where tensors lie through DLPack's C exchange API (DLPack 1.3, which torch's tensor type offers as a capsule):
// address, dtype, device, shape and strides of a thousand tensors in a few microseconds, without torch's headers. The
// structs are the stable C ABI that DLPack specifies.
#pragma once

#include <Python.h>

#include <cstdint>

#include "abi.h"

namespace deeprelax::dlpack {

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct Device {
  int32_t type, id;
};
struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct ExchangeAPI {
  uint32_t major, minor;
  const void* previous;
  void *allocate, *managed_from_object, *managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);
  void* current_stream;
};

// What a list of tensors must be like. `layouts` holds for each tensor ndim, then its sizes, then its strides.
// clang-format off
#define DR_EXPECTED(FIELD)                                                               \
  FIELD(const dlpack::ExchangeAPI*, api) FIELD(const int64_t*, layouts)                 \
  FIELD(int64_t, count) FIELD(int32_t, type_code) FIELD(int32_t, type_bits)             \
  FIELD(int32_t, device_type) FIELD(int32_t, device_id)
// clang-format on

struct Expected {
  DR_EXPECTED(DR_DECLARE)
};

enum class Match : int { kNo = 0, kAll = 1, kSomeMissing = 2 };

// Writes the tensors' addresses, 0 for None; kNo if one is not as expected, is no tensor of its own memory, or has no
// address although it has elements. Strides count only in dimensions larger than 1.
inline Match match(const Expected& expected, PyObject* tensors, int64_t* addresses) {
  const int64_t* layout = expected.layouts;
  Match result = Match::kAll;
  for (Py_ssize_t k = 0; k < PyList_GET_SIZE(tensors); ++k) {
    PyObject* object = PyList_GET_ITEM(tensors, k);
    const int64_t ndim = *layout++;
    const int64_t *sizes = layout, *strides = layout + ndim;
    layout += 2 * ndim;
    addresses[k] = 0;
    if (object == Py_None) {
      result = Match::kSomeMissing;
      continue;
    }
    Tensor t;
    if (expected.api->tensor_from_object(object, &t) != 0) {
      PyErr_Clear();
      return Match::kNo;
    }
    if (t.ndim != ndim || t.dtype.code != expected.type_code || t.dtype.bits != expected.type_bits ||
        t.device.type != expected.device_type || t.device.id != expected.device_id)
      return Match::kNo;
    bool empty = false;
    for (int64_t i = 0; i < ndim; ++i) {
      if (t.shape[i] != sizes[i] || (sizes[i] > 1 && t.strides[i] != strides[i])) return Match::kNo;
      empty = empty || sizes[i] == 0;
    }
    if (!t.data && !empty) return Match::kNo;
    addresses[k] = static_cast<int64_t>(reinterpret_cast<uintptr_t>(t.data) + t.byte_offset);
  }
  return result;
}

}  // namespace deeprelax::dlpack
