// Stain estimation: Macenko's method for many groups of pixels at once, each a tile or a slide's region.
//
// Five launches, each a pass over the pixels; several blocks share a group, and the last of them to finish draws the
// conclusion that the next pass needs, so that nothing waits for the host:
//   stain_moments              tissue pixels' count, sums and products of densities -> plane of the stains
//   stain_angles               coarse histogram of the angle in that plane          -> bins of its percentiles
//   stain_angles_fine          fine histograms within those two bins                -> the two stains
//   stain_concentrations       coarse histograms of both concentrations             -> bins of their percentile
//   stain_concentrations_fine  fine histograms within those two bins                -> the transform
// All that blocks add up is whole numbers, so results do not depend on the order in which they come. A group that
// carries no estimate is given the fallback and its status where that shows; later passes skip it.
#include "constants.cuh"
#include "eigen.cuh"
#include "primitives.cuh"

namespace estimate {

constexpr int THREADS = ESTIMATE_THREADS;
constexpr int CHUNK = ESTIMATE_CHUNK;  // pixels a thread reads at a time: 48 bytes
static_assert(CHUNK == 16, "each_pixel reads three times 16 bytes");
constexpr int BINS = 2048;
constexpr int FINE_BITS = 11;
constexpr int KEYS = BINS << FINE_BITS;
constexpr int COPIES = 4;  // of a table, by lane, so that fewer lanes meet in a bank

// What is known of a group; zeroed before the first pass.
struct alignas(16) Group {
    unsigned histogram[2][BINS];
    u64 moments[10];  // tissue pixels; sums of densities r, g, b; of products rr, rg, rb, gg, gb, bb (two's complement)
    double stains[6];  // hematoxylin, eosin
    double unmix[6];   // least squares: rows hematoxylin, eosin
    float rows[6];     // of the projection that the next pass tallies
    unsigned bins[2];
    unsigned ranks[2];
    unsigned arrived;
    unsigned flagged;
};
static_assert(sizeof(Group) == GROUP_BYTES, "GROUP_BYTES in constants.py");

struct Result {
    float* transforms;
    int* statuses;
    const float* fallback;
};

template <typename Visit>
__device__ __forceinline__ void each_pixel(const u8* pixels, int count, Visit visit) {
    const uint4* source = reinterpret_cast<const uint4*>(pixels);
    for (int chunk = blockIdx.x * THREADS + threadIdx.x; chunk < count / CHUNK; chunk += gridDim.x * THREADS) {
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

template <typename T>
struct Table {
    T values[256 * COPIES];

    __device__ __forceinline__ void fill(const T* from) {
        for (int i = threadIdx.x; i < 256 * COPIES; i += THREADS) values[i] = from[i / COPIES];
    }

    __device__ __forceinline__ T operator()(unsigned level) const {
        return values[level * COPIES + threadIdx.x % COPIES];
    }
};

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

// The rank, from 0, of a percentile of `count` values: the nearest, half to even.
__device__ __forceinline__ unsigned rank_of(double fraction, double count) {
    return static_cast<unsigned>(rint(fraction * (count - 1.0)));
}

__device__ __forceinline__ void flag(const Result& result, Group& group, int status) {
    group.flagged = 1;
    result.statuses[blockIdx.y] = status;
    for (int i = 0; i < 12; ++i) result.transforms[12 * blockIdx.y + i] = result.fallback[i];
}

// Adds a block's histograms to the group's.
template <int COUNT>
__device__ __forceinline__ void merge(const unsigned (*histogram)[BINS], Group& group) {
    for (int i = threadIdx.x; i < COUNT * BINS; i += THREADS) {
        const unsigned tally = histogram[i / BINS][i % BINS];
        if (tally != 0) atomicAdd(&group.histogram[i / BINS][i % BINS], tally);
    }
}

template <int COUNT>
__device__ __forceinline__ void clear(unsigned (*histogram)[BINS]) {
    for (int i = threadIdx.x; i < COUNT * BINS; i += THREADS) histogram[i / BINS][i % BINS] = 0;
}

// Whether this block is the last of its group's to come here; if so, all that the others wrote before is seen.
__device__ __forceinline__ bool last_to_arrive(Group& group) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(&group.arrived, 1u) == gridDim.x - 1;
        if (last) group.arrived = 0;
        __threadfence();
    }
    __syncthreads();
    return last;
}

struct Found {
    unsigned bin;
    unsigned rank;  // within the bin
};

// Finds the bins in which the values of two ranks lie, half the threads each, empties the group's histograms for the next
// pass, and lets thread 0 conclude.
template <typename Conclude>
__device__ __forceinline__ void conclude_percentiles(Group& group, int second, Conclude conclude) {
    __shared__ unsigned warps[THREADS / 32];
    __shared__ Found found[2];
    constexpr int HALF = THREADS / 2, EACH = BINS / HALF;
    const int which = threadIdx.x / HALF, first_bin = threadIdx.x % HALF * EACH;
    const unsigned* histogram = group.histogram[which * second] + first_bin;
    const unsigned rank = group.ranks[which];
    unsigned tallies[EACH], sum = 0;
#pragma unroll
    for (int i = 0; i < EACH; ++i) sum += tallies[i] = __ldcg(histogram + i);
    unsigned up_to = sum;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const unsigned other = __shfl_up_sync(0xFFFFFFFFu, up_to, step);
        if (threadIdx.x % 32 >= step) up_to += other;
    }
    if (threadIdx.x % 32 == 31) warps[threadIdx.x / 32] = up_to;
    __syncthreads();
    for (int warp = which * HALF / 32; warp < threadIdx.x / 32; ++warp) up_to += warps[warp];
    unsigned below = up_to - sum;
    if (rank >= below && rank < up_to) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            if (rank >= below && rank - below < tallies[i]) {
                found[which] = {static_cast<unsigned>(first_bin + i), rank - below};
            }
            below += tallies[i];
        }
    }
    clear<2>(group.histogram);
    __syncthreads();
    if (threadIdx.x == 0) conclude(found);
}

