// SwiGLU and rotary positions, each as one kernel.
#include "kernel.h"

using namespace emulator;
using at::Tensor;

// ---- SwiGLU: the gate is the first half of the dimension, the value the second

KERNEL(aclnnSwiGlu, TensorArg self, int64_t dimension, TensorArg out) {
  auto halves = (*self).chunk(2, dimension);
  out.write(at::silu(halves[0]) * halves[1]);
}
KERNEL(aclnnSwiGluGrad, TensorArg gradient, TensorArg self, int64_t dimension, TensorArg out) {
  auto halves = (*self).chunk(2, dimension);
  Tensor of_gate = at::silu_backward(*gradient * halves[1], halves[0]);
  out.write(at::cat({of_gate, *gradient * at::silu(halves[0])}, dimension));
}

// ---- rotary positions, with each pair's partner half a head away (mode 0)

namespace {

Tensor turned(const Tensor& x) {
  auto halves = x.chunk(2, -1);
  return at::cat({-halves[1], halves[0]}, -1);
}
Tensor turned_back(const Tensor& x) {
  auto halves = x.chunk(2, -1);
  return at::cat({halves[1], -halves[0]}, -1);
}
void check_mode(int64_t mode) {
  if (mode != 0) throw Refusal{code::invalid_parameter, "rotary mode " + std::to_string(mode)};
}

}  // namespace

KERNEL(aclnnRotaryPositionEmbeddingV2, TensorArg self, TensorArg cosines, TensorArg sines, int64_t mode,
       TensorArg turning_matrix, TensorArg out) {
  check_mode(mode);
  if (turning_matrix) throw Refusal{code::invalid_parameter, "a rotary matrix"};
  out.write(*self * *cosines + turned(*self) * *sines);
}
KERNEL(aclnnRotaryPositionEmbeddingGrad, TensorArg gradient, TensorArg cosines, TensorArg sines, TensorArg self,
       int64_t mode, TensorArg self_gradient, TensorArg cosines_gradient, TensorArg sines_gradient) {
  check_mode(mode);
  self_gradient.write(*gradient * *cosines + turned_back(*gradient * *sines));
  // The tables' gradients are unused here, but the kernel computes them if it gets the input.
  if (!self) return;
  if (cosines_gradient) cosines_gradient.write(at::sum_to(*gradient * *self, (*cosines).sizes()));
  if (sines_gradient) sines_gradient.write(at::sum_to(*gradient * turned(*self), (*sines).sizes()));
}
