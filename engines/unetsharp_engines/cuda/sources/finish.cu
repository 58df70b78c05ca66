// Finishing what the engine leaves undone, a pixel's six logits never leaving registers: from the head's taps at low
// resolution (rewrites/taps.py) or from full logits, to labels, confidences and probabilities.
#include "constants.cuh"
#include "primitives.cuh"

namespace finish {

constexpr int THREADS = PIXEL_THREADS;
constexpr int ROWS = FINISH_ROWS;

// Upsampling by two mixes a sample with its neighbour, a quarter to three. Rows of these tables: tap shift -1, 0, 1;
// columns: low-resolution neighbour before, here, after. An even output pixel lies before its sample's centre.
struct Mixing {
    float weights[3][3];
};

// Shifted samples outside the picture are zero: `before` and `after` are 0 there, else 1.
__device__ __forceinline__ Mixing even_mixing(float before) {
    return {{{0.75f * before, 0.25f * before, 0.0f}, {0.25f, 0.75f, 0.0f}, {0.0f, 0.75f, 0.25f}}};
}

__device__ __forceinline__ Mixing odd_mixing(float after) {
    return {{{0.25f, 0.75f, 0.0f}, {0.0f, 0.75f, 0.25f}, {0.0f, 0.25f * after, 0.75f * after}}};
}

// Where a thread stands: ROWS low-resolution pixels, one below the other, each of whose upsampling is four output pixels.
struct Site {
    int offsets[ROWS + 2][3];  // of them and their neighbours, held at the edges, in a plane
    Mixing rows[ROWS][2], columns[2];
};

__device__ __forceinline__ Site site_at(int row, int column, int height, int width) {
    Site site;
#pragma unroll
    for (int i = 0; i < ROWS + 2; ++i) {
        const int y = min(max(row + i - 1, 0), height - 1);
#pragma unroll
        for (int j = 0; j < 3; ++j) site.offsets[i][j] = y * width + min(max(column + j - 1, 0), width - 1);
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        site.rows[i][0] = even_mixing(row + i > 0 ? 1.0f : 0.0f);
        site.rows[i][1] = odd_mixing(row + i < height - 1 ? 1.0f : 0.0f);
    }
    site.columns[0] = even_mixing(column > 0 ? 1.0f : 0.0f);
    site.columns[1] = odd_mixing(column < width - 1 ? 1.0f : 0.0f);
    return site;
}

// Whether output pixels of this parity see this neighbour of this shift at all.
__device__ constexpr bool meets(int parity, int shift, int neighbour) {
    if (neighbour < 0 || neighbour > 2) return false;
    return parity == 0 ? (shift == 2 ? neighbour > 0 : neighbour < 2) : (shift == 0 ? neighbour < 2 : neighbour > 0);
}

// Whether output pixels of either parity, of any of a thread's rows, see line `row` of this shift.
__device__ constexpr bool meets_any(int shift, int row) {
    for (int own = 0; own < ROWS; ++own) {
        if (meets(0, shift, row - own) || meets(1, shift, row - own)) return true;
    }
    return false;
}

// One class's taps of a line, upsampled along it: the even and the odd output column.
template <typename In>
__device__ __forceinline__ void mix_line(
    const In* taps, int plane, const Site& site, int row_shift, int row, float (&across)[2]) {
    across[0] = across[1] = 0.0f;
#pragma unroll
    for (int column_shift = 0; column_shift < 3; ++column_shift) {
        const int channel = (3 * column_shift + row_shift) * plane;
#pragma unroll
        for (int column = 0; column < 3; ++column) {
            if (!meets(0, column_shift, column) && !meets(1, column_shift, column)) continue;
            const float tap = to_float(taps[channel + site.offsets[row][column]]);
#pragma unroll
            for (int parity = 0; parity < 2; ++parity) {
                if (!meets(parity, column_shift, column)) continue;
                across[parity] = fmaf(site.columns[parity].weights[column_shift][column], tap, across[parity]);
            }
        }
    }
}

// One class's logits of the pixels, [2 row + column], from its nine planes, channel 3 column shift + row shift.
template <typename In>
__device__ __forceinline__ void logits_at(const In* taps, int plane, const Site& site, float (&logits)[4 * ROWS]) {
#pragma unroll
    for (int i = 0; i < 4 * ROWS; ++i) logits[i] = 0.0f;
#pragma unroll
    for (int row_shift = 0; row_shift < 3; ++row_shift) {
#pragma unroll
        for (int row = 0; row < ROWS + 2; ++row) {
            if (!meets_any(row_shift, row)) continue;
            float across[2];
            mix_line(taps, plane, site, row_shift, row, across);
#pragma unroll
            for (int i = 0; i < 2 * ROWS; ++i) {
                const int own = i / 2, parity = i % 2;
                if (!meets(parity, row_shift, row - own)) continue;
                const float weight = site.rows[own][parity].weights[row_shift][row - own];
                logits[2 * i] = fmaf(weight, across[0], logits[2 * i]);
                logits[2 * i + 1] = fmaf(weight, across[1], logits[2 * i + 1]);
            }
        }
    }
}

// exp(logit - greatest), and their sum.
__device__ __forceinline__ float exponentials(const float (&logits)[CHANNELS], float (&out)[CHANNELS]) {
    constexpr float LOG2_E = 1.44269504f;
    float greatest = logits[0], sum = 0.0f;
#pragma unroll
    for (int k = 1; k < CHANNELS; ++k) greatest = fmaxf(greatest, logits[k]);
#pragma unroll
    for (int k = 0; k < CHANNELS; ++k) {
        out[k] = exp2_fast((logits[k] - greatest) * LOG2_E);
        sum += out[k];
    }
    return sum;
}

// The label of the greatest logit, the first of equals.
__device__ __forceinline__ u8 label_of(const float (&logits)[CHANNELS]) {
    float greatest = logits[0];
    unsigned label = LABEL_OF_CHANNEL_0;
#pragma unroll
    for (int k = 1; k < CHANNELS; ++k) {
        if (logits[k] > greatest) greatest = logits[k], label = LABELS >> (4 * k) & 15u;
    }
    return static_cast<u8>(label);
}

// The greatest probability, 0 to 1 as 0 to 255, rounded.
__device__ __forceinline__ u8 confidence_of(const float (&logits)[CHANNELS]) {
    float ignored[CHANNELS];
    return static_cast<u8>(truncate(divide_fast(255.0f, exponentials(logits, ignored)) + 0.5f));
}

// A label image that leaves out `margin` pixels on each side of a height x width picture.
struct Cropped {
    u8* labels;
    u8* confidence;  // or null
    int height, width, margin;