__device__ __forceinline__ u64 warp_sum(u64 value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xFFFFFFFFu, value, step);
    return value;
}

__device__ __forceinline__ double moment(const Group& group, int i) {
    return static_cast<double>(static_cast<long long>(__ldcg(group.moments + i)));
}

// The plane's axes from the moments: false where the densities span none.
__device__ inline bool stain_plane(const Group& group, double count, Vector& first, Vector& second) {
    const Vector sum = {moment(group, 1), moment(group, 2), moment(group, 3)};
    const double scale = DENSITY_STEP * DENSITY_STEP / count;
    const Symmetric covariance = {
        (moment(group, 4) - sum.x * sum.x / count) * scale, (moment(group, 5) - sum.x * sum.y / count) * scale,
        (moment(group, 6) - sum.x * sum.z / count) * scale, (moment(group, 7) - sum.y * sum.y / count) * scale,
        (moment(group, 8) - sum.y * sum.z / count) * scale, (moment(group, 9) - sum.z * sum.z / count) * scale};
    const Spectrum found = spectrum(covariance);
    if (found.middle < fmax(MIN_PLANARITY * found.largest, MIN_VARIANCE)) return false;
    const double step = DENSITY_STEP / count;
    const Vector mean = {
        sum.x * step + DENSITY_CENTRE, sum.y * step + DENSITY_CENTRE, sum.z * step + DENSITY_CENTRE};
    const Vector in_plane = combine(1.0, mean, -dot(mean, found.normal), found.normal);
    const double length = sqrt(dot(in_plane, in_plane));
    if (length < MIN_IN_PLANE_MEAN) return false;
    first = combine(1.0 / length, in_plane, 0.0, in_plane);
    second = cross(found.normal, first);
    return true;
}

__device__ __forceinline__ void store(double* to, Vector a, Vector b) {
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = b.x, to[4] = b.y, to[5] = b.z;
}

__device__ inline void conclude_moments(Group& group, int pixels, const Result& result) {
    const double tissue = moment(group, 0);
    Vector first, second;
    if (tissue / pixels < MIN_TISSUE_FRACTION) return flag(result, group, FEW_PIXELS);
    if (!stain_plane(group, tissue, first, second)) return flag(result, group, RANK_DEFICIENT);
    store(group.stains, first, second);
    for (int i = 0; i < 6; ++i) group.rows[i] = static_cast<float>(group.stains[i]);
    group.ranks[0] = rank_of(LOW_FRACTION, tissue);
    group.ranks[1] = rank_of(HIGH_FRACTION, tissue);
}

