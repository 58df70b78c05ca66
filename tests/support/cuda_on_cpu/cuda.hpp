// CUDA C++ on a CPU, for tests: blocks run one after another, a block's threads as fibers that switch at barriers and
// shuffles. It shows wrong indices and wrong logic, and, by running threads and blocks in either order, barriers that are
// missing; it cannot show every race.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

using std::copysign, std::fabs, std::fmax, std::fmin, std::max, std::min, std::rint, std::sqrt;

struct Index {
    unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

template <typename To, typename From>
inline To bits_as(From from) {
    To to;
    static_assert(sizeof(to) == sizeof(from));
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

inline float __uint_as_float(unsigned bits) { return bits_as<float>(bits); }
inline float __int_as_float(int bits) { return bits_as<float>(bits); }
inline int __float_as_int(float x) { return bits_as<int>(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }

inline float __fadd_rz(float x, float y) {
    const double exact = static_cast<double>(x) + y;
    const float near = static_cast<float>(exact);
    return std::fabs(near) > std::fabs(exact) ? std::nextafterf(near, 0.0f) : near;
}

inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t both = static_cast<uint64_t>(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(both >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
    return result;
}

namespace fibers {

constexpr size_t STACK = 64 << 10;

struct Barrier {
    unsigned arrived = 0, generation = 0;
};

struct Block {
    std::vector<ucontext_t> contexts;
    std::vector<char> done;
    std::vector<std::vector<char>> stacks;
    std::vector<Barrier> warps;
    std::vector<uint64_t> exchanged;
    Barrier all;
    unsigned now = 0;
    ucontext_t scheduler;
    void (*kernel)(void**);
    void** arguments;
};
static Block* block;
static bool backwards = false;  // the order in which threads and blocks take their turns

inline unsigned turn(unsigned i, unsigned of) { return backwards ? of - 1 - i : i; }

inline void yield() { swapcontext(&block->contexts[block->now], &block->scheduler); }

inline void wait(Barrier& barrier, unsigned of) {
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == of) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
    }
    while (barrier.generation == generation) yield();
}

inline unsigned linear(Index index, Index of) { return (index.z * of.y + index.y) * of.x + index.x; }

inline unsigned warp_size(unsigned warp) {
    return std::min(32u, blockDim.x * blockDim.y * blockDim.z - 32 * warp);
}

// Every lane gives a value and takes that of lane `from`, or its own where there is none.
inline uint64_t exchange(uint64_t value, int from) {
    const unsigned warp = block->now / 32, size = warp_size(warp);
    block->exchanged[block->now] = value;
    wait(block->warps[warp], size);
    if (from >= 0 && from < static_cast<int>(size)) value = block->exchanged[32 * warp + from];
    wait(block->warps[warp], size);
    return value;
}

inline void body() {
    block->kernel(block->arguments);
    block->done[block->now] = 1;
    yield();
}

inline Index index_of(unsigned thread) {
    return {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y)};
}

inline void run_block(Block& now) {
    block = &now;
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
    now.warps.assign((threads + 31) / 32, {});
    now.all = {};
    now.done.assign(threads, 0);
    for (unsigned i = 0; i < threads; ++i) {
        getcontext(&now.contexts[i]);
        now.contexts[i].uc_stack.ss_sp = now.stacks[i].data();
        now.contexts[i].uc_stack.ss_size = STACK;
        now.contexts[i].uc_link = nullptr;
        makecontext(&now.contexts[i], body, 0);
    }
    for (bool running = true; running;) {
        running = false;
        for (unsigned at = 0; at < threads; ++at) {
            const unsigned i = turn(at, threads);
            if (now.done[i]) continue;
            running = true;
            now.now = i;
            threadIdx = index_of(i);
            swapcontext(&now.scheduler, &now.contexts[i]);
        }
    }
}

inline void launch(void (*kernel)(void**), Index grid, Index of, void** arguments) {
    gridDim = grid;
    blockDim = of;
    const unsigned threads = of.x * of.y * of.z;
    Block now;
    now.kernel = kernel;
    now.arguments = arguments;
    now.contexts.resize(threads);
    now.exchanged.resize(threads);
    now.stacks.assign(threads, std::vector<char>(STACK));
    const unsigned blocks = grid.x * grid.y * grid.z;
    for (unsigned at = 0; at < blocks; ++at) {
        const unsigned i = turn(at, blocks);
        blockIdx = {i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)};
        run_block(now);
    }
}

template <typename... Types, size_t... I>
inline void unpack(void (*kernel)(Types...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<Types>*>(arguments[I])...);
}

template <auto KERNEL>
struct Unpacked;

template <typename... Types, void (*KERNEL)(Types...)>
struct Unpacked<KERNEL> {
    static void call(void** arguments) { unpack(KERNEL, arguments, std::index_sequence_for<Types...>{}); }
};

}  // namespace fibers

inline void __syncthreads() {
    fibers::wait(fibers::block->all, blockDim.x * blockDim.y * blockDim.z);
}
inline void __threadfence() {}

template <typename T>
inline T atomicAdd(T* to, T value) {
    const T before = *to;
    *to += value;
    return before;
}

template <typename T>
inline T __ldcg(const T* from) {
    return *from;
}

template <typename T>
inline T __shfl_up_sync(unsigned, T value, unsigned step) {
    return static_cast<T>(fibers::exchange(value, static_cast<int>(fibers::block->now % 32) - static_cast<int>(step)));
}

template <typename T>
inline T __shfl_down_sync(unsigned, T value, unsigned step) {
    return static_cast<T>(fibers::exchange(value, static_cast<int>(fibers::block->now % 32 + step)));
}

extern "C" void take_turns_backwards(bool wanted) { fibers::backwards = wanted; }
