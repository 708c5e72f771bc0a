// Copies, casts, fills and shapes.
#include "kernel.h"

using namespace emulator;

KERNEL(aclnnCast, TensorArg self, int, TensorArg out) { out.write((*self).to((*out).scalar_type())); }
KERNEL(aclnnInplaceCopy, TensorArg self, TensorArg source) { (*self).copy_(*source); }
KERNEL(aclnnInplaceZero, TensorArg self) { (*self).zero_(); }
KERNEL(aclnnInplaceOne, TensorArg self) { (*self).fill_(1); }
KERNEL(aclnnInplaceFillScalar, TensorArg self, ScalarArg value) { (*self).fill_(*value); }
KERNEL(aclnnInplaceFillTensor, TensorArg self, TensorArg value) { (*self).fill_((*value).reshape({})); }
KERNEL(aclnnArange, ScalarArg start, ScalarArg end, ScalarArg step, TensorArg out) {
  out.write(at::arange(*start, *end, *step, (*out).options()).slice(0, 0, (*out).numel()));
}

KERNEL(aclnnCat, TensorsArg parts, int64_t dimension, TensorArg out) { out.write(at::cat(parts.all(), dimension)); }
KERNEL(aclnnStack, TensorsArg parts, int64_t dimension, TensorArg out) {
  out.write(at::stack(parts.all(), dimension));
}
KERNEL(aclnnChunkCat, TensorsArg parts, int64_t dimension, int64_t chunks, TensorArg out) {
  out.write(at::_chunk_cat(parts.all(), dimension, chunks));
}
KERNEL(aclnnTriu, TensorArg self, int64_t diagonal, TensorArg out) { out.write(at::triu(*self, diagonal)); }
KERNEL(aclnnTril, TensorArg self, int64_t diagonal, TensorArg out) { out.write(at::tril(*self, diagonal)); }
KERNEL(aclnnRepeat, TensorArg self, IntsArg repeats, TensorArg out) { out.write((*self).repeat(*repeats)); }
KERNEL(aclnnConstantPadNd, TensorArg self, IntsArg widths, ScalarArg value, TensorArg out) {
  out.write(at::constant_pad_nd(*self, *widths, *value));
}