// From the two extreme angles to the stains and the rows that unmix them.
__device__ inline void conclude_angles(Group& group, const int (&keys)[2], int pixels, const Result& result) {
    const double* axes = group.stains;
    const Vector first = {axes[0], axes[1], axes[2]}, second = {axes[3], axes[4], axes[5]};
    double x[2], y[2];
    direction_of(keys[0], x[0], y[0]);
    direction_of(keys[1], x[1], y[1]);
    const Vector a = combine(x[0], first, y[0], second), b = combine(x[1], first, y[1], second);
    const Vector hematoxylin = a.x > b.x ? a : b, eosin = a.x > b.x ? b : a;  // the one that takes more red
    const Vector normal = cross(hematoxylin, eosin);
    const double hh = dot(hematoxylin, hematoxylin), he = dot(hematoxylin, eosin), ee = dot(eosin, eosin);
    const double determinant = dot(normal, normal);  // of the Gram matrix
    if (sqrt(determinant) < TAN_MIN_STAIN_ANGLE * fabs(he)) return flag(result, group, STAINS_TOO_CLOSE);
    const Vector h = combine(ee / determinant, hematoxylin, -he / determinant, eosin);
    const Vector e = combine(-he / determinant, hematoxylin, hh / determinant, eosin);
    store(group.unmix, h, e);
    for (int i = 0; i < 6; ++i) group.rows[i] = static_cast<float>(group.unmix[i]);
    group.ranks[0] = group.ranks[1] = rank_of(HIGH_FRACTION, pixels);
}

__device__ inline void conclude_concentrations(Group& group, const int (&keys)[2], const Result& result) {
    const double h = concentration_of(keys[0]), e = concentration_of(keys[1]);
    if (fmin(h, e) < MIN_MAX_CONCENTRATION) return flag(result, group, BAD_MAXC);
    float* transform = result.transforms + 12 * blockIdx.y;
    for (int row = 0; row < 3; ++row) {
        const double from_h = TARGET[2 * row] / h, from_e = TARGET[2 * row + 1] / e;
        for (int i = 0; i < 3; ++i) {
            transform[3 * row + i] = static_cast<float>(from_h * group.unmix[i] + from_e * group.unmix[3 + i]);
        }
        transform[9 + row] = GLASS_OFFSET;
    }
    result.statuses[blockIdx.y] = OK;
}

__device__ __forceinline__ void load_rows(const Group& group, float (&rows)[6]) {
#pragma unroll
    for (int i = 0; i < 6; ++i) rows[i] = group.rows[i];
}

__device__ __forceinline__ int key_of(const Group& group, const Found* found, int which) {
    return static_cast<int>(group.bins[which] << FINE_BITS | found[which].bin);
}

}  // namespace estimate

// All five: grid (blocks a group, groups), 256 threads; tiles uint8 [groups, pixels, 3], pixels a multiple of 16.
#define STAIN_PASS(name)                                                                                         \
    extern "C" __global__ void __launch_bounds__(estimate::THREADS) name(                                                      \
        const u8* tiles, estimate::Group* groups, int pixels, float* transforms, int* statuses, const float* fallback)

STAIN_PASS(stain_moments) {
    using namespace estimate;
    __shared__ Table<int> density;
    density.fill(WHOLE_DENSITY);
    __syncthreads();
    Group& group = groups[blockIdx.y];
    u64 count = 0;
    long long s[9] = {};
    each_pixel(tiles + 3ull * pixels * blockIdx.y, pixels, [&](unsigned r, unsigned g, unsigned b) {
        if (!is_tissue(r, g, b)) return;
        const long long x = density(r), y = density(g), z = density(b);
        count += 1;
        s[0] += x, s[1] += y, s[2] += z;
        s[3] += x * x, s[4] += x * y, s[5] += x * z, s[6] += y * y, s[7] += y * z, s[8] += z * z;
    });
    count = warp_sum(count);
#pragma unroll
    for (int i = 0; i < 9; ++i) s[i] = static_cast<long long>(warp_sum(static_cast<u64>(s[i])));
    if (threadIdx.x % 32 == 0) {
        atomicAdd(group.moments, count);
#pragma unroll
        for (int i = 0; i < 9; ++i) atomicAdd(group.moments + 1 + i, static_cast<u64>(s[i]));
    }
    if (last_to_arrive(group) && threadIdx.x == 0) {
        conclude_moments(group, pixels, {transforms, statuses, fallback});
    }
}

