// Reads the address, dtype, device, shape and strides of tensors through DLPack's C exchange API (DLPack 1.3, which
// torch's tensor type offers as a capsule): a thousand tensors in a few microseconds, without torch's headers. The
// structs are the stable C ABI that DLPack specifies.
#pragma once

#include <Python.h>
#include <structmember.h>

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

// What a list of tensors must match. `layouts` holds ndim, the sizes and the strides of each tensor in turn.
// clang-format off
#define DR_EXPECTED(FIELD)                                                               \
  FIELD(const dlpack::ExchangeAPI*, api) FIELD(const int64_t*, layouts)                 \
  FIELD(int64_t, count) FIELD(int32_t, type_code) FIELD(int32_t, type_bits)             \
  FIELD(int32_t, device_type) FIELD(int32_t, device_id) FIELD(int32_t, sharded)
// clang-format on

struct Expected {
  DR_EXPECTED(DR_DECLARE)
};

enum class Match : int { kNo = 0, kAll = 1, kSomeMissing = 2 };

// Writes the address of a tensor. Returns false if it does not match, is not a plain tensor, or has elements but no
// address. Strides are compared only in dimensions larger than 1. `layout` advances to the next tensor's.
inline bool match_one(const Expected& expected, PyObject* object, const int64_t*& layout, int64_t& address) {
  const int64_t ndim = *layout++;
  const int64_t *sizes = layout, *strides = layout + ndim;
  layout += 2 * ndim;
  address = 0;
  if (object == Py_None) return true;
  Tensor t;
  if (expected.api->tensor_from_object(object, &t) != 0) {
    PyErr_Clear();
    return false;
  }
  if (t.ndim != ndim || t.dtype.code != expected.type_code || t.dtype.bits != expected.type_bits ||
      t.device.type != expected.device_type || t.device.id != expected.device_id)
    return false;
  bool empty = false;
  for (int64_t i = 0; i < ndim; ++i) {
    if (t.shape[i] != sizes[i] || (sizes[i] > 1 && t.strides[i] != strides[i])) return false;
    empty = empty || sizes[i] == 0;
  }
  address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(t.data) + t.byte_offset);
  return t.data || empty;
}

// Whether the result of a call is the given constant; releases the result.
inline bool is(PyObject* result, PyObject* constant) {
  if (!result) PyErr_Clear();
  Py_XDECREF(result);
  return result == constant;
}

// A reference that is released at the end of its scope, or null, whose error is cleared.
class Owned {
 public:
  explicit Owned(PyObject* object) : object_(object) {
    if (!object_) PyErr_Clear();
  }
  ~Owned() { Py_XDECREF(object_); }
  Owned(const Owned&) = delete;
  operator PyObject*() const { return object_; }

 private:
  PyObject* object_;
};

// An attribute of Python objects. If their class lists it in `__slots__`, as DTensor does, it is a pointer at an offset
// that depends only on the class, and is read three times as fast as by PyObject_GetAttr, which reads all others.
class Slot {
 public:
  explicit Slot(const char* name) : name_(PyUnicode_InternFromString(name)) {}

  // A new reference; null, with an error set, if there is no such attribute.
  PyObject* of(PyObject* object) {
    if (Py_TYPE(object) != type_) find(Py_TYPE(object));
    PyObject* value = offset_ ? *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset_) : nullptr;
    return value ? Py_NewRef(value) : PyObject_GetAttr(object, name_);
  }

 private:
  void find(PyTypeObject* type) {
    const Owned found(PyObject_GetAttr(reinterpret_cast<PyObject*>(type), name_));
    const bool slot = found && Py_TYPE(found) == &PyMemberDescr_Type;
    const PyMemberDef* member =
        slot ? reinterpret_cast<PyMemberDescrObject*>(static_cast<PyObject*>(found))->d_member : nullptr;
    offset_ = member && member->type == T_OBJECT_EX ? member->offset : 0;
    Py_INCREF(type);  // no other class can then have the same address
    Py_XDECREF(type_);
    type_ = type;
  }

  PyObject* const name_;
  PyTypeObject* type_ = nullptr;
  Py_ssize_t offset_ = 0;
};

inline Slot& local_tensor() {
  static Slot slot("_local_tensor");
  return slot;
}

// match_one for a tensor or, if DTensors are expected, for the local tensor of one.
inline bool match_part(const Expected& expected, PyObject* object, const int64_t*& layout, int64_t& address) {
  if (!expected.sharded) return match_one(expected, object, layout, address);
  const Owned local(local_tensor().of(object));
  return local && match_one(expected, local, layout, address);
}

// Whether a DTensor has the placements of `spec`. FSDP's gradients share the spec of their parameters.
inline bool is_distributed_as(PyObject* spec, PyObject* tensor) {
  static PyObject* const placements = PyUnicode_InternFromString("placements");
  static Slot specs("_spec");
  const Owned own(specs.of(tensor));
  if (own == spec || !own) return own;
  const Owned expected(PyObject_GetAttr(spec, placements)), found(PyObject_GetAttr(own, placements));
  if (!expected || !found) return false;
  const int same = PyObject_RichCompareBool(expected, found, Py_EQ);
  if (same < 0) PyErr_Clear();
  return same == 1;
}

// Whether the parameters are the planned objects, require gradients, and have the expected layouts; writes their
// addresses.
inline Match match_parameters(const Expected& expected, PyObject* planned, PyObject* found, int64_t* addresses) {
  static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
  const int64_t* layout = expected.layouts;
  for (Py_ssize_t k = 0; k < PyList_GET_SIZE(planned); ++k) {
    PyObject* p = PyList_GET_ITEM(found, k);
    if (p != PyList_GET_ITEM(planned, k) || !is(PyObject_GetAttr(p, requires_grad), Py_True)) return Match::kNo;
    if (!match_part(expected, p, layout, addresses[k])) return Match::kNo;
  }
  return Match::kAll;
}

// The same for the parameters' gradients. They replace the items of the list `grads`: the local tensors of DTensors,
// instead of their `_spec`s. A gradient of None has the address 0. DLPack does not show torch's negative bit (of views
// such as a conjugate's .imag).
inline Match match_gradients(const Expected& expected, PyObject* params, PyObject* grads, int64_t* addresses) {
  static PyObject* const grad = PyUnicode_InternFromString("grad");
  static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
  const int64_t* layout = expected.layouts;
  Match result = Match::kAll;
  for (Py_ssize_t k = 0; k < PyList_GET_SIZE(params); ++k) {
    PyObject* p = PyList_GET_ITEM(params, k);
    PyObject* g = PyObject_GetAttr(p, grad);
    if (g && expected.sharded && g != Py_None) {
      const Owned whole(g);
      g = is_distributed_as(PyList_GET_ITEM(grads, k), whole) ? local_tensor().of(whole) : nullptr;
    }
    if (!g) {
      PyErr_Clear();
      return Match::kNo;
    }
    PyList_SetItem(grads, k, g);
    if (g == Py_None) {
      result = Match::kSomeMissing;
    } else if (!is(PyObject_CallMethodNoArgs(g, is_neg), Py_False)) {
      return Match::kNo;
    }
    if (!match_one(expected, g, layout, addresses[k])) return Match::kNo;
  }
  return result;
}

}  // namespace deeprelax::dlpack
