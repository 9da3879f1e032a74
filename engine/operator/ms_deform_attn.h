// Multi-scale deformable attention (Zhu et al., arXiv 2010.04159): the arithmetic of one point.
//
// The kernels of all devices include it, so that a test of one tests the arithmetic of all.
// Layouts, row-major: value (N, S, M, D), with S the cells of all levels, one level after the
// other; locations (N, Q, M, L, P, 2), x first, 0 and 1 at the outer edges of a map; weights
// (N, Q, M, L, P); out (N, Q, M, D). The letters are those of engine/operator/README.md.
#pragma once

#if defined(__CUDACC_RTC__)  // which has no standard headers
using int64_t = long long;
#else
#include <cmath>
#include <cstdint>
using std::floor;
#endif

#if defined(__CUDACC__)
#define PROMPTIML_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define PROMPTIML_INLINE inline __attribute__((always_inline))
#else
#define PROMPTIML_INLINE inline
#endif

namespace promptiml {

// A point between its four neighbours: 0 and 1 in the upper row, 2 and 3 in the lower.
//
// The share of neighbour k in the sample is y[k / 2] * x[k % 2], its slopes along the axes are
// y[k / 2] * slope_x[k % 2] and slope_y[k / 2] * x[k % 2], in cells. All of them are 0 for a
// neighbour outside the map. Its `cell` is the nearest one inside and must not be read, because 0
// times a value that is not finite is NaN.
template <typename T, typename Index = int64_t>
struct Point {
  Index cell[4];
  T x[2], y[2];
  T slope_x[2], slope_y[2];
  bool whole;    // all four neighbours lie in the map
  bool outside;  // none of them does; then no other member is set

  PROMPTIML_INLINE T share(int k) const { return y[k / 2] * x[k % 2]; }
  PROMPTIML_INLINE bool has(int k) const { return slope_x[k % 2] != 0 && slope_y[k / 2] != 0; }
};

// Returns the point at (x, y), 0..1, in a map of `height` rows of `width` cells. A location that is
// not finite lies outside.
template <typename T, typename Index>
PROMPTIML_INLINE Point<T, Index> locate(T x, T y, Index height, Index width) {
  Point<T, Index> point;
  x = x * T(width) - T(0.5);
  y = y * T(height) - T(0.5);
  point.outside = !(x > T(-1) && y > T(-1) && x < T(width) && y < T(height));
  if (point.outside) {
    point.whole = false;
    return point;
  }
  const T left = floor(x), top = floor(y);
  const T dx = x - left, dy = y - top;
  const Index column = Index(left), row = Index(top);
  const bool in_left = column >= 0, in_right = column + 1 < width;
  const bool in_top = row >= 0, in_bottom = row + 1 < height;
  point.whole = in_left && in_right && in_top && in_bottom;
  point.x[0] = in_left ? 1 - dx : T(0);
  point.x[1] = in_right ? dx : T(0);
  point.y[0] = in_top ? 1 - dy : T(0);
  point.y[1] = in_bottom ? dy : T(0);
  point.slope_x[0] = in_left ? T(-1) : T(0);
  point.slope_x[1] = in_right ? T(1) : T(0);
  point.slope_y[0] = in_top ? T(-1) : T(0);
  point.slope_y[1] = in_bottom ? T(1) : T(0);
  const Index upper = (in_top ? row : 0) * width;
  const Index lower = (in_bottom ? row + 1 : height - 1) * width;
  const Index near = in_left ? column : 0;
  const Index far = in_right ? column + 1 : width - 1;
  point.cell[0] = upper + near;
  point.cell[1] = upper + far;
  point.cell[2] = lower + near;
  point.cell[3] = lower + far;
  return point;
}

}  // namespace promptiml
