// Runs the source of the CUDA kernels on a CPU. Each thread of a warp is a fiber that runs until it
// reaches a barrier. Threads run in either order, so that a missing barrier gives a wrong result; a
// warp whose threads do not all reach a barrier ends the process.

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <utility>
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

}  // namespace promptiml

namespace emulator {

using Call = std::function<void(void**)>;  // with the addresses of the parameters, as a driver

template <typename... T, size_t... kPlace>
void call(void (*kernel)(T...), void** parameters, std::index_sequence<kPlace...>) {
  kernel(*static_cast<T*>(parameters[kPlace])...);
}

template <typename... T>
Call callable(void (*kernel)(T...)) {
  return [=](void** parameters) { call(kernel, parameters, std::index_sequence_for<T...>()); };
}

#define KERNEL(NAME) {#NAME, callable(NAME)}

const std::map<std::string, Call> kernels = {
    KERNEL(promptiml_forward_float32),  KERNEL(promptiml_forward_float32_scalar),
    KERNEL(promptiml_forward_float16),  KERNEL(promptiml_forward_float16_scalar),
    KERNEL(promptiml_forward_bfloat16), KERNEL(promptiml_forward_bfloat16_scalar),
    KERNEL(promptiml_backward_float32), KERNEL(promptiml_backward_float32_scalar),
};

void launch(const Call& call, const unsigned* grid, const unsigned* block, bool backwards,
            void** parameters) {
  kernel = [&] { call(parameters); };
  run(grid, block, backwards);
}

}  // namespace emulator

extern "C" void emulate(const char* name, const unsigned* grid, const unsigned* block,
                        bool backwards, void** parameters) {
  emulator::launch(emulator::kernels.at(name), grid, block, backwards, parameters);
}

// As much of the CUDA driver as engine/operator/cuda.py calls: as libcuda.so.1 this library is a
// driver whose GPU is the emulator and whose memory is the process's own.
namespace driver {

constexpr int kSuccess = 0, kInvalidValue = 1, kNotFound = 500;

int init(unsigned) { return kSuccess; }

int version(int* number) {
  *number = 13000;
  return kSuccess;
}

int device(int* handle, int number) {
  *handle = number;
  return kSuccess;
}

int retain_context(void** context, int device) {
  *context = reinterpret_cast<void*>(intptr_t(device) + 1);
  return kSuccess;
}

int set_context(void* context) { return context ? kSuccess : kInvalidValue; }

int load(void** library, const char* text, void*, void*, unsigned, void*, void*, unsigned) {
  *library = new std::string(text);
  return kSuccess;
}

int kernel(const void** found, const std::string* library, const char* name) {
  const auto call = emulator::kernels.find(name);
  const bool is_there = library->find(".entry " + std::string(name) + "(") != std::string::npos;
  if (call == emulator::kernels.end() || !is_there) return kNotFound;
  *found = &call->second;
  return kSuccess;
}

int launch(const emulator::Call* call, unsigned grid_x, unsigned grid_y, unsigned grid_z,
           unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes, void*,
           void** parameters, void** extra) {
  if (grid_z != 1 || block_z != 1 || shared_bytes || extra) return kInvalidValue;
  const unsigned grid[] = {grid_x, grid_y}, block[] = {block_x, block_y};
  emulator::launch(*call, grid, block, false, parameters);
  return kSuccess;
}

#define FUNCTION(NAME, BODY) {NAME, reinterpret_cast<void*>(BODY)}

const std::map<std::string, void*> functions = {
    FUNCTION("cuInit", init),
    FUNCTION("cuDriverGetVersion", version),
    FUNCTION("cuDeviceGet", device),
    FUNCTION("cuDevicePrimaryCtxRetain", retain_context),
    FUNCTION("cuCtxSetCurrent", set_context),
    FUNCTION("cuLibraryLoadData", load),
    FUNCTION("cuLibraryGetKernel", kernel),
    FUNCTION("cuLaunchKernel", launch),
};

}  // namespace driver

extern "C" int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* status) {
  const auto found = driver::functions.find(name);
  *function = found == driver::functions.end() ? nullptr : found->second;
  if (status) *status = *function ? 0 : 1;
  return *function ? driver::kSuccess : driver::kNotFound;
}
