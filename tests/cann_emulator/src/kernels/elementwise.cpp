// One result for each element.
#include "kernel.h"

using namespace emulator;
using at::Tensor;

// ---- one tensor

#define UNARY(NAME, FUNCTION) \
  KERNEL(aclnn##NAME, TensorArg self, TensorArg out) { out.write(FUNCTION(*self)); }
#define UNARY_AND_IN_PLACE(NAME, FUNCTION) \
  UNARY(NAME, FUNCTION)                    \
  KERNEL(aclnnInplace##NAME, TensorArg self) { self.write(FUNCTION(*self)); }

UNARY_AND_IN_PLACE(Sqrt, at::sqrt)
UNARY_AND_IN_PLACE(Rsqrt, at::rsqrt)
UNARY_AND_IN_PLACE(Reciprocal, at::reciprocal)
UNARY_AND_IN_PLACE(Exp, at::exp)
UNARY_AND_IN_PLACE(Log, at::log)
UNARY(Neg, at::neg)
UNARY(Abs, at::abs)
UNARY_AND_IN_PLACE(Tanh, at::tanh)
UNARY(Sigmoid, at::sigmoid)
UNARY(IsFinite, at::isfinite)
UNARY(IsNegInf, at::isneginf)
UNARY(BitwiseNot, at::bitwise_not)
UNARY(Ceil, at::ceil)

// ---- two tensors, or a tensor and a number

#define BINARY(NAME, FUNCTION) \
  KERNEL(aclnn##NAME, TensorArg left, TensorArg right, TensorArg out) { out.write(FUNCTION(*left, *right)); }
#define BINARY_IN_PLACE(NAME, FUNCTION) \
  KERNEL(aclnnInplace##NAME, TensorArg left, TensorArg right) { left.write(FUNCTION(*left, *right)); }
#define WITH_SCALAR(NAME, FUNCTION) \
  KERNEL(aclnn##NAME, TensorArg left, ScalarArg right, TensorArg out) { out.write(FUNCTION(*left, *right)); }
#define WITH_SCALAR_IN_PLACE(NAME, FUNCTION) \
  KERNEL(aclnnInplace##NAME, TensorArg left, ScalarArg right) { left.write(FUNCTION(*left, *right)); }
#define ALL_FORMS(NAME, FUNCTION)   \
  BINARY(NAME, FUNCTION)            \
  BINARY_IN_PLACE(NAME, FUNCTION)   \
  WITH_SCALAR(NAME##s, FUNCTION)    \
  WITH_SCALAR_IN_PLACE(NAME##s, FUNCTION)

ALL_FORMS(Mul, at::mul)
ALL_FORMS(Div, at::div)
BINARY(Maximum, at::maximum)
BINARY(Minimum, at::minimum)
BINARY(EqTensor, at::eq)
BINARY(NeTensor, at::ne)
BINARY(LtTensor, at::lt)
BINARY(LeTensor, at::le)
BINARY(GtTensor, at::gt)
BINARY(GeTensor, at::ge)
WITH_SCALAR(EqScalar, at::eq)
WITH_SCALAR(NeScalar, at::ne)
WITH_SCALAR(LtScalar, at::lt)
WITH_SCALAR(LeScalar, at::le)
WITH_SCALAR(GtScalar, at::gt)
WITH_SCALAR(GeScalar, at::ge)
BINARY(LogicalAnd, at::logical_and)
BINARY(LogicalOr, at::logical_or)
BINARY(BitwiseAndTensor, at::bitwise_and)
BINARY(BitwiseOrTensor, at::bitwise_or)
BINARY_IN_PLACE(BitwiseAndTensor, at::bitwise_and)
WITH_SCALAR(PowTensorScalar, at::pow)
BINARY(PowTensorTensor, at::pow)
KERNEL(aclnnPowScalarTensor, ScalarArg base, TensorArg exponent, TensorArg out) {
  out.write(at::pow(*base, *exponent));
}

// CANN's addition and subtraction take a factor for the right side.
KERNEL(aclnnAdd, TensorArg left, TensorArg right, ScalarArg factor, TensorArg out) {
  out.write(at::add(*left, *right, *factor));
}
KERNEL(aclnnAdds, TensorArg left, ScalarArg right, ScalarArg factor, TensorArg out) {
  out.write(at::add(*left, *right, *factor));
}
KERNEL(aclnnSub, TensorArg left, TensorArg right, ScalarArg factor, TensorArg out) {
  out.write(at::sub(*left, *right, *factor));
}
KERNEL(aclnnSubs, TensorArg left, ScalarArg right, ScalarArg factor, TensorArg out) {
  out.write(at::sub(*left, *right, *factor));
}
KERNEL(aclnnRsubs, TensorArg left, ScalarArg right, ScalarArg factor, TensorArg out) {
  out.write(at::rsub(*left, *right, *factor));
}
KERNEL(aclnnInplaceAdd, TensorArg left, TensorArg right, ScalarArg factor) { (*left).add_(*right, *factor); }
KERNEL(aclnnInplaceAdds, TensorArg left, ScalarArg right, ScalarArg factor) { (*left).add_(*right, *factor); }
KERNEL(aclnnInplaceSub, TensorArg left, TensorArg right, ScalarArg factor) { (*left).sub_(*right, *factor); }
KERNEL(aclnnInplaceSubs, TensorArg left, ScalarArg right, ScalarArg factor) { (*left).sub_(*right, *factor); }

// ---- three tensors, limits, choices

KERNEL(aclnnAddcmul, TensorArg self, TensorArg left, TensorArg right, ScalarArg factor, TensorArg out) {
  out.write(at::addcmul(*self, *left, *right, *factor));
}
KERNEL(aclnnAddcdiv, TensorArg self, TensorArg left, TensorArg right, ScalarArg factor, TensorArg out) {
  out.write(at::addcdiv(*self, *left, *right, *factor));
}
KERNEL(aclnnInplaceAddcmul, TensorArg self, TensorArg left, TensorArg right, ScalarArg factor) {
  (*self).addcmul_(*left, *right, *factor);
}
KERNEL(aclnnInplaceAddcdiv, TensorArg self, TensorArg left, TensorArg right, ScalarArg factor) {
  (*self).addcdiv_(*left, *right, *factor);
}
KERNEL(aclnnLerp, TensorArg start, TensorArg end, TensorArg weight, TensorArg out) {
  out.write(at::lerp(*start, *end, *weight));
}
KERNEL(aclnnLerps, TensorArg start, TensorArg end, ScalarArg weight, TensorArg out) {
  out.write(at::lerp(*start, *end, *weight));
}
KERNEL(aclnnInplaceLerp, TensorArg start, TensorArg end, TensorArg weight) { (*start).lerp_(*end, *weight); }
KERNEL(aclnnInplaceLerps, TensorArg start, TensorArg end, ScalarArg weight) { (*start).lerp_(*end, *weight); }
KERNEL(aclnnClamp, TensorArg self, ScalarArg low, ScalarArg high, TensorArg out) {
  out.write(at::clamp(*self, low.optional(), high.optional()));
}
KERNEL(aclnnSWhere, TensorArg condition, TensorArg left, TensorArg right, TensorArg out) {
  out.write(at::where(*condition, *left, *right));
}
KERNEL(aclnnInplaceMaskedFillScalar, TensorArg self, TensorArg mask, ScalarArg value) {
  (*self).masked_fill_(*mask, *value);
}

// ---- activations and their derivatives

UNARY(Silu, at::silu)
KERNEL(aclnnSiluBackward, TensorArg gradient, TensorArg self, TensorArg out) {
  out.write(at::silu_backward(*gradient, *self));
}
// The device's GELU is the tanh approximation, whatever the argument of F.gelu: torch-npu drops it on 910B, and the
// sources of CANN's own operator have the tanh formula. CANN_EMULATOR_GELU=none computes the exact one instead.
static const char* gelu_formula() {
  static const std::string formula = setting("GELU") ? setting("GELU") : "tanh";
  return formula.c_str();
}
KERNEL(aclnnGelu, TensorArg self, TensorArg out) { out.write(at::gelu(*self, gelu_formula())); }
KERNEL(aclnnGeluBackward, TensorArg gradient, TensorArg self, TensorArg out) {
  out.write(at::gelu_backward(*gradient, *self, gelu_formula()));
}
