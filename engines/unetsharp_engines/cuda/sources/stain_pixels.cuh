// What the passes of stain estimation see of pixels: densities, projections, and whole numbers that order as they do.
#pragma once

#include "constants.cuh"
#include "primitives.cuh"

namespace estimate {

constexpr int THREADS = ESTIMATE_THREADS;
constexpr int CHUNK = ESTIMATE_CHUNK;  // pixels a thread reads at a time: 48 bytes
static_assert(CHUNK == 16, "each_pixel reads three times 16 bytes");
constexpr int BINS = 2048;
constexpr int FINE_BITS = 11;
constexpr int KEYS = BINS << FINE_BITS;

// Visits every pixel that is this block's: visit(r, g, b). tiles: uint8 [groups, pixels, 3].
template <typename Visit>
__device__ __forceinline__ void each_pixel(const u8* tiles, int pixels, Visit visit) {
    const uint4* source = reinterpret_cast<const uint4*>(tiles + 3ull * pixels * blockIdx.y);
    for (int chunk = blockIdx.x * THREADS + threadIdx.x; chunk < pixels / CHUNK; chunk += gridDim.x * THREADS) {
        const uint4 a = source[3 * chunk], b = source[3 * chunk + 1], c = source[3 * chunk + 2];
        const unsigned words[12] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w};
#pragma unroll
        for (int i = 0; i < CHUNK; ++i) {
            visit(byte_of(words, 3 * i), byte_of(words, 3 * i + 1), byte_of(words, 3 * i + 2));
        }
    }
}

__device__ __forceinline__ bool is_tissue(unsigned r, unsigned g, unsigned b) {
    return max(r, max(g, b)) < DARKEST_GLASS;
}

constexpr int LEVELS = 256;

template <typename T>
__device__ __forceinline__ void copy_table(const T* from, T (&to)[LEVELS]) {
    for (int i = threadIdx.x; i < LEVELS; i += THREADS) to[i] = from[i];
}

__device__ __forceinline__ float project(const float* row, float r, float g, float b) {
    return fmaf(row[0], r, fmaf(row[1], g, row[2] * b));
}

// Order-preserving whole number of the angle of (x, y), 0 to KEYS - 1: the pseudo-angle y / (|x| + |y|), continued to
// -2..2 over the full turn.
__device__ __forceinline__ int angle_key(float x, float y) {
    const float angle_ahead = divide_fast(y, fmaxf(fabsf(x) + fabsf(y), 1e-30f));
    const float angle = x < 0.0f ? copysignf(2.0f, y) - angle_ahead : angle_ahead;
    return min(static_cast<int>((angle + 2.0f) * (KEYS / 4)), KEYS - 1);
}

// The unit vector on the plane's axes whose angle is in the middle of a key.
__device__ __forceinline__ void direction_of(int key, double& x, double& y) {
    const double angle = (key + 0.5) * (4.0 / KEYS) - 2.0;
    const double turned = fabs(angle) > 1.0 ? copysign(2.0, angle) - angle : angle;
    const double along = fabs(angle) > 1.0 ? fabs(turned) - 1.0 : 1.0 - fabs(turned);
    const double length = sqrt(along * along + turned * turned);
    x = along / length;
    y = turned / length;
}

// Order-preserving whole number of a concentration: 2^18 to the octave from LEAST on, which is far below what is accepted;
// 16 octaves hold all that stains at least MIN_STAIN_ANGLE apart can give.
constexpr int LEAST_BITS = 120 << 23;  // 2^-7
constexpr int DROPPED_BITS = 5;

__device__ __forceinline__ int concentration_key(float concentration) {
    const int bits = max(__float_as_int(concentration), LEAST_BITS);  // as numbers they compare as floats do
    return min((bits - LEAST_BITS) >> DROPPED_BITS, KEYS - 1);
}

__device__ __forceinline__ double concentration_of(int key) {
    return __int_as_float(LEAST_BITS + (key << DROPPED_BITS) + (1 << (DROPPED_BITS - 1)));
}

}  // namespace estimate