    __device__ __forceinline__ void put(size_t n, int y, int x, const float (&logits)[CHANNELS]) const {
        const int rows = height - 2 * margin, columns = width - 2 * margin;
        const int row = y - margin, column = x - margin;
        if (row < 0 || row >= rows || column < 0 || column >= columns) return;
        const size_t at = (n * rows + row) * columns + column;
        labels[at] = label_of(logits);
        if (confidence != nullptr) confidence[at] = confidence_of(logits);
    }
};

struct Probabilities {
    float* out;
    int height, width;

    __device__ __forceinline__ void put(size_t n, int y, int x, const float (&logits)[CHANNELS]) const {
        float shares[CHANNELS];
        const float scale = divide_fast(1.0f, exponentials(logits, shares));
        const size_t plane = static_cast<size_t>(height) * width;
        float* to = out + n * CHANNELS * plane + static_cast<size_t>(y) * width + x;
#pragma unroll
        for (int k = 0; k < CHANNELS; ++k) to[k * plane] = shares[k] * scale;
    }
};

template <typename In, typename Put>
__device__ __forceinline__ void from_taps(const In* taps, int channels, int height, int width, const Put& put) {
    __shared__ float logits[CHANNELS][4 * ROWS][THREADS];  // each thread its own column: registers cannot be indexed
    const int column = blockIdx.x * blockDim.x + threadIdx.x, row = (blockIdx.y * blockDim.y + threadIdx.y) * ROWS;
    if (column >= width || row >= height) return;
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, plane = height * width;
    const size_t n = blockIdx.z;
    const Site site = site_at(row, column, height, width);
#pragma unroll 1
    for (int k = 0; k < CHANNELS; ++k) {
        float pixels[4 * ROWS];
        logits_at(taps + (n * channels + 9 * k) * plane, plane, site, pixels);
#pragma unroll
        for (int i = 0; i < 4 * ROWS; ++i) logits[k][i][thread] = pixels[i];
    }
#pragma unroll 1
    for (int i = 0; i < 4 * min(ROWS, height - row); ++i) {
        float here[CHANNELS];
#pragma unroll
        for (int k = 0; k < CHANNELS; ++k) here[k] = logits[k][i][thread];
        put.put(n, 2 * row + i / 2, 2 * column + i % 2, here);
    }
}

template <typename In, typename Put>
__device__ __forceinline__ void from_logits(const In* logits, int height, int width, const Put& put) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    const size_t n = blockIdx.z, plane = static_cast<size_t>(height) * width;
    const In* from = logits + n * CHANNELS * plane + static_cast<size_t>(y) * width + x;
    float here[CHANNELS];
#pragma unroll
    for (int k = 0; k < CHANNELS; ++k) here[k] = to_float(from[k * plane]);
    put.put(n, y, x, here);
}

}  // namespace finish

// Blocks are 32 x 4. taps: [N, channels, height, width], channel 9 class + 3 column shift + row shift; outputs are twice
// as high and wide. logits: [N, 6, height, width].
#define FINISH(Real, suffix)                                                                                      \
    extern "C" __global__ void __launch_bounds__(finish::THREADS) finish_labels_##suffix(                                     \
        const Real* taps, u8* labels, u8* confidence, int channels, int height, int width, int margin) {          \
        const finish::Cropped put = {labels, confidence, 2 * height, 2 * width, margin};                          \
        finish::from_taps(taps, channels, height, width, put);                                                    \
    }                                                                                                             \
    extern "C" __global__ void __launch_bounds__(finish::THREADS) finish_probabilities_##suffix(                              \
        const Real* taps, float* out, int channels, int height, int width) {                                       \
        const finish::Probabilities put = {out, 2 * height, 2 * width};                                     \
        finish::from_taps(taps, channels, height, width, put);                                                    \
    }                                                                                                             \
    extern "C" __global__ void __launch_bounds__(finish::THREADS) labels_of_logits_##suffix(                                  \
        const Real* logits, u8* labels, u8* confidence, int height, int width, int margin) {                      \
        const finish::Cropped put = {labels, confidence, height, width, margin};                                  \
        finish::from_logits(logits, height, width, put);                                                          \
    }                                                                                                             \
    extern "C" __global__ void __launch_bounds__(finish::THREADS) probabilities_of_logits_##suffix(                           \
        const Real* logits, float* out, int height, int width) {                                                   \
        const finish::Probabilities put = {out, height, width};                                             \
        finish::from_logits(logits, height, width, put);                                                          \
    }

FINISH(half_t, half)
FINISH(float, float)
