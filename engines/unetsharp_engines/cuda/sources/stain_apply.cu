// Stain application: uint8 RGB pixels in, the network's planes out, in one pass of 9 bytes a pixel (FP16).
//
// I' = exp2(A log2((I + 1) / WHITE) + b'), clipped at 255 and truncated to whole levels, over 255. Against the reference's
// form b' = b + log2(WHITE) A 1: glass has logarithm 0 and so meets no rounding of A.
#include "constants.cuh"
#include "primitives.cuh"

namespace apply {

constexpr int THREADS = APPLY_THREADS;
constexpr int PIXELS = APPLY_PIXELS;
static_assert(PIXELS == 8, "normalize reads three times 8 bytes; in FP16 it stores 16 bytes a plane");

template <typename Out>
struct alignas(16) Row {
    Out values[PIXELS];
};

struct Transform {
    float matrix[9];
    float offset[3];
};

__device__ __forceinline__ Transform load(const float* from) {
    const float4* fours = reinterpret_cast<const float4*>(from);
    const float4 a = fours[0], b = fours[1], c = fours[2];
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w, c.x}, {c.y, c.z, c.w}};
}

__device__ __forceinline__ float logarithm(const unsigned* words, int index) {
    const float level_and_one = lifted_byte_of(words, index) - 8388607.0f;
    return log2_fast(level_and_one * (1.0f / WHITE));
}

__device__ __forceinline__ float network_value(const float* row, float offset, const float* logarithms) {
    float level = fmaf(row[0], logarithms[0], offset);
    level = fmaf(row[1], logarithms[1], level);
    level = fmaf(row[2], logarithms[2], level);
    return truncate(exp2_fast(fminf(level, LOG2_CLIP))) * BYTES_TO_UNIT;
}

template <typename Out>
__device__ __forceinline__ void normalize(const u8* tiles, const float* transforms, Out* out, int pixels, int shared) {
    const int first = (blockIdx.x * THREADS + threadIdx.x) * PIXELS;
    if (first >= pixels) return;
    const size_t tile = blockIdx.y;
    const uint2* source = reinterpret_cast<const uint2*>(tiles + 3 * (tile * pixels + first));
    const uint2 a = source[0], b = source[1], c = source[2];
    const unsigned words[6] = {a.x, a.y, b.x, b.y, c.x, c.y};
    const Transform transform = load(transforms + (shared ? 0 : 12 * tile));
    Row<Out> rows[3];
#pragma unroll
    for (int pixel = 0; pixel < PIXELS; ++pixel) {
        float logarithms[3];
#pragma unroll
        for (int channel = 0; channel < 3; ++channel) logarithms[channel] = logarithm(words, 3 * pixel + channel);
#pragma unroll
        for (int channel = 0; channel < 3; ++channel) {
            const float value = network_value(transform.matrix + 3 * channel, transform.offset[channel], logarithms);
            from_float(value, rows[channel].values[pixel]);
        }
    }
#pragma unroll
    for (int channel = 0; channel < 3; ++channel) {
        *reinterpret_cast<Row<Out>*>(out + (3 * tile + channel) * pixels + first) = rows[channel];
    }
}

}  // namespace apply

// Grid: (pixels / APPLY_PIXELS / block, tiles). tiles: uint8 [N, pixels, 3]; out: [N, 3, pixels]; pixels a multiple of 8.
extern "C" __global__ void __launch_bounds__(apply::THREADS)
    stain_apply_half(const u8* tiles, const float* transforms, half_t* out, int pixels, int shared) {
    apply::normalize(tiles, transforms, out, pixels, shared);
}

extern "C" __global__ void __launch_bounds__(apply::THREADS)
    stain_apply_float(const u8* tiles, const float* transforms, float* out, int pixels, int shared) {
    apply::normalize(tiles, transforms, out, pixels, shared);
}
