// Multi-scale deformable attention on the CPU, forward and backward, float32 and float64.
//
// The channels of a head are contiguous, so the inner loops run over them and the compiler
// vectorises these loops; their number is a compile-time constant for the depths of our networks.
// The exports are plain C functions for ctypes and need no Python header.

#include "clones.h"
#include "ms_deform_attn.h"

#include <algorithm>
#include <thread>
#include <vector>

using promptiml::locate;
using promptiml::Point;

namespace {

struct Shape {
  int64_t n, s, m, d, q, levels, points;
  const int64_t* sizes;  // (levels, 2): height, width
};

constexpr int64_t kSamplesAThread = 1 << 14;  // for fewer, starting a thread takes longer

// Writes the weighted sum of the points of one query and head to `out` (D,).
template <typename T, int kDepth>
PROMPTIML_INLINE void sample_head(const Shape& shape, const T* value, const T* locations,
                                  const T* weights, T* out) {
  const int64_t depth = kDepth ? kDepth : shape.d, stride = shape.m * depth;
  T fixed[kDepth ? kDepth : 1];
  T* sum = kDepth ? fixed : out;
  for (int64_t c = 0; c < depth; ++c) sum[c] = 0;
  for (int64_t level = 0; level < shape.levels; ++level) {
    const int64_t height = shape.sizes[2 * level], width = shape.sizes[2 * level + 1];
    for (int64_t p = 0; p < shape.points; ++p, locations += 2, ++weights) {
      const T weight = *weights;
      const Point<T> point = locate(locations[0], locations[1], height, width);
      if (point.whole) {
        const T *a = value + point.cell[0] * stride, *b = value + point.cell[1] * stride;
        const T *c = value + point.cell[2] * stride, *d = value + point.cell[3] * stride;
        const T wa = weight * point.share(0), wb = weight * point.share(1);
        const T wc = weight * point.share(2), wd = weight * point.share(3);
        for (int64_t i = 0; i < depth; ++i)
          sum[i] += wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i];
        continue;
      }
      const T nothing = weight * 0;  // NaN if the weight is not finite
      for (int64_t i = 0; i < depth; ++i) sum[i] += nothing;
      if (point.outside) continue;
#pragma GCC unroll 4  // so that the point stays in registers
      for (int k = 0; k < 4; ++k) {
        if (!point.has(k)) continue;
        const T* neighbour = value + point.cell[k] * stride;
        const T share = weight * point.share(k);
        for (int64_t i = 0; i < depth; ++i) sum[i] += share * neighbour[i];
      }
    }
    value += height * width * stride;
  }
  for (int64_t c = 0; kDepth && c < depth; ++c) out[c] = sum[c];
}

// Computes queries [first, last) of all N * Q.
template <typename T, int kDepth>
PROMPTIML_INLINE void forward_rows(const Shape& shape, const T* value, const T* locations,
                                   const T* weights, T* out, int64_t first, int64_t last) {
  const int64_t samples = shape.levels * shape.points;
  for (int64_t row = first; row < last; ++row) {
    const T* image = value + row / shape.q * shape.s * shape.m * shape.d;
    for (int64_t head = 0; head < shape.m; ++head) {
      const int64_t place = row * shape.m + head;
      sample_head<T, kDepth>(shape, image + head * shape.d, locations + 2 * place * samples,
                             weights + place * samples, out + place * shape.d);
    }
  }
}

template <typename T>
PROMPTIML_INLINE void forward_any(const Shape& shape, const T* value, const T* locations,
                                  const T* weights, T* out, int64_t first, int64_t last) {
  if (shape.d == 16)
    forward_rows<T, 16>(shape, value, locations, weights, out, first, last);
  else if (shape.d == 32)
    forward_rows<T, 32>(shape, value, locations, weights, out, first, last);
  else
    forward_rows<T, 0>(shape, value, locations, weights, out, first, last);
}

// Computes the gradients of one head of one image: adds to `grad_value`, writes the others.
template <typename T>
PROMPTIML_INLINE void backward_head(const Shape& shape, int64_t image, int64_t head,
                                    const T* value, const T* locations, const T* weights,
                                    const T* grad_out, T* grad_value, T* grad_locations,
                                    T* grad_weights) {
  const int64_t depth = shape.d, stride = shape.m * depth;
  const int64_t samples = shape.levels * shape.points;
  const int64_t origin = image * shape.s * stride + head * depth;
  for (int64_t query = 0; query < shape.q; ++query) {
    const int64_t place = (image * shape.q + query) * shape.m + head;
    const T* grad = grad_out + place * depth;
    int64_t sample = place * samples, start = origin;
    for (int64_t level = 0; level < shape.levels; ++level) {
      const int64_t height = shape.sizes[2 * level], width = shape.sizes[2 * level + 1];
      for (int64_t p = 0; p < shape.points; ++p, ++sample) {
        const Point<T> point =
            locate(locations[2 * sample], locations[2 * sample + 1], height, width);
        T along_x = 0, along_y = 0, sampled = 0;
        for (int k = 0; k < 4 && !point.outside; ++k) {
          if (!point.has(k)) continue;
          const T* neighbour = value + start + point.cell[k] * stride;
          T* grad_neighbour = grad_value + start + point.cell[k] * stride;
          const T share = weights[sample] * point.share(k);
          T product = 0;
          for (int64_t i = 0; i < depth; ++i) {
            product += neighbour[i] * grad[i];
            grad_neighbour[i] += share * grad[i];
          }
          sampled += point.share(k) * product;
          along_x += point.y[k / 2] * point.slope_x[k % 2] * product;
          along_y += point.slope_y[k / 2] * point.x[k % 2] * product;
        }
        grad_weights[sample] = sampled;
        grad_locations[2 * sample] = weights[sample] * along_x * T(width);
        grad_locations[2 * sample + 1] = weights[sample] * along_y * T(height);
      }
      start += height * width * stride;
    }
  }
}

