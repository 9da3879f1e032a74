// What our kernel is compared with (tests/bench/gpu/operator.py): the way of Deformable DETR's kernels and of
// most after it, a thread for every output number, which locates each sample for itself and reads
// its neighbours one channel at a time. Parameters are as in ms_deform_attn.cu.

#include "ms_deform_attn.h"

using promptiml::locate;

struct Half {
  unsigned short bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ void narrow(float x, float& to) { to = x; }

__device__ __forceinline__ float widen(Half x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}

__device__ __forceinline__ void narrow(float x, Half& to) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
}

template <typename T>
__device__ __forceinline__ void forward(const T* value, const int64_t* sizes,
                                        const float* locations, const float* weights, int cells,
                                        int heads, int depth, int queries, int levels, int points,
                                        T* out) {
  const int stride = heads * depth, place = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (place >= queries * stride) return;
  const int64_t image = blockIdx.y, pair = image * queries * heads + place / depth;
  value += image * cells * stride + place % stride;
  locations += pair * levels * points * 2;
  weights += pair * levels * points;
  float sum = 0;
  for (int level = 0; level < levels; ++level) {
    const int height = int(sizes[2 * level]), width = int(sizes[2 * level + 1]);
    for (int p = 0; p < points; ++p, locations += 2, ++weights) {
      const auto point = locate(locations[0], locations[1], height, width);
      for (int k = 0; k < 4 && !point.outside; ++k)
        if (point.has(k)) sum += *weights * point.share(k) * widen(value[point.cell[k] * stride]);
    }
    value += int64_t(height) * width * stride;
  }
  narrow(sum, out[image * queries * stride + place]);
}

#define BASELINE(NAME, T)                                                                         \
  extern "C" __global__ void baseline_##NAME(const T* value, const int64_t* sizes,                \
                                             const float* locations, const float* weights,        \
                                             int cells, int heads, int depth, int queries,        \
                                             int levels, int points, T* out) {                    \
    forward(value, sizes, locations, weights, cells, heads, depth, queries, levels, points, out); \
  }

BASELINE(float32, float)
BASELINE(float16, Half)
