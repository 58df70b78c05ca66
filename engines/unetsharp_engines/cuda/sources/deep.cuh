// What follows the taps of a 3x3 convolution of an upsampled map (rewrites/taps.py), in one pass: the nine taps of each
// channel upsampled by F, shifted, added up, Mish, scale and shift. Taps are [N, 9 C, height, width]: tap t of output
// channel c is channel t C + c, and t is 3 column shift + row shift. out is [N, C, F height, F width].
//
// A thread walks down a strip of low-resolution rows. It brings each row to its output columns once (`across`), and
// between two rows it mixes what it holds of both into F samples; a sample of row shift -1, 0, 1 belongs to the output
// row below it, its own, the one above it.
#pragma once

#include "constants.cuh"
#include "primitives.cuh"

namespace deep {

constexpr int THREADS = DEEP_THREADS;
constexpr int ROWS = DEEP_ROWS;
constexpr int LANES = DEEP_LANES;

// How far sample q of a pixel, 0 its first, lies beyond the pixel's centre, in pixels: -1..1 for q in -1..F.
template <int F>
__device__ constexpr float beyond(int q) {
    return (q + 0.5f) / F - 0.5f;
}

// The share that neighbour 0 (before), 1 (here), 2 (after) has in that sample.
template <int F>
__device__ constexpr float share(int q, int neighbour) {
    const float s = beyond<F>(q);
    return neighbour == 1 ? (s < 0 ? 1 + s : 1 - s) : neighbour == 0 ? (s < 0 ? -s : 0.0f) : (s > 0 ? s : 0.0f);
}

// x tanh(softplus x), with tanh(softplus x) = n / (n + 2), n = e (e + 2), e = exp x: 1 in float32 from 20 on.
__device__ __forceinline__ float mish(float x) {
    constexpr float LOG2_E = 1.44269504f;
    const float e = exp2_fast(fminf(x, 20.0f) * LOG2_E);
    const float n = e * (e + 2.0f);
    return x * divide_fast(n, n + 2.0f);
}

// Numbers side by side in memory, as words of 32 bits.
template <int N>
__device__ __forceinline__ void words_of(const float (&values)[N], unsigned (&words)[N], const float*) {
#pragma unroll
    for (int i = 0; i < N; ++i) words[i] = __float_as_int(values[i]);
}

template <int N>
__device__ __forceinline__ void words_of(const float (&values)[N], unsigned (&words)[N / 2], const half_t*) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        half_t low, high;
        from_float(values[2 * i], low);
        from_float(values[2 * i + 1], high);
        words[i] = low.bits | static_cast<unsigned>(high.bits) << 16;
    }
}