STAIN_PASS(stain_angles) {
    using namespace estimate;
    Group& group = groups[blockIdx.y];
    if (group.flagged) return;
    __shared__ Table<float> density;
    __shared__ unsigned histogram[1][BINS];
    density.fill(DENSITY);
    clear<1>(histogram);
    __syncthreads();
    float rows[6];
    load_rows(group, rows);
    each_pixel(tiles + 3ull * pixels * blockIdx.y, pixels, [&](unsigned r, unsigned g, unsigned b) {
        const float x = density(r), y = density(g), z = density(b);
        const int key = angle_key(project(rows, x, y, z), project(rows + 3, x, y, z));
        if (is_tissue(r, g, b)) atomicAdd(&histogram[0][key >> FINE_BITS], 1u);
    });
    __syncthreads();
    merge<1>(histogram, group);
    if (!last_to_arrive(group)) return;
    conclude_percentiles(group, 0, [&](const Found* found) {
        for (int i = 0; i < 2; ++i) group.bins[i] = found[i].bin, group.ranks[i] = found[i].rank;
    });
}

STAIN_PASS(stain_angles_fine) {
    using namespace estimate;
    Group& group = groups[blockIdx.y];
    if (group.flagged) return;
    __shared__ Table<float> density;
    density.fill(DENSITY);
    __syncthreads();
    float rows[6];
    load_rows(group, rows);
    const unsigned low = group.bins[0], high = group.bins[1];
    each_pixel(tiles + 3ull * pixels * blockIdx.y, pixels, [&](unsigned r, unsigned g, unsigned b) {
        const float x = density(r), y = density(g), z = density(b);
        const unsigned key = angle_key(project(rows, x, y, z), project(rows + 3, x, y, z));
        const bool tissue = is_tissue(r, g, b);
        if (tissue && key >> FINE_BITS == low) atomicAdd(&group.histogram[0][key % BINS], 1u);
        if (tissue && key >> FINE_BITS == high) atomicAdd(&group.histogram[1][key % BINS], 1u);
    });
    if (!last_to_arrive(group)) return;
    conclude_percentiles(group, 1, [&](const Found* found) {
        const int keys[2] = {key_of(group, found, 0), key_of(group, found, 1)};
        conclude_angles(group, keys, pixels, {transforms, statuses, fallback});
    });
}

STAIN_PASS(stain_concentrations) {
    using namespace estimate;
    Group& group = groups[blockIdx.y];
    if (group.flagged) return;
    __shared__ Table<float> density;
    __shared__ unsigned histogram[2][BINS];
    density.fill(DENSITY);
    clear<2>(histogram);
    __syncthreads();
    float rows[6];
    load_rows(group, rows);
    each_pixel(tiles + 3ull * pixels * blockIdx.y, pixels, [&](unsigned r, unsigned g, unsigned b) {
        const float x = density(r), y = density(g), z = density(b);
        atomicAdd(&histogram[0][concentration_key(project(rows, x, y, z)) >> FINE_BITS], 1u);
        atomicAdd(&histogram[1][concentration_key(project(rows + 3, x, y, z)) >> FINE_BITS], 1u);
    });
    __syncthreads();
    merge<2>(histogram, group);
    if (!last_to_arrive(group)) return;
    conclude_percentiles(group, 1, [&](const Found* found) {
        for (int i = 0; i < 2; ++i) group.bins[i] = found[i].bin, group.ranks[i] = found[i].rank;
    });
}

STAIN_PASS(stain_concentrations_fine) {
    using namespace estimate;
    Group& group = groups[blockIdx.y];
    if (group.flagged) return;
    __shared__ Table<float> density;
    density.fill(DENSITY);
    __syncthreads();
    float rows[6];
    load_rows(group, rows);
    const unsigned bins[2] = {group.bins[0], group.bins[1]};
    each_pixel(tiles + 3ull * pixels * blockIdx.y, pixels, [&](unsigned r, unsigned g, unsigned b) {
        const float x = density(r), y = density(g), z = density(b);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const unsigned key = concentration_key(project(rows + 3 * i, x, y, z));
            if (key >> FINE_BITS == bins[i]) atomicAdd(&group.histogram[i][key % BINS], 1u);
        }
    });
    if (!last_to_arrive(group)) return;
    conclude_percentiles(group, 1, [&](const Found* found) {
        const int keys[2] = {key_of(group, found, 0), key_of(group, found, 1)};
        conclude_concentrations(group, keys, {transforms, statuses, fallback});
    });
}
