// Multi-scale deformable attention on a GPU: forward for float32, float16 and bfloat16 values,
// backward for float32; locations, weights and sums are float32 everywhere.
//
// Layouts are those of ms_deform_attn.h. `sizes` (levels, 2) int64, height and width, lies in the
// GPU's memory too. A group of lanes (threads of one warp) computes one query of one head. Each
// lane has 16 bytes of channels, or one channel in the `_scalar` kernels, which are for depths that
// are no multiple of 16 bytes. The launch (engine/operator/launch.py):
//   block  (lanes, groups): lanes is a power of two up to 32, so that no group spans two warps
//   grid   (queries / groups * heads, images): images run one after the other, so that an image's
//          value stays in the cache; the heads of the same queries are neighbouring blocks
// Parameters are in TensorRT's order: inputs, int32 numbers, outputs. Offsets within an image are
// int32, so an image's value must have fewer than 2^31 elements.
//
// NVRTC compiles this file; the only header is ours. On a CPU the tests compile the same source
// with a shim (tests/helpers/emulator/ms_deform_attn.cpp).

#include "ms_deform_attn.h"

namespace promptiml {

enum { kThreads = 256, kBand = 8 };  // not variables, which would appear in the PTX

struct Half {
  unsigned short bits;
};

struct Bfloat {
  unsigned short bits;
};

// Conversions to and from float32 (to the nearest, ties to even), without NVIDIA's headers.
__device__ __forceinline__ float widen(float x) { return x; }

__device__ __forceinline__ float widen(Bfloat x) { return __uint_as_float(unsigned(x.bits) << 16); }

__device__ __forceinline__ void narrow(float x, float& to) { to = x; }

__device__ __forceinline__ void narrow(float x, Bfloat& to) {
  const unsigned bits = __float_as_uint(x);
  const unsigned rounded = bits + 0x7fff + (bits >> 16 & 1);
  to.bits = (unsigned short)((x == x ? rounded : bits | 0x400000) >> 16);
}

#if defined(__CUDA_ARCH__)
__device__ __forceinline__ float widen(Half x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}

__device__ __forceinline__ void narrow(float x, Half& to) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
}
#endif

// The type that one instruction loads or stores, by its size.
template <int kBytes>
struct Word;
template <>
struct Word<16> {
  using Type = int4;
};
template <>
struct Word<4> {
  using Type = int;
};
template <>
struct Word<2> {
  using Type = unsigned short;
};

template <typename T, int kWidth>
union Pack {
  typename Word<sizeof(T) * kWidth>::Type word;
  T channel[kWidth];
};

template <typename T, int kWidth>
__device__ __forceinline__ Pack<T, kWidth> load(const T* from) {
  using Type = typename Word<sizeof(T) * kWidth>::Type;
  Pack<T, kWidth> pack;
  pack.word = __ldg(reinterpret_cast<const Type*>(from));
  return pack;
}

// A streaming store: the output is written once and not read here, so it should not fill the cache.
template <typename T, int kWidth>
__device__ __forceinline__ void store(const float (&sum)[kWidth], T* to) {
  using Type = typename Word<sizeof(T) * kWidth>::Type;
  Pack<T, kWidth> pack;
#pragma unroll
  for (int c = 0; c < kWidth; ++c) narrow(sum[c], pack.channel[c]);
  __stcs(reinterpret_cast<Type*>(to), pack.word);
}

template <typename T, int kWidth>
__device__ __forceinline__ void add(float share, const Pack<T, kWidth>& pack,
                                    float (&sum)[kWidth]) {
#pragma unroll
  for (int c = 0; c < kWidth; ++c) sum[c] += share * widen(pack.channel[c]);
}

// The current level while levels are visited in order: its index, first cell and size.
struct Level {
  int index, start, height, width;

  __device__ __forceinline__ explicit Level(const int64_t* sizes)
      : index(0), start(0), height(int(sizes[0])), width(int(sizes[1])) {}

  __device__ __forceinline__ void advance(const int64_t* sizes) {
    ++index;
    start += height * width;
    height = int(sizes[2 * index]);
    width = int(sizes[2 * index + 1]);
  }
};

// Maps a position in the launch to a query, where every cell of the maps is a query. Positions run
// down bands of 8 rows, so that 64 successive ones are a square of 8 by 8 cells, whose samples lie
// close together and share the nearest cache. The mapping is a bijection for any sizes.
__device__ __forceinline__ int query_at(int place, const int64_t* sizes, int levels) {
  Level level(sizes);
  while (level.index + 1 < levels && place >= level.start + level.height * level.width)
    level.advance(sizes);
  place -= level.start;
  const int top = place / (kBand * level.width) * kBand;
  const int rows = min(kBand, level.height - top);
  const int rest = place - top * level.width;
  return level.start + (top + rest % rows) * level.width + rest / rows;
}

