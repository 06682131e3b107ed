// The same for any kernel size, stride and dilation, straight from device memory: right everywhere, fast nowhere.
// A tile of work is one image.
#pragma once

#include "depthwise_weight.h"

namespace wat {

// Where along one axis tap k of position `at` reads, or -1.
WAT_DEVICE int32_t source_of(const DepthwiseAxis& axis, bool backward, int32_t at, int32_t k, int32_t size) {
  if (!backward) {
    const int64_t from = static_cast<int64_t>(at) * axis.stride - axis.pad + static_cast<int64_t>(k) * axis.dilation;
    return from >= 0 && from < size ? static_cast<int32_t>(from) : -1;
  }
  const int64_t scaled = static_cast<int64_t>(at) + axis.pad - static_cast<int64_t>(k) * axis.dilation;
  return scaled >= 0 && scaled % axis.stride == 0 && scaled / axis.stride < size ? static_cast<int32_t>(scaled / axis.stride) : -1;
}

WAT_DEVICE int64_t element_of(const DepthwiseImage& image, int64_t n, int64_t c, int32_t row, int32_t column) {
  return n * image.stride_n + c * image.stride_c + row * image.stride_h + column * image.stride_w;
}

WAT_DEVICE void gather_any_block(const DepthwiseProblem& p, int64_t index, char* shared) {
  const int thread = threadIdx.x;
  const DepthwiseBlock block = block_of(p, index);
  int64_t drawn = -1;
  for (int64_t n = block.begin; n < block.end; ++n) {
    const int64_t shadow = n / p.chunk;
    if (shadow != drawn) make_table<true>(p, block, static_cast<uint32_t>(shadow), 0, shared);
    drawn = shadow;
    __syncthreads();
    {
      const int32_t* const active = active_taps(p, shared);
      const float* const table = reinterpret_cast<const float*>(shared + p.at_table);
      const float* const bias = reinterpret_cast<const float*>(shared + p.at_bias);
      const int64_t pixels = static_cast<int64_t>(p.result.height) * p.result.width;
      for (int64_t i = thread; i < pixels * block.channels; i += kDepthwiseThreads) {
        const int32_t c = static_cast<int32_t>(p.channels_last ? i % block.channels : i / pixels);
        const int64_t pixel = p.channels_last ? i / block.channels : i % pixels;
        const int32_t row = static_cast<int32_t>(pixel / p.result.width), column = static_cast<int32_t>(pixel % p.result.width);
        float sum = bias[c];
        for (int32_t j = 0; j < active[1]; ++j) {
          const int32_t tap = active[2 + j], a = tap / p.kernel_w, b = tap - a * p.kernel_w;
          const int32_t from_row = source_of(p.vertical, p.backward, row, a, p.source.height);
          const int32_t from_column = source_of(p.horizontal, p.backward, column, b, p.source.width);
          if (from_row < 0 || from_column < 0) continue;
          const float x = read_number(p.source.data, element_of(p.source, n, block.first_channel + c, from_row, from_column), p.scalar);
          sum += table[tap * p.channels + c] * x;
        }
        write_number(p.result.data, element_of(p.result, n, block.first_channel + c, row, column), p.scalar, sum);
      }
    }
    __syncthreads();
  }
}

WAT_DEVICE void weight_any_block(const DepthwiseProblem& p, int64_t index, char* shared) {
  const int thread = threadIdx.x;
  const DepthwiseBlock block = block_of(p, index);
  clear_gradient(p, shared, thread);
  __syncthreads();
  int64_t drawn = -1;
  const auto end_shadow = [&](int64_t shadow) {
    add_shadow(p, block, static_cast<uint32_t>(shadow), shared, thread);
    __syncthreads();
  };
  for (int64_t n = block.begin; n < block.end; ++n) {
    const int64_t shadow = n / p.chunk;
    if (shadow != drawn) {
      if (drawn >= 0) end_shadow(drawn);
      make_table<false>(p, block, static_cast<uint32_t>(shadow), 0, shared);
      {
        float* const dsw = weight_memory(p, shared).dsw;
        for (int32_t i = thread; i < p.K * p.channels; i += kDepthwiseThreads) dsw[i] = 0.0f;
      }
      __syncthreads();
    }
    drawn = shadow;
    {
      const int32_t* const active = active_taps(p, shared);
      const WeightMemory memory = weight_memory(p, shared);
      for (int32_t i = thread; i < (active[1] + 1) * block.channels; i += kDepthwiseThreads) {
        const int32_t j = i / block.channels, c = i - j * block.channels;
        const bool is_tap = j < active[1];  // the last line is the bias
        const int32_t tap = is_tap ? active[2 + j] : 0, a = tap / p.kernel_w, b = tap - a * p.kernel_w;
        const int64_t channel = block.first_channel + c;
        float sum = 0;
        for (int32_t row = 0; row < p.result.height; ++row) {
          const int32_t from_row = is_tap ? source_of(p.vertical, false, row, a, p.source.height) : 0;
          for (int32_t column = 0; column < p.result.width && from_row >= 0; ++column) {
            const int32_t from_column = is_tap ? source_of(p.horizontal, false, column, b, p.source.width) : 0;
            if (from_column < 0) continue;
            const float g = read_number(p.result.data, element_of(p.result, n, channel, row, column), p.scalar);
            sum += is_tap ? g * read_number(p.source.data, element_of(p.source, n, channel, from_row, from_column), p.scalar) : g;
          }
        }
        (is_tap ? memory.dsw[tap * p.channels + c] : memory.gradient[p.K * p.channels + c]) += sum;
      }
    }
    __syncthreads();
  }
  if (drawn >= 0) end_shadow(drawn);
  finish_weight(p, block, shared);
}

}  // namespace wat