CLONES void forward(const Shape& shape, const float* value, const float* locations,
                    const float* weights, float* out, int64_t first, int64_t last) {
  forward_any(shape, value, locations, weights, out, first, last);
}

CLONES void forward(const Shape& shape, const double* value, const double* locations,
                    const double* weights, double* out, int64_t first, int64_t last) {
  forward_any(shape, value, locations, weights, out, first, last);
}

CLONES void backward(const Shape& shape, int64_t image, int64_t head, const float* value,
                     const float* locations, const float* weights, const float* grad_out,
                     float* grad_value, float* grad_locations, float* grad_weights) {
  backward_head(shape, image, head, value, locations, weights, grad_out, grad_value,
                grad_locations, grad_weights);
}

CLONES void backward(const Shape& shape, int64_t image, int64_t head, const double* value,
                     const double* locations, const double* weights, const double* grad_out,
                     double* grad_value, double* grad_locations, double* grad_weights) {
  backward_head(shape, image, head, value, locations, weights, grad_out, grad_value,
                grad_locations, grad_weights);
}

// Calls `work(first, last)` on parts of [0, count) of about equal size, on at most `threads`.
template <typename Work>
void in_parallel(const Shape& shape, int64_t count, int64_t threads, const Work& work) {
  const int64_t samples = shape.n * shape.q * shape.m * shape.levels * shape.points;
  threads = std::max<int64_t>(
      1, std::min({threads, count, samples / kSamplesAThread}));
  std::vector<std::thread> others;
  for (int64_t part = 1; part < threads; ++part)
    others.emplace_back(work, count * part / threads, count * (part + 1) / threads);
  work(0, count / threads);
  for (std::thread& other : others) other.join();
}

template <typename T>
void forward_all(const Shape& shape, const T* value, const T* locations, const T* weights, T* out,
                 int64_t threads) {
  in_parallel(shape, shape.n * shape.q, threads, [&](int64_t first, int64_t last) {
    forward(shape, value, locations, weights, out, first, last);
  });
}

// Parts are pairs of image and head, because each pair has its own elements of `grad_value`.
template <typename T>
void backward_all(const Shape& shape, const T* value, const T* locations, const T* weights,
                  const T* grad_out, T* grad_value, T* grad_locations, T* grad_weights,
                  int64_t threads) {
  std::fill_n(grad_value, shape.n * shape.s * shape.m * shape.d, T(0));
  in_parallel(shape, shape.n * shape.m, threads, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part)
      backward(shape, part / shape.m, part % shape.m, value, locations, weights, grad_out,
               grad_value, grad_locations, grad_weights);
  });
}

// Returns the shape; `numbers` holds N, S, M, D, Q, L, P.
Shape shape_of(const int64_t* numbers, const int64_t* sizes) {
  return {numbers[0], numbers[1], numbers[2], numbers[3],
          numbers[4], numbers[5], numbers[6], sizes};
}

}  // namespace

#define PROMPTIML_EXPORT extern "C" __attribute__((visibility("default"))) void

#define PROMPTIML_FUNCTIONS(T, NAME)                                                              \
  PROMPTIML_EXPORT promptiml_forward_##NAME(const int64_t* numbers, const int64_t* sizes,         \
                                            int64_t threads, const T* value, const T* locations,  \
                                            const T* weights, T* out) {                           \
    forward_all(shape_of(numbers, sizes), value, locations, weights, out, threads);               \
  }                                                                                               \
  PROMPTIML_EXPORT promptiml_backward_##NAME(                                                     \
      const int64_t* numbers, const int64_t* sizes, int64_t threads, const T* value,              \
      const T* locations, const T* weights, const T* grad_out, T* grad_value, T* grad_locations,  \
      T* grad_weights) {                                                                          \
    backward_all(shape_of(numbers, sizes), value, locations, weights, grad_out, grad_value,       \
                 grad_locations, grad_weights, threads);                                          \
  }

PROMPTIML_FUNCTIONS(float, float32)
PROMPTIML_FUNCTIONS(double, float64)
