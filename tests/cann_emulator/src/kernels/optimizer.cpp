// AdamW, operations over lists of tensors, and loss scaling.
#include "kernel.h"

using namespace emulator;
using at::Scalar;
using at::Tensor;

// The hyper-parameters are float32 here, which is why a fused curve differs from the CPU's in the last digits. `step` is
// the count of steps before this one.
KERNEL(aclnnApplyAdamWV2, TensorArg parameter, TensorArg first_moment, TensorArg second_moment, TensorArg largest,
       TensorArg gradient, TensorArg step, float learning_rate, float beta1, float beta2, float weight_decay,
       float epsilon, bool amsgrad, bool maximize) {
  std::vector<Tensor> parameters{*parameter}, gradients{*gradient}, first{*first_moment}, second{*second_moment};
  std::vector<Tensor> maxima, steps{(*step + 1).reshape({}).to(at::kFloat)};
  if (amsgrad) maxima.push_back(*largest);
  at::_fused_adamw_(parameters, gradients, first, second, maxima, steps, static_cast<double>(learning_rate),
                    static_cast<double>(beta1), static_cast<double>(beta2), static_cast<double>(weight_decay),
                    static_cast<double>(epsilon), amsgrad, maximize);
}

// ---- lists

#define FOREACH(NAME, FUNCTION)                                                                     \
  KERNEL(aclnnForeach##NAME, TensorsArg self, TensorsArg out) {                                     \
    for (size_t index = 0; index < self.size(); index++) out.write(index, FUNCTION(self[index]));   \
  }
#define FOREACH_WITH_LIST(NAME, FUNCTION)                                                            \
  KERNEL(aclnnForeach##NAME, TensorsArg left, TensorsArg right, TensorsArg out) {                    \
    for (size_t index = 0; index < left.size(); index++)                                             \
      out.write(index, FUNCTION(left[index], right[index]));                                         \
  }
#define FOREACH_WITH_SCALAR(NAME, FUNCTION)                                                          \
  KERNEL(aclnnForeach##NAME, TensorsArg left, ScalarsArg right, TensorsArg out) {                    \
    auto scalars = right.of_size(left.size());                                                       \
    for (size_t index = 0; index < left.size(); index++)                                             \
      out.write(index, FUNCTION(left[index], scalars[index]));                                       \
  }
// One number for all tensors, and one for each.
#define FOREACH_WITH_SCALARS(NAME, FUNCTION)        \
  FOREACH_WITH_SCALAR(NAME##ScalarV2, FUNCTION)     \
  FOREACH_WITH_SCALAR(NAME##ScalarList, FUNCTION)
#define FOREACH_WITH_LIST_AND_FACTOR(NAME, FUNCTION)                                                 \
  KERNEL(aclnnForeach##NAME, TensorsArg left, TensorsArg right, ScalarsArg factor, TensorsArg out) { \
    auto scalar = factor.single();                                                                   \
    for (size_t index = 0; index < left.size(); index++)                                             \
      out.write(index, FUNCTION(left[index], right[index], scalar));                                 \
  }
#define FOREACH_WITH_TWO_LISTS(NAME, FUNCTION)                                                       \
  KERNEL(aclnnForeach##NAME, TensorsArg self, TensorsArg left, TensorsArg right, ScalarsArg factors, \
         TensorsArg out) {                                                                           \
    auto scalars = factors.of_size(self.size());                                                     \
    for (size_t index = 0; index < self.size(); index++)                                             \
      out.write(index, FUNCTION(self[index], left[index], right[index], scalars[index]));            \
  }

namespace {
Tensor plus(const Tensor& left, const Scalar& right) { return at::add(left, right); }
Tensor minus(const Tensor& left, const Scalar& right) { return at::sub(left, right); }
Tensor times(const Tensor& left, const Scalar& right) { return at::mul(left, right); }
Tensor over(const Tensor& left, const Scalar& right) { return at::div(left, right); }
Tensor power(const Tensor& left, const Scalar& right) { return at::pow(left, right); }
Tensor plus_scaled(const Tensor& left, const Tensor& right, const Scalar& factor) {
  return at::add(left, right, factor);
}
Tensor minus_scaled(const Tensor& left, const Tensor& right, const Scalar& factor) {
  return at::sub(left, right, factor);
}
Tensor between(const Tensor& start, const Tensor& end, const Scalar& weight) { return at::lerp(start, end, weight); }
Tensor same(const Tensor& self) { return self; }
}  // namespace

FOREACH(Sqrt, at::sqrt)
FOREACH(Neg, at::neg)
FOREACH(Reciprocal, at::reciprocal)
FOREACH(Copy, same)
FOREACH_WITH_SCALARS(Add, plus)
FOREACH_WITH_SCALARS(Sub, minus)
FOREACH_WITH_SCALARS(Mul, times)
FOREACH_WITH_SCALARS(Div, over)
FOREACH_WITH_SCALARS(Pow, power)
FOREACH_WITH_LIST(MulList, at::mul)
FOREACH_WITH_LIST(DivList, at::div)
FOREACH_WITH_LIST(MaximumList, at::maximum)
FOREACH_WITH_LIST_AND_FACTOR(AddListV2, plus_scaled)
FOREACH_WITH_LIST_AND_FACTOR(SubListV2, minus_scaled)
FOREACH_WITH_LIST_AND_FACTOR(LerpScalar, between)
FOREACH_WITH_TWO_LISTS(AddcmulScalarV2, at::addcmul)
FOREACH_WITH_TWO_LISTS(AddcdivScalarV2, at::addcdiv)

KERNEL(aclnnForeachNorm, TensorsArg self, ScalarsArg order, TensorsArg out) {
  auto scalar = order.single();
  for (size_t index = 0; index < self.size(); index++) {
    out.write(index, at::linalg_vector_norm(for_norm(self[index]), scalar).to(self[index].scalar_type()));
  }
}
KERNEL(aclnnForeachZeroInplace, TensorsArg self) {
  for (auto& tensor : self.all()) tensor.zero_();
}

// ---- loss scaling

KERNEL(aclnnForeachNonFiniteCheckAndUnscale, TensorsArg gradients, TensorArg found, TensorArg reciprocal_scale) {
  for (auto& gradient : gradients.all()) {
    if (!at::all(at::isfinite(gradient)).item<bool>()) (*found).fill_(1);
    gradient.mul_((*reciprocal_scale).reshape({}));
  }
}
KERNEL(aclnnAmpUpdateScale, TensorArg scale, TensorArg growth_tracker, TensorArg found, double growth, double backoff,
       int64_t interval, TensorArg scale_out, TensorArg growth_tracker_out) {
  Tensor new_scale = (*scale).clone(), new_tracker = (*growth_tracker).clone();
  at::_amp_update_scale_(new_scale, new_tracker, *found, growth, backoff, interval);
  scale_out.write(new_scale);
  growth_tracker_out.write(new_tracker);
}