// The image, query and head that a group of lanes computes. A group past the last query computes
// query 0, because all lanes of a warp must reach its barriers, and writes nothing.
struct Group {
  int64_t image, pair;  // pair: index over (image, query, head)
  int head;
  bool idle;

  __device__ __forceinline__ Group(const int64_t* sizes, int cells, int heads, int queries,
                                   int levels) {
    const int place = int(blockIdx.x / heads * blockDim.y + threadIdx.y);
    head = int(blockIdx.x % heads);
    image = blockIdx.y;
    idle = place >= queries;
    const int query = idle ? 0 : queries == cells ? query_at(place, sizes, levels) : place;
    pair = (image * queries + query) * heads + head;
  }
};

// A sample that is ready to be summed: the offsets of its four neighbours' channels (-1: outside
// the map), and the neighbours' shares times the attention weight.
struct Sample {
  int4 offset;
  float4 share;
};

__device__ __forceinline__ Sample prepare(float2 location, float weight, const Level& level,
                                          int stride) {
  const auto point = locate(location.x, location.y, level.height, level.width);
  int offset[4];
  float share[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const bool absent = point.outside || !point.has(k);
    offset[k] = absent ? -1 : (level.start + point.cell[k]) * stride;
    share[k] = weight * (absent ? 0.f : point.share(k));  // NaN if the weight is not finite
  }
  return {{offset[0], offset[1], offset[2], offset[3]}, {share[0], share[1], share[2], share[3]}};
}

template <typename T, int kWidth>
__device__ __forceinline__ void add(const Sample& sample, const T* value, float (&sum)[kWidth]) {
  const int offset[4] = {sample.offset.x, sample.offset.y, sample.offset.z, sample.offset.w};
  const float share[4] = {sample.share.x, sample.share.y, sample.share.z, sample.share.w};
  if ((offset[0] | offset[1] | offset[2] | offset[3]) >= 0) {  // nearly always; no branch inside
    Pack<T, kWidth> near[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) near[k] = load<T, kWidth>(value + offset[k]);
#pragma unroll
    for (int k = 0; k < 4; ++k) add(share[k], near[k], sum);
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (offset[k] >= 0) {
      add(share[k], load<T, kWidth>(value + offset[k]), sum);
    } else {
#pragma unroll
      for (int c = 0; c < kWidth; ++c) sum[c] += share[k];
    }
  }
}

// Computes the outputs of one group. Its lanes first prepare the next `lanes` samples in shared
// memory, one each; then every lane sums all of these for its own channels.
template <typename T, int kWidth>
__device__ __forceinline__ void forward(const T* value, const int64_t* sizes,
                                        const float* locations, const float* weights, int cells,
                                        int heads, int depth, int queries, int levels, int points,
                                        T* out) {
  __shared__ Sample shared[kThreads];
  const Group group(sizes, cells, heads, queries, levels);
  const int lane = int(threadIdx.x), lanes = int(blockDim.x);
  const int stride = heads * depth, samples = levels * points;
  Sample* const prepared = shared + threadIdx.y * lanes;
  value += group.image * cells * stride + group.head * depth;
  locations += group.pair * samples * 2;
  weights += group.pair * samples;
  for (int base = 0; base < depth; base += lanes * kWidth) {
    const int channel = base + lane * kWidth;
    const T* const own = value + min(channel, depth - kWidth);  // past the depth: valid memory
    float sum[kWidth] = {};
    Level level(sizes);
    for (int first = 0; first < samples; first += lanes) {
      const int mine = first + lane, count = min(lanes, samples - first);
      if (mine < samples) {
        while (mine >= (level.index + 1) * points) level.advance(sizes);
        const float2 at = __ldcs(reinterpret_cast<const float2*>(locations) + mine);
        prepared[lane] = prepare(at, __ldcs(weights + mine), level, stride);
      }
      __syncwarp();
      for (int i = 0; i < count; ++i) add(prepared[i], own, sum);
      __syncwarp();
    }
    if (channel < depth && !group.idle) store(sum, out + group.pair * depth + channel);
  }
}

// Returns the sum of `x` over the lanes of a group, in every lane.
__device__ __forceinline__ float over_lanes(float x, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
  return x;
}

// Derivatives of the output's dot product with its gradient, for one sample: by the attention
// weight, and along x and y in cells (without the weight).
struct Slopes {
  float sampled, along_x, along_y;
};

