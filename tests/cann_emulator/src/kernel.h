// Handles, kernel arguments and the KERNEL macro, for every file that computes through libtorch.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <functional>
#include <memory>
#include <tuple>

#include "emulator.h"

namespace emulator {

// ---- handles: what the aclCreate... functions return begins with its kind, since some kernels take one of several

enum class Kind : char { tensor, scalar, ints, bools, floats, tensors, scalars };

struct Handle {
  Kind kind;
};
struct TensorHandle : Handle {
  at::Tensor tensor;
  std::vector<int64_t> view_shape;  // what aclGetViewShape reports: kernels with results of unknown size change it
  std::string refusal;              // why the handle could not be made, thrown when a kernel uses it
};
struct ScalarHandle : Handle {
  at::Scalar value;
};
struct IntsHandle : Handle {
  std::vector<int64_t> values;
};
struct BoolsHandle : Handle {
  std::vector<bool> values;
};
struct FloatsHandle : Handle {
  std::vector<float> values;
};
struct TensorsHandle : Handle {
  std::vector<const TensorHandle*> members;  // owned: aclDestroyTensorList frees them
};
struct ScalarsHandle : Handle {
  std::vector<at::Scalar> values;
};

// The tensor from which a norm is taken: in double where the harness takes the CPU's in pieces (MAX_PIECE in
// harness/backends/step.py), since PyTorch adds up one element after another, which is off by 4e-4 of ten million.
inline at::Tensor for_norm(const at::Tensor& tensor) {
  return tensor.numel() > (1 << 14) ? tensor.to(at::kDouble) : tensor;
}
at::ScalarType dtype_of(int acl_data_type);  // throws Refusal for a type that training does not use

// ---- kernel arguments: one pointer each and trivially copyable, so they travel as the pointers that CANN's C
//      signatures have

struct TensorArg {
  TensorHandle* handle;
  explicit operator bool() const { return handle != nullptr; }
  at::Tensor operator*() const;                       // throws Refusal when absent
  std::optional<at::Tensor> optional() const;         // absent is nullopt
  void write(const at::Tensor& result) const;         // copies into the caller's memory; absent takes nothing
  void write_with_shape(const at::Tensor& result) const;  // the caller's memory is an upper bound
};
struct ScalarArg {
  ScalarHandle* handle;
  const at::Scalar& operator*() const { return handle->value; }
  std::optional<at::Scalar> optional() const { return handle ? std::optional(handle->value) : std::nullopt; }
};
struct IntsArg {
  IntsHandle* handle;
  at::IntArrayRef operator*() const { return handle ? at::IntArrayRef(handle->values) : at::IntArrayRef(); }
  at::OptionalIntArrayRef optional() const {  // no dimensions means all of them
    return handle && !handle->values.empty() ? at::OptionalIntArrayRef(handle->values) : at::OptionalIntArrayRef();
  }
};
struct BoolsArg {
  BoolsHandle* handle;
  bool operator[](size_t index) const { return handle->values[index]; }
};
struct TensorsArg {
  TensorsHandle* handle;
  size_t size() const { return handle->members.size(); }
  at::Tensor operator[](size_t index) const;
  void write(size_t index, const at::Tensor& result) const;
  std::vector<at::Tensor> all() const;
};
struct ScalarsArg {  // a scalar, a one-element tensor, a tensor of scalars or a list of scalars: the kind decides
  Handle* handle;
  std::vector<at::Scalar> of_size(size_t count) const;
  at::Scalar single() const { return of_size(1).front(); }
};

// ---- launching: aclnnXGetWorkspaceSize packs the arguments, aclnnX runs the body (launcher.cpp)

struct Launch {
  const char* kernel;
  std::function<void()> body;
};
int prepare(Launch* launch, uint64_t* workspace_bytes, Launch** out);
int run(Launch* launch);

// Arguments outlive the call, but for char pointers: the task queue runs the kernel when they are gone.
template <class Value>
struct Kept {
  Value value;
  Value get() const { return value; }
};
template <>
struct Kept<const char*> {
  std::string value;
  const char* get() const { return value.c_str(); }
};
template <class Value>
Kept<Value> keep(Value value) {
  if constexpr (std::is_same_v<Value, const char*>) {
    return Kept<Value>{value ? value : ""};
  } else {
    return Kept<Value>{value};
  }
}

template <auto body>
struct Kernel;
template <class... Args, void (*body)(Args...)>
struct Kernel<body> {
  static const char* const name;
  static int get_workspace_size(Args... args, uint64_t* workspace_bytes, Launch** launch) {
    if (int code = injected_failure(name)) return code;
    auto packed = std::make_tuple(keep<Args>(args)...);
    auto call = [packed] { std::apply([](const auto&... kept) { body(kept.get()...); }, packed); };
    return prepare(new Launch{name, call}, workspace_bytes, launch);
  }
};

}  // namespace emulator

// The caller's argument types are only known by their C++ mangling, which C names lack: the exported name is a jump that
// leaves every argument register and the stack as they are.
#if defined(__x86_64__)
#define EMULATOR_JUMP(NAME)                                                             \
  asm(".text\n.globl " #NAME "\n.type " #NAME ",@function\n" #NAME ":\n"                \
      "  jmp *" #NAME "_target(%rip)\n.size " #NAME ",.-" #NAME "\n");
#elif defined(__aarch64__)  // written from the ABI's description, never run
#define EMULATOR_JUMP(NAME)                                                             \
  asm(".text\n.globl " #NAME "\n.type " #NAME ",%function\n" #NAME ":\n"                \
      "  adrp x16, " #NAME "_target\n  ldr x16, [x16, :lo12:" #NAME "_target]\n"        \
      "  br x16\n.size " #NAME ",.-" #NAME "\n");
#else
#error "the emulator knows the calling conventions of x86_64 and aarch64 only"
#endif

// KERNEL(aclnnFoo, TensorArg self, ScalarArg alpha, TensorArg out) { body } exports aclnnFooGetWorkspaceSize and aclnnFoo.
#define KERNEL(NAME, ...)                                                                          \
  static void NAME##_body(__VA_ARGS__);                                                            \
  template <>                                                                                      \
  const char* const emulator::Kernel<&NAME##_body>::name = #NAME;                                  \
  [[maybe_unused]] static const bool NAME##_registered = emulator::register_kernel(#NAME);         \
  extern "C" {                                                                                     \
  extern __attribute__((visibility("hidden"))) void* NAME##GetWorkspaceSize_target;                \
  __attribute__((used, visibility("hidden"))) void* NAME##GetWorkspaceSize_target =                \
      (void*)&emulator::Kernel<&NAME##_body>::get_workspace_size;                                  \
  int NAME(void*, uint64_t, emulator::Launch* launch, void*) { return emulator::run(launch); }     \
  }                                                                                                \
  EMULATOR_JUMP(NAME##GetWorkspaceSize)                                                            \
  static void NAME##_body(__VA_ARGS__)