// Stores them in as few pieces as can be; `to` is aligned to what they fill, up to 16 bytes.
template <typename Real, int N>
__device__ __forceinline__ void store(const float (&values)[N], Real* to) {
    constexpr int WORDS = N * sizeof(Real) / 4;
    unsigned words[WORDS];
    words_of(values, words, to);
    if constexpr (WORDS == 1) *reinterpret_cast<unsigned*>(to) = words[0];
    if constexpr (WORDS == 2) store_words(to, words[0], words[1]);
#pragma unroll
    for (int i = 0; i < WORDS / 4; ++i) {
        store_words(to + i * (16 / sizeof(Real)), words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
    }
}

// One channel's plane: a thread stands in one low-resolution column and makes its F output columns.
template <int F, typename Real>
struct Plane {
    static constexpr int VALUES = F;
    const Real* taps;
    Real* out;
    float scale, shift;
    size_t stride;  // from tap to tap
    int width;
    bool is_first, is_last;  // column: what lies beyond is held

    __device__ __forceinline__ void across(int row, float (&lines)[3][F]) const {
        const Real* tap = taps + row * width;
#pragma unroll
        for (int i = 0; i < 3 * F; ++i) lines[i / F][i % F] = 0.0f;
#pragma unroll
        for (int column_shift = 0; column_shift < 3; ++column_shift) {
#pragma unroll
            for (int row_shift = 0; row_shift < 3; ++row_shift, tap += stride) add(tap, column_shift, lines[row_shift]);
        }
    }

    __device__ __forceinline__ void add(const Real* tap, int column_shift, float (&sums)[F]) const {
        const Real here_is = tap[0];
        const float seen[3] = {
            to_float(is_first ? here_is : tap[-1]), to_float(here_is), to_float(is_last ? here_is : tap[1])};
#pragma unroll
        for (int i = 0; i < F; ++i) {
            const int q = i + column_shift - 1;
            const float here = share<F>(q, 1) * inside(q);
            const int other = beyond<F>(q) < 0 ? 0 : 2;
            const float there = share<F>(q, other) * inside(q);
            sums[i] = fmaf(there, seen[other], fmaf(here, seen[1], sums[i]));
        }
    }

    // 0 for a sample outside the picture.
    __device__ __forceinline__ float inside(int q) const {
        return (q < 0 && is_first) || (q == F && is_last) ? 0.0f : 1.0f;
    }

    __device__ __forceinline__ void put(int row, const float (&sums)[F]) const {
        float made[F];
#pragma unroll
        for (int i = 0; i < F; ++i) made[i] = fmaf(scale, mish(sums[i]), shift);
        store(made, out + static_cast<size_t>(row) * F * width);
    }
};

// Channels last, float16: a thread stands in one output column and makes LANES channels of it.
template <int F>
struct Lanes {
    static constexpr int VALUES = LANES;
    const half_t* taps;
    half_t* out;
    const float *scale, *shift;
    int channels, width;
    int columns[3][2];   // per column shift, where in a row the two neighbours are that its sample lies between,
    float shares[3][2];  // and what they have in it

    __device__ __forceinline__ void across(int row, float (&lines)[3][LANES]) const {
        const half_t* line = taps + static_cast<size_t>(row) * width * 9 * channels;
#pragma unroll
        for (int i = 0; i < 3 * LANES; ++i) lines[i / LANES][i % LANES] = 0.0f;
#pragma unroll
        for (int i = 0; i < 6; ++i) {
            const half_t* tap = line + columns[i / 2][i % 2];
#pragma unroll
            for (int row_shift = 0; row_shift < 3; ++row_shift, tap += channels) {
                add(tap, shares[i / 2][i % 2], lines[row_shift]);
            }
        }
    }

    __device__ __forceinline__ static void add(const half_t* tap, float share, float (&sums)[LANES]) {
        static_assert(LANES == 4, "it reads 8 bytes");
        const uint2 seen = *reinterpret_cast<const uint2*>(tap);
#pragma unroll
        for (int i = 0; i < LANES; ++i) {
            const half_t half = {static_cast<unsigned short>((i < 2 ? seen.x : seen.y) >> 16 * (i % 2))};
            sums[i] = fmaf(share, to_float(half), sums[i]);
        }
    }

    __device__ __forceinline__ void put(int row, const float (&sums)[LANES]) const {
        float made[LANES];
#pragma unroll
        for (int i = 0; i < LANES; ++i) made[i] = fmaf(scale[i], mish(sums[i]), shift[i]);
        store(made, out + static_cast<size_t>(row) * F * width * channels);
    }
};

// The output rows of low-resolution rows first..last - 1.
template <int F, typename Columns>
__device__ __forceinline__ void down(const Columns& columns, int first, int height) {
    constexpr int N = Columns::VALUES;
    const int last = min(first + ROWS, height);
    float above[3][N], below[3][N], pending[2][N] = {};
    columns.across(max(first - 1, 0), above);
#pragma unroll 1
    for (int row = first; row <= last; ++row) {
        columns.across(min(row, height - 1), below);
#pragma unroll
        for (int i = 0; i < F; ++i) {
            const int sample = F * row - F / 2 + i;
            if (sample < F * first - 1 || sample > F * last) continue;
            const float inside = sample < 0 || sample >= F * height ? 0.0f : 1.0f;
            const float lower = inside * ((i + 0.5f) / F), upper = inside - lower;
            float finished[N];
#pragma unroll
            for (int k = 0; k < N; ++k) {
                finished[k] = fmaf(lower, below[2][k], fmaf(upper, above[2][k], pending[0][k]));
                pending[0][k] = fmaf(lower, below[1][k], fmaf(upper, above[1][k], pending[1][k]));
                pending[1][k] = fmaf(lower, below[0][k], upper * above[0][k]);
            }
            if (sample > F * first) columns.put(sample - 1, finished);
        }
#pragma unroll
        for (int k = 0; k < 3 * N; ++k) above[k / N][k % N] = below[k / N][k % N];
    }
}

template <int F, typename Real>
__device__ __forceinline__ void planes(
    const Real* taps, const float* scale, const float* shift, int channels, int height, int width, Real* out) {
    const int thread = blockIdx.x * THREADS + threadIdx.x, strips = (height + ROWS - 1) / ROWS;
    if (thread >= channels * strips * width) return;
    const int column = thread % width, strip = thread / width % strips, channel = thread / width / strips;
    const size_t n = blockIdx.y;
    const int plane = height * width;
    const Plane<F, Real> columns = {
        taps + (n * 9 * channels + channel) * plane + column,
        out + (n * channels + channel) * plane * F * F + F * column,
        scale[channel],
        shift[channel],
        static_cast<size_t>(channels) * plane,
        width,
        column == 0,
        column == width - 1};
    down<F>(columns, strip * ROWS, height);
}

template <int F>
__device__ __forceinline__ void channels_last(
    const half_t* taps, const float* scale, const float* shift, int channels, int height, int width, half_t* out) {
    const int thread = blockIdx.x * THREADS + threadIdx.x;
    const int strips = (height + ROWS - 1) / ROWS, groups = channels / LANES;
    if (thread >= groups * strips * width * F) return;
    const int group = thread % groups, column = thread / groups % (width * F), strip = thread / groups / (width * F);
    const size_t n = blockIdx.y;
    const int plane = height * width, first = group * LANES;
    Lanes<F> columns = {
        taps + n * plane * 9 * channels + first,
        out + (n * plane * F * F + column) * channels + first,
        scale + first,
        shift + first,
        channels,
        width};
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const int sample = column + i - 1, before = (sample + F / 2) / F - 1;
        const float inside = sample < 0 || sample >= F * width ? 0.0f : 1.0f;
        const float after = inside * ((sample + F / 2) % F + 0.5f) * (1.0f / F);
        columns.columns[i][0] = (9 * max(before, 0) + 3 * i) * channels;
        columns.columns[i][1] = (9 * min(before + 1, width - 1) + 3 * i) * channels;
        columns.shares[i][0] = inside - after;
        columns.shares[i][1] = after;
    }
    down<F>(columns, strip * ROWS, height);
}

}  // namespace deep

// One kernel: deep_planes_half_2 is DEEP(planes, half_t, half, 2).
#define DEEP(layout, Real, name, F)                                                                            \
    extern "C" __global__ void __launch_bounds__(deep::THREADS, 4) deep_##layout##_##name##_##F(               \
        const Real* __restrict__ taps, const float* __restrict__ scale, const float* __restrict__ shift,       \
        int channels, int height, int width, Real* __restrict__ out) {                                         \
        deep::layout<F>(taps, scale, shift, channels, height, width, out);                                     \
    }
