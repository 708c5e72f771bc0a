// Fused causal attention, through the CPU's own so that results are equal to the bit; with fewer heads of keys and values
// than of queries as well.
//
// The device returns the row's maximum and the sum of exponentials, each broadcast over a last dimension of 8; here the
// maximum holds the whole log-sum-exp and the sum is 1, which the backward pass reads back in the same way.
#include <cstring>

#include "kernel.h"

using namespace emulator;
using at::Tensor;

namespace {

// Sparse mode 2 means causal from the top left and 3 from the bottom right; both come with a mask, of which the device
// reads a fixed upper triangle. The mode alone would do: the mask is checked so that a wrong one is noticed.
constexpr int64_t top_left_causal = 2, bottom_right_causal = 3;

bool is_upper_triangle(const Tensor& mask) {
  // Kept: a mask of 2048 x 2048 comes with every call.
  thread_local Tensor expected;
  if (!expected.defined() || expected.sizes() != mask.sizes()) expected = at::triu(at::ones_like(mask), 1).contiguous();
  Tensor found = mask.contiguous();
  return std::memcmp(found.const_data_ptr(), expected.const_data_ptr(), found.nbytes()) == 0;
}

void check_supported(const Tensor& q, const Tensor& k, TensorArg position_bias, TensorArg dropped,
                                 TensorArg mask, double keep_probability, const char* layout, int64_t sparse_mode) {
  auto refuse = [](const std::string& what) { throw Refusal{code::invalid_parameter, what}; };
  if (std::string(layout) != "BNSD") refuse(std::string("layout ") + layout);
  if (position_bias) refuse("position bias");
  if (dropped && (*dropped).numel() && keep_probability < 1) refuse("dropout");
  bool square = q.size(2) == k.size(2);
  if (sparse_mode != top_left_causal && !(sparse_mode == bottom_right_causal && square)) {
    refuse("sparse mode " + std::to_string(sparse_mode));
  }
  if (!is_upper_triangle((*mask).to(at::kBool))) refuse("a mask that is not the upper triangle");
}

}  // namespace

KERNEL(aclnnFlashAttentionScore, TensorArg q, TensorArg k, TensorArg v, TensorArg position_bias, TensorArg dropped,
       TensorArg, TensorArg mask, IntsArg, double scale, double keep_probability, int64_t, int64_t, int64_t,
       const char* layout, int64_t, int64_t sparse_mode, TensorArg row_maximum, TensorArg row_sum, TensorArg,
       TensorArg out) {
  check_supported(*q, *k, position_bias, dropped, mask, keep_probability, layout, sparse_mode);
  auto [mixed, log_sum_exp] =
      at::_scaled_dot_product_flash_attention_for_cpu(*q, *k, *v, 0.0, true, std::nullopt, scale);
  out.write(mixed);
  row_maximum.write(log_sum_exp.unsqueeze(-1).expand_as(*row_maximum));
  row_sum.write(at::ones_like(*row_sum));
}

KERNEL(aclnnFlashAttentionScoreGrad, TensorArg q, TensorArg k, TensorArg v, TensorArg gradient,
       TensorArg position_bias, TensorArg dropped, TensorArg, TensorArg mask, TensorArg row_maximum, TensorArg row_sum,
       TensorArg, TensorArg mixed, IntsArg, double scale, double keep_probability, int64_t, int64_t, int64_t,
       const char* layout, int64_t, int64_t sparse_mode, TensorArg q_gradient, TensorArg k_gradient,
       TensorArg v_gradient, TensorArg) {
  check_supported(*q, *k, position_bias, dropped, mask, keep_probability, layout, sparse_mode);
  Tensor log_sum_exp = ((*row_maximum).select(-1, 0) + at::log((*row_sum).select(-1, 0))).contiguous();
  auto [of_q, of_k, of_v] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      *gradient, *q, *k, *v, *mixed, log_sum_exp, 0.0, true, std::nullopt, scale);
  q_gradient.write(of_q);
  k_gradient.write(of_k);
  v_gradient.write(of_v);
}
