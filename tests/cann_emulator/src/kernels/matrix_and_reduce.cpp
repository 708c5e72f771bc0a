// Matrix products, and results over whole dimensions.
#include "kernel.h"

using namespace emulator;
using at::Tensor;

// ---- products; the last argument chooses the cube unit's precision (HF32 or not), which a CPU does not have

KERNEL(aclnnMm, TensorArg left, TensorArg right, TensorArg out, int8_t) { out.write(at::mm(*left, *right)); }
KERNEL(aclnnMatmul, TensorArg left, TensorArg right, TensorArg out, int8_t) { out.write(at::matmul(*left, *right)); }
KERNEL(aclnnBatchMatMul, TensorArg left, TensorArg right, TensorArg out, int8_t) {
  out.write(at::matmul(*left, *right));
}
KERNEL(aclnnAddmm, TensorArg bias, TensorArg left, TensorArg right, ScalarArg beta, ScalarArg alpha, TensorArg out,
       int8_t) {
  out.write(at::addmm(*bias, *left, *right, *beta, *alpha));
}
KERNEL(aclnnBaddbmm, TensorArg bias, TensorArg left, TensorArg right, ScalarArg beta, ScalarArg alpha, TensorArg out,
       int8_t) {
  out.write(at::baddbmm(*bias, *left, *right, *beta, *alpha));
}

// ---- reductions

KERNEL(aclnnReduceSum, TensorArg self, IntsArg dimensions, bool keep, int dtype, TensorArg out) {
  out.write(at::sum(*self, dimensions.optional(), keep, dtype_of(dtype)));
}
KERNEL(aclnnMean, TensorArg self, IntsArg dimensions, bool keep, int dtype, TensorArg out) {
  out.write(at::mean(*self, dimensions.optional(), keep, dtype_of(dtype)));
}
KERNEL(aclnnAmax, TensorArg self, IntsArg dimensions, bool keep, TensorArg out) {
  out.write(at::amax(*self, *dimensions, keep));
}
KERNEL(aclnnMax, TensorArg self, TensorArg out) { out.write(at::max(*self)); }
KERNEL(aclnnMin, TensorArg self, TensorArg out) { out.write(at::min(*self)); }
KERNEL(aclnnMaxDim, TensorArg self, int64_t dimension, bool keep, TensorArg out, TensorArg indices) {
  auto [values, where] = at::max(*self, dimension, keep);
  out.write(values);
  indices.write(where);
}
KERNEL(aclnnArgMax, TensorArg self, int64_t dimension, bool keep, TensorArg out) {
  out.write(at::argmax(*self, dimension, keep));
}
KERNEL(aclnnAll, TensorArg self, IntsArg dimensions, bool keep, TensorArg out) {
  out.write(at::all(*self, dimensions.optional(), keep));
}
KERNEL(aclnnAny, TensorArg self, IntsArg dimensions, bool keep, TensorArg out) {
  out.write(at::any(*self, dimensions.optional(), keep));
}
KERNEL(aclnnEqual, TensorArg left, TensorArg right, TensorArg out) { (*out).fill_(at::equal(*left, *right)); }
KERNEL(aclnnLinalgVectorNorm, TensorArg self, ScalarArg order, IntsArg dimensions, bool keep, int dtype,
       TensorArg out) {
  Tensor exact = for_norm(*self);
  auto computed = exact.scalar_type() == at::kDouble ? at::kDouble : dtype_of(dtype);
  out.write(at::linalg_vector_norm(exact, *order, dimensions.optional(), keep, computed).to(dtype_of(dtype)));
}
KERNEL(aclnnVarCorrection, TensorArg self, IntsArg dimensions, int64_t correction, bool keep, TensorArg out) {
  out.write(at::var(*self, dimensions.optional(), at::Scalar(correction), keep));
}