// Adds one lane's channels of a sample to the slopes and to `grad_value`.
template <int kWidth>
__device__ __forceinline__ void backward(const Point<float, int>& point, float weight, int stride,
                                         const float* value, const Pack<float, kWidth>& grad,
                                         bool idle, float* grad_value, Slopes& slopes) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (!point.has(k)) continue;
    const int offset = point.cell[k] * stride;
    const auto near = load<float, kWidth>(value + offset);
    const float share = weight * point.share(k);
    float product = 0;
#pragma unroll
    for (int c = 0; c < kWidth; ++c) {
      product += near.channel[c] * grad.channel[c];
      if (!idle) atomicAdd(grad_value + offset + c, share * grad.channel[c]);
    }
    slopes.sampled += point.share(k) * product;
    slopes.along_x += point.y[k / 2] * point.slope_x[k % 2] * product;
    slopes.along_y += point.slope_y[k / 2] * point.x[k % 2] * product;
  }
}

// Computes the gradients of one group. `grad_value` must hold zeros; atomic additions to it have no
// fixed order.
template <int kWidth>
__device__ __forceinline__ void backward(const float* value, const int64_t* sizes,
                                         const float* locations, const float* weights,
                                         const float* grad_out, int cells, int heads, int depth,
                                         int queries, int levels, int points, float* grad_value,
                                         float* grad_locations, float* grad_weights) {
  const Group group(sizes, cells, heads, queries, levels);
  const int lane = int(threadIdx.x), lanes = int(blockDim.x);
  const int stride = heads * depth, samples = levels * points;
  const int64_t origin = group.image * cells * stride + group.head * depth;
  Level level(sizes);
  for (int i = 0; i < samples; ++i) {
    if (i == (level.index + 1) * points) level.advance(sizes);
    const int64_t sample = group.pair * samples + i;
    const auto point =
        locate(locations[2 * sample], locations[2 * sample + 1], level.height, level.width);
    const float weight = weights[sample];
    Slopes slopes = {};
    if (!point.outside) {
      for (int channel = lane * kWidth; channel < depth; channel += lanes * kWidth) {
        const auto grad = load<float, kWidth>(grad_out + group.pair * depth + channel);
        const int64_t start = origin + int64_t(level.start) * stride + channel;
        backward(point, weight, stride, value + start, grad, group.idle, grad_value + start,
                 slopes);
      }
    }
    const float sampled = over_lanes(slopes.sampled, lanes);
    const float along_x = over_lanes(slopes.along_x, lanes);
    const float along_y = over_lanes(slopes.along_y, lanes);
    if (lane == 0 && !group.idle) {
      grad_weights[sample] = sampled;
      grad_locations[2 * sample] = weight * along_x * float(level.width);
      grad_locations[2 * sample + 1] = weight * along_y * float(level.height);
    }
  }
}

}  // namespace promptiml

#define PROMPTIML_FORWARD(NAME, T, WIDTH)                                                         \
  extern "C" __global__ void __launch_bounds__(promptiml::kThreads)                               \
      promptiml_forward_##NAME(const T* value, const int64_t* sizes, const float* locations,      \
                               const float* weights, int cells, int heads, int depth,             \
                               int queries, int levels, int points, T* out) {                     \
    promptiml::forward<T, WIDTH>(value, sizes, locations, weights, cells, heads, depth, queries,  \
                                 levels, points, out);                                            \
  }

#define PROMPTIML_BACKWARD(NAME, WIDTH)                                                           \
  extern "C" __global__ void __launch_bounds__(promptiml::kThreads) promptiml_backward_##NAME(    \
      const float* value, const int64_t* sizes, const float* locations, const float* weights,     \
      const float* grad_out, int cells, int heads, int depth, int queries, int levels,            \
      int points, float* grad_value, float* grad_locations, float* grad_weights) {                \
    promptiml::backward<WIDTH>(value, sizes, locations, weights, grad_out, cells, heads, depth,   \
                               queries, levels, points, grad_value, grad_locations,               \
                               grad_weights);                                                     \
  }

PROMPTIML_FORWARD(float32, float, 4)
PROMPTIML_FORWARD(float32_scalar, float, 1)
PROMPTIML_FORWARD(float16, promptiml::Half, 8)
PROMPTIML_FORWARD(float16_scalar, promptiml::Half, 1)
PROMPTIML_FORWARD(bfloat16, promptiml::Bfloat, 8)
PROMPTIML_FORWARD(bfloat16_scalar, promptiml::Bfloat, 1)
PROMPTIML_BACKWARD(float32, 4)
PROMPTIML_BACKWARD(float32_scalar, 1)
