// The text of the CUDA kernels on a CPU: each thread of a warp is a fiber, and runs until it waits
// for the others. Threads run in either order, so that one which does not wait where it must reads
// what is not yet there; a warp whose threads do not all meet at a barrier ends the process.

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static  // one block at a time

struct dim3 {
  unsigned x, y;
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct int4 {
  int x, y, z, w;
};

static dim3 threadIdx, blockIdx, blockDim;

namespace emulator {

constexpr unsigned kLanes = 32;
constexpr size_t kStack = 64 << 10;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  dim3 thread;
  bool done;
  float shown;  // to the other lanes
};

Fiber fibers[kLanes];
ucontext_t scheduler;
unsigned current;
std::function<void()> kernel;

void wait() { swapcontext(&fibers[current].context, &scheduler); }

void enter() {
  kernel();
  fibers[current].done = true;
}

// From one barrier to the next, all lanes. Whether they ended.
bool step(bool backwards) {
  unsigned done = 0;
  for (unsigned turn = 0; turn < kLanes; ++turn) {
    current = backwards ? kLanes - 1 - turn : turn;
    threadIdx = fibers[current].thread;
    swapcontext(&scheduler, &fibers[current].context);
    done += fibers[current].done;
  }
  if (done != 0 && done != kLanes) {
    std::fprintf(stderr, "%u of 32 threads did not come to the barrier\n", done);
    std::abort();
  }
  return done != 0;
}

void run_warp(unsigned first, bool backwards) {
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    Fiber& fiber = fibers[lane];
    fiber.thread = {(first + lane) % blockDim.x, (first + lane) / blockDim.x};
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  while (!step(backwards)) {
  }
}

void run(const unsigned* grid, const unsigned* block, bool backwards) {
  blockDim = {block[0], block[1]};
  for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
      for (unsigned first = 0; first < block[0] * block[1]; first += kLanes)
        run_warp(first, backwards);
}

}  // namespace emulator

template <typename T>
T __ldg(const T* from) {
  return *from;
}
template <typename T>
T __ldcs(const T* from) {
  return *from;
}
template <typename T>
void __stcs(T* to, T x) {
  *to = x;
}
inline int min(int a, int b) { return a < b ? a : b; }
inline void atomicAdd(float* to, float x) { *to += x; }
inline void __syncwarp() { emulator::wait(); }

inline float __shfl_xor_sync(unsigned, float x, int step) {
  emulator::fibers[emulator::current].shown = x;
  emulator::wait();
  const float other = emulator::fibers[emulator::current ^ unsigned(step)].shown;
  emulator::wait();
  return other;
}

inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof x);
  return bits;
}

#include "ms_deform_attn.cu"

namespace promptiml {

inline float widen(Half x) {
  _Float16 half;
  std::memcpy(&half, &x, sizeof half);
  return float(half);
}

inline void narrow(float x, Half& to) {
  const _Float16 half = _Float16(x);
  std::memcpy(&to, &half, sizeof half);
}

template <typename... T>
void launch(void (*kernel)(T...), const unsigned* grid, const unsigned* block, bool backwards,
            T... parameters) {
  emulator::kernel = [=] { kernel(parameters...); };
  emulator::run(grid, block, backwards);
}

}  // namespace promptiml

#define EMULATE_FORWARD(NAME, T)                                                                  \
  extern "C" void emulate_forward_##NAME(                                                         \
      const unsigned* grid, const unsigned* block, bool backwards, const T* value,                \
      const int64_t* sizes, const float* locations, const float* weights, int cells, int heads,   \
      int depth, int queries, int levels, int points, T* out) {                                   \
    promptiml::launch(promptiml_forward_##NAME, grid, block, backwards, value, sizes, locations,  \
                      weights, cells, heads, depth, queries, levels, points, out);                \
  }

#define EMULATE_BACKWARD(NAME)                                                                    \
  extern "C" void emulate_backward_##NAME(                                                        \
      const unsigned* grid, const unsigned* block, bool backwards, const float* value,            \
      const int64_t* sizes, const float* locations, const float* weights, const float* grad_out,  \
      int cells, int heads, int depth, int queries, int levels, int points, float* grad_value,    \
      float* grad_locations, float* grad_weights) {                                               \
    promptiml::launch(promptiml_backward_##NAME, grid, block, backwards, value, sizes, locations, \
                      weights, grad_out, cells, heads, depth, queries, levels, points,            \
                      grad_value, grad_locations, grad_weights);                                  \
  }

EMULATE_FORWARD(float32, float)
EMULATE_FORWARD(float32_scalar, float)
EMULATE_FORWARD(float16, promptiml::Half)
EMULATE_FORWARD(float16_scalar, promptiml::Half)
EMULATE_FORWARD(bfloat16, promptiml::Bfloat)
EMULATE_FORWARD(bfloat16_scalar, promptiml::Bfloat)
EMULATE_BACKWARD(float32)
EMULATE_BACKWARD(float32_scalar)
