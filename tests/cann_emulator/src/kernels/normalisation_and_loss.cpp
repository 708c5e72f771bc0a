// Norms, softmax, cross-entropy. PyTorch's own RMS norm is made of simpler operations.
#include "kernel.h"

using namespace emulator;
using at::Tensor;

// ---- norms

KERNEL(aclnnLayerNorm, TensorArg self, IntsArg shape, TensorArg weight, TensorArg bias, double epsilon, TensorArg out,
       TensorArg mean, TensorArg reciprocal_deviation) {
  auto [normed, means, reciprocals] =
      at::native_layer_norm(*self, *shape, weight.optional(), bias.optional(), epsilon);
  out.write(normed);
  mean.write(means);
  reciprocal_deviation.write(reciprocals);
}
KERNEL(aclnnLayerNormBackward, TensorArg gradient, TensorArg self, IntsArg shape, TensorArg mean,
       TensorArg reciprocal_deviation, TensorArg weight, TensorArg bias, BoolsArg wanted, TensorArg self_gradient,
       TensorArg weight_gradient, TensorArg bias_gradient) {
  // The device keeps its statistics in float32; the CPU wants them in the input's type where weight and input agree.
  auto dtype = (*self).scalar_type();
  bool same_type = weight && (*weight).scalar_type() == dtype;
  auto statistic = [&](TensorArg values) { return same_type ? (*values).to(dtype) : *values; };
  auto [of_self, of_weight, of_bias] = at::native_layer_norm_backward(
      *gradient, *self, *shape, statistic(mean), statistic(reciprocal_deviation), weight.optional(), bias.optional(),
      {wanted[0], wanted[1], wanted[2]});
  if (wanted[0]) self_gradient.write(of_self);
  if (wanted[1]) weight_gradient.write(of_weight);
  if (wanted[2]) bias_gradient.write(of_bias);
}
KERNEL(aclnnRmsNorm, TensorArg self, TensorArg weight, double epsilon, TensorArg out, TensorArg reciprocal_rms) {
  Tensor wide = (*self).to(at::kFloat);
  Tensor reciprocal = at::rsqrt(wide.square().mean(-1, true) + epsilon);
  out.write((wide * reciprocal * (*weight).to(at::kFloat)).to((*self).scalar_type()));
  reciprocal_rms.write(reciprocal);
}
KERNEL(aclnnRmsNormGrad, TensorArg gradient, TensorArg self, TensorArg reciprocal_rms, TensorArg weight,
       TensorArg self_gradient, TensorArg weight_gradient) {
  Tensor normed = (*self).to(at::kFloat) * *reciprocal_rms;
  Tensor scaled = (*gradient).to(at::kFloat) * (*weight).to(at::kFloat);
  self_gradient.write(*reciprocal_rms * (scaled - normed * (scaled * normed).mean(-1, true)));
  auto rows = ((*gradient).to(at::kFloat) * normed).reshape({-1, (*weight).numel()});
  weight_gradient.write(rows.sum(0).view_as(*weight));
}
// ---- softmax

KERNEL(aclnnSoftmax, TensorArg self, int64_t dimension, TensorArg out) { out.write(at::softmax(*self, dimension)); }
KERNEL(aclnnSoftmaxBackward, TensorArg gradient, TensorArg result, int64_t dimension, TensorArg out) {
  out.write(at::_softmax_backward_data(*gradient, *result, dimension, (*result).scalar_type()));
}
KERNEL(aclnnLogSoftmax, TensorArg self, int64_t dimension, TensorArg out) {
  auto dtype = (*out).scalar_type();
  out.write(dtype == (*self).scalar_type() ? at::log_softmax(*self, dimension)
                                           : at::log_softmax(*self, dimension, dtype));
}
KERNEL(aclnnLogSoftmaxBackward, TensorArg gradient, TensorArg result, int64_t dimension, TensorArg out) {
  out.write(at::_log_softmax_backward_data(*gradient, *result, dimension, (*result).scalar_type()));
}

// ---- loss: torch-npu passes a vector of ones where there are no class weights

namespace {
std::optional<Tensor> class_weights(TensorArg weight) {
  if (!weight || at::all(*weight == 1).item<bool>()) return std::nullopt;
  return *weight;
}
}  // namespace

KERNEL(aclnnNLLLoss, TensorArg self, TensorArg target, TensorArg weight, int64_t reduction, int64_t ignored,
       TensorArg out, TensorArg total_weight) {
  auto [loss, total] =
      at::nll_loss_forward(*self, (*target).to(at::kLong), class_weights(weight), reduction, ignored);
  out.write(loss);
  total_weight.write(total);
}
KERNEL(aclnnNLLLossBackward, TensorArg gradient, TensorArg self, TensorArg target, TensorArg weight, int64_t reduction,
       int64_t ignored, TensorArg total_weight, TensorArg out) {
  out.write(at::nll_loss_backward(*gradient, *self, (*target).to(at::kLong), class_weights(weight), reduction, ignored,
                                  (*total_weight).reshape({})));
}
