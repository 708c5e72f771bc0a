// Reading and writing by index. Kernels whose result has an unknown size get an upper bound and report the real one.
#include "kernel.h"

using namespace emulator;
using at::Tensor;

namespace {
// An absent index arrives as an empty vector of the indexed tensor's own type.
c10::List<std::optional<Tensor>> indices_of(TensorsArg indices, const Tensor& self) {
  c10::List<std::optional<Tensor>> list;
  for (auto& index : indices.all()) {
    bool absent = index.dim() == 1 && index.numel() == 0 && index.scalar_type() == self.scalar_type();
    list.push_back(absent ? std::nullopt : std::optional(index));
  }
  return list;
}
}  // namespace

KERNEL(aclnnGather, TensorArg self, int64_t dimension, TensorArg index, TensorArg out) {
  out.write(at::gather(*self, dimension, *index));
}
KERNEL(aclnnScatterAdd, TensorArg self, int64_t dimension, TensorArg index, TensorArg source, TensorArg out) {
  out.write(at::scatter_add(*self, dimension, *index, *source));
}
KERNEL(aclnnInplaceScatter, TensorArg self, int64_t dimension, TensorArg index, TensorArg source, int64_t) {
  (*self).scatter_(dimension, *index, *source);
}
KERNEL(aclnnIndexAdd, TensorArg self, int64_t dimension, TensorArg index, TensorArg source, ScalarArg alpha,
       TensorArg out) {
  out.write(at::index_add(*self, dimension, *index, *source, *alpha));
}
KERNEL(aclnnTopkV2, TensorArg self, int64_t count, int64_t dimension, bool largest, bool sorted, int64_t,
       TensorArg values, TensorArg indices) {
  auto [found, places] = at::topk(*self, count, dimension, largest, sorted);
  values.write(found);
  indices.write(places);
}
KERNEL(aclnnSort, TensorArg self, bool stable, int64_t dimension, bool descending, TensorArg values,
       TensorArg indices) {
  auto [found, places] = at::sort(*self, stable, dimension, descending);
  values.write(found);
  indices.write(places);
}
KERNEL(aclnnIndexSelect, TensorArg self, int64_t dimension, TensorArg index, TensorArg out) {
  out.write(at::index_select(*self, dimension, *index));
}
KERNEL(aclnnIndex, TensorArg self, TensorsArg indices, TensorArg out) {
  out.write(at::index(*self, indices_of(indices, *self)));
}
KERNEL(aclnnIndexPutImpl, TensorArg self, TensorsArg indices, TensorArg values, bool accumulate, bool) {
  Tensor target = *self;
  at::index_put_(target, indices_of(indices, target), *values, accumulate);
}
KERNEL(aclnnMaskedSelect, TensorArg self, TensorArg mask, TensorArg out) {  // also for printing a tensor
  out.write_with_shape(at::masked_select(*self, *mask));
}
KERNEL(aclnnNonzero, TensorArg self, TensorArg out) { out.write_with_shape(at::nonzero(*self)); }
KERNEL(aclnnNonzeroV2, TensorArg self, TensorArg out) {  // a row for each dimension
  out.write_with_shape(at::nonzero(*self).t().contiguous());
}
KERNEL(aclnnEmbedding, TensorArg weight, TensorArg index, TensorArg out) {
  out.write(at::embedding(*weight, *index));
}
KERNEL(aclnnEmbeddingDenseBackward, TensorArg gradient, TensorArg index, uint64_t rows, int64_t padding, bool scale,
       TensorArg out) {
  out.write(at::embedding_dense_backward(*gradient, *index, static_cast<int64_t>(rows), padding, scale));
}
