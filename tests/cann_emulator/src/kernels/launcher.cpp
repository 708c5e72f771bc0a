// Kernel arguments and the launch itself.
#include "kernel.h"

namespace emulator {

at::Tensor TensorArg::operator*() const {
  if (!handle) throw Refusal{code::invalid_parameter, "a tensor that the kernel needs is absent"};
  if (!handle->refusal.empty()) throw Refusal{code::invalid_parameter, handle->refusal};
  return handle->tensor;
}

std::optional<at::Tensor> TensorArg::optional() const { return handle ? std::optional(**this) : std::nullopt; }

void TensorArg::write(const at::Tensor& result) const {
  if (!handle) return;
  at::Tensor out = **this;
  if (!result.defined()) throw Refusal{code::kernel_failed, "no result for an output that was asked for"};
  out.copy_(out.sizes() != result.sizes() && out.numel() == result.numel() ? result.reshape(out.sizes()) : result);
}

void TensorArg::write_with_shape(const at::Tensor& result) const {
  at::Tensor buffer = **this;
  at::from_blob(buffer.data_ptr(), result.sizes(), buffer.options()).copy_(result);
  handle->view_shape.assign(result.sizes().begin(), result.sizes().end());
}

at::Tensor TensorsArg::operator[](size_t index) const {
  return *TensorArg{const_cast<TensorHandle*>(handle->members.at(index))};
}

void TensorsArg::write(size_t index, const at::Tensor& result) const {
  TensorArg{const_cast<TensorHandle*>(handle->members.at(index))}.write(result);
}

std::vector<at::Tensor> TensorsArg::all() const {
  std::vector<at::Tensor> tensors;
  for (size_t index = 0; index < size(); index++) tensors.push_back((*this)[index]);
  return tensors;
}

std::vector<at::Scalar> ScalarsArg::of_size(size_t count) const {
  switch (handle->kind) {
    case Kind::scalars:
      return static_cast<ScalarsHandle*>(handle)->values;
    case Kind::scalar:
      return std::vector<at::Scalar>(count, static_cast<ScalarHandle*>(handle)->value);
    case Kind::tensor: {
      at::Tensor flat = (*TensorArg{static_cast<TensorHandle*>(handle)}).reshape({-1});
      std::vector<at::Scalar> values;
      for (size_t index = 0; index < count; index++) values.push_back(flat[flat.numel() == 1 ? 0 : index].item());
      return values;
    }
    default:
      throw Refusal{code::invalid_parameter, "neither a scalar nor a tensor nor a list of scalars"};
  }
}

int prepare(Launch* launch, uint64_t* workspace_bytes, Launch** out) {
  // CANN_EMULATOR_WORKSPACE=kernel=bytes: scratch memory to request from torch-npu's workspace allocator.
  static const std::string plan = setting("WORKSPACE") ? setting("WORKSPACE") : "";
  static const auto equals = plan.find('=');
  bool planned = equals != std::string::npos && plan.substr(0, equals) == launch->kernel;
  if (workspace_bytes) *workspace_bytes = planned ? strtoull(plan.c_str() + equals + 1, nullptr, 10) : 0;
  *out = launch;
  return code::success;
}

namespace {
// With the task queue off a kernel runs on the user's thread: autograd, autocast and Python's modes must not see it.
struct PlainDispatch {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard excluded{
      c10::autocast_dispatch_keyset |
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot})};
};

int refuse(const char* kernel, int code, const std::string& why) {
  std::string message = std::string("the emulator's ") + kernel + ": " + why;
  fprintf(stderr, "cann emulator: %s: %s\n", kernel, why.c_str());
  set_error("EZ9999: " + message);
  return code;
}
}  // namespace

int run(Launch* launch) {
  std::unique_ptr<Launch> owned(launch);
  // After a fault the context is dead: launches do nothing, and the next synchronize reports it.
  if (pending_fault()) return code::success;
  note_launch(launch->kernel);
  if (faults_now(launch->kernel) || is_nulled(launch->kernel)) return code::success;
  try {
    PlainDispatch plain;
    launch->body();
  } catch (const Refusal& refusal) {
    return refuse(launch->kernel, refusal.code, refusal.message);
  } catch (const std::exception& error) {
    return refuse(launch->kernel, code::kernel_failed, error.what());
  }
  return code::success;
}

}  // namespace emulator
