// The acl objects that describe a kernel's arguments.
#include "kernel.h"

using namespace emulator;

at::ScalarType emulator::dtype_of(int acl_data_type) {
  switch (acl_data_type) {
    case 0: return at::kFloat;
    case 1: return at::kHalf;
    case 2: return at::kChar;
    case 3: return at::kInt;
    case 4: return at::kByte;
    case 6: return at::kShort;
    case 9: return at::kLong;
    case 11: return at::kDouble;
    case 12: return at::kBool;
    case 27: return at::kBFloat16;
    default: throw Refusal{code::invalid_parameter, "aclDataType " + std::to_string(acl_data_type)};
  }
}

namespace {
// Plain layouts: NCHW, NHWC, ND, NCDHW, NCL. Everything else is one of the device's private formats.
bool is_plain_format(int format) {
  return format == 0 || format == 1 || format == 2 || format == 30 || format == 47;
}

template <class HandleType>
HandleType* made(HandleType* handle, Kind kind) {
  handle->kind = kind;
  return handle;
}

template <class HandleType>
int destroy(const HandleType* handle) {
  delete handle;
  return code::success;
}
}  // namespace

extern "C" {

TensorHandle* aclCreateTensor(const int64_t* shape, uint64_t dimensions, int data_type, const int64_t* strides,
                              int64_t offset, int format, const int64_t*, uint64_t, void* storage) {
  auto* handle = made(new TensorHandle, Kind::tensor);
  handle->view_shape.assign(shape, shape + dimensions);
  try {
    if (!is_plain_format(format)) throw Refusal{0, "private tensor format " + std::to_string(format)};
    at::ScalarType dtype = dtype_of(data_type);
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    c10::impl::ExcludeDispatchKeyGuard no_python(
        c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot}));
    // `storage` is the beginning of the storage, the offset counts elements. The strides are kept: matrix products of
    // transposed views then add in the same order as the CPU's own.
    auto* data = static_cast<char*>(storage) + offset * c10::elementSize(dtype);
    handle->tensor = at::from_blob(data, at::IntArrayRef(shape, dimensions), at::IntArrayRef(strides, dimensions),
                                   at::TensorOptions().dtype(dtype).device(at::kCPU));
  } catch (const Refusal& refusal) {
    handle->refusal = refusal.message;
  } catch (const std::exception& error) {
    handle->refusal = error.what();
  }
  return handle;
}

ScalarHandle* aclCreateScalar(void* value, int data_type) {
  auto* handle = made(new ScalarHandle, Kind::scalar);
  switch (data_type) {
    case 0: handle->value = *static_cast<float*>(value); break;
    case 1: handle->value = static_cast<float>(*static_cast<at::Half*>(value)); break;
    case 3: handle->value = *static_cast<int32_t*>(value); break;
    case 9: handle->value = *static_cast<int64_t*>(value); break;
    case 11: handle->value = *static_cast<double*>(value); break;
    case 12: handle->value = *static_cast<bool*>(value); break;
    case 27: handle->value = static_cast<float>(*static_cast<at::BFloat16*>(value)); break;
    default:
      fprintf(stderr, "cann emulator: scalar of aclDataType %d\n", data_type);
      delete handle;
      return nullptr;
  }
  return handle;
}

IntsHandle* aclCreateIntArray(const int64_t* values, uint64_t count) {
  auto* handle = made(new IntsHandle, Kind::ints);
  handle->values.assign(values, values + count);
  return handle;
}

BoolsHandle* aclCreateBoolArray(const bool* values, uint64_t count) {
  auto* handle = made(new BoolsHandle, Kind::bools);
  handle->values.assign(values, values + count);
  return handle;
}

FloatsHandle* aclCreateFloatArray(const float* values, uint64_t count) {
  auto* handle = made(new FloatsHandle, Kind::floats);
  handle->values.assign(values, values + count);
  return handle;
}

TensorsHandle* aclCreateTensorList(const TensorHandle* const* members, uint64_t count) {
  auto* handle = made(new TensorsHandle, Kind::tensors);
  handle->members.assign(members, members + count);
  return handle;
}

ScalarsHandle* aclCreateScalarList(const ScalarHandle* const* members, uint64_t count) {
  auto* handle = made(new ScalarsHandle, Kind::scalars);
  for (uint64_t index = 0; index < count; index++) handle->values.push_back(members[index]->value);
  return handle;
}

int aclDestroyTensor(const TensorHandle* handle) { return destroy(handle); }
int aclDestroyScalar(const ScalarHandle* handle) { return destroy(handle); }
int aclDestroyIntArray(const IntsHandle* handle) { return destroy(handle); }
int aclDestroyBoolArray(const BoolsHandle* handle) { return destroy(handle); }
int aclDestroyFloatArray(const FloatsHandle* handle) { return destroy(handle); }
int aclDestroyScalarList(const ScalarsHandle* handle) { return destroy(handle); }
int aclDestroyTensorList(const TensorsHandle* handle) {
  if (handle) {
    for (auto* member : handle->members) delete member;
  }
  return destroy(handle);
}

int aclGetViewShape(const TensorHandle* handle, int64_t** shape, uint64_t* dimensions) {
  *dimensions = handle->view_shape.size();
  *shape = new int64_t[handle->view_shape.size() + 1];  // the caller deletes it
  std::copy(handle->view_shape.begin(), handle->view_shape.end(), *shape);
  return code::success;
}

}  // extern "C"
