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
#include "stain_group.cuh"

namespace estimate {

struct Result {
    float* transforms;
    int* statuses;
    const float* fallback;
};

// The rank, from 0, of a percentile of `count` values: the nearest, half to even.
__device__ __forceinline__ unsigned rank_of(double fraction, double count) {
    return static_cast<unsigned>(rint(fraction * (count - 1.0)));
}

__device__ __forceinline__ void flag(const Result& result, Group& group, int status) {
    group.flagged = 1;
    result.statuses[blockIdx.y] = status;
    for (int i = 0; i < 12; ++i) result.transforms[12 * blockIdx.y + i] = result.fallback[i];
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

}  // namespace estimate

// All five: grid (blocks a group, groups); tiles uint8 [groups, pixels, 3], pixels a multiple of ESTIMATE_CHUNK.
#define STAIN_PASS(name)                                                                                             \
    extern "C" __global__ void __launch_bounds__(estimate::THREADS) name(                                            \
        const u8* tiles, estimate::Group* groups, int pixels, float* transforms, int* statuses, const float* fallback)

STAIN_PASS(stain_moments) {
    using namespace estimate;
    Group& group = groups[blockIdx.y];
    __shared__ int density[LEVELS];
    copy_table(WHOLE_DENSITY, density);
    __syncthreads();
    u64 count = 0;
    long long s[9] = {};
    each_pixel(tiles, pixels, [&](unsigned r, unsigned g, unsigned b) {
        if (!is_tissue(r, g, b)) return;
        const long long x = density[r], y = density[g], z = density[b];
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
    __shared__ unsigned histogram[1][BINS];
    clear<1>(histogram);
    each_projection<true>(tiles, pixels, group, [&](float x, float y) {
        atomicAdd(&histogram[0][angle_key(x, y) >> FINE_BITS], 1u);
    });
    __syncthreads();
    merge<1>(histogram, group);
    if (last_to_arrive(group)) conclude_coarse(group, 0);
}

STAIN_PASS(stain_angles_fine) {
    using namespace estimate;
    Group& group = groups[blockIdx.y];
    if (group.flagged) return;
    const unsigned bins[2] = {group.bins[0], group.bins[1]};
    each_projection<true>(tiles, pixels, group, [&](float x, float y) {
        const int key = angle_key(x, y);
        tally_fine(group, bins, 0, key);
        tally_fine(group, bins, 1, key);
    });
    if (!last_to_arrive(group)) return;
    conclude_fine(group, [&](const int (&keys)[2]) {
        conclude_angles(group, keys, pixels, {transforms, statuses, fallback});
    });
}

STAIN_PASS(stain_concentrations) {
    using namespace estimate;
    Group& group = groups[blockIdx.y];
    if (group.flagged) return;
    __shared__ unsigned histogram[2][BINS];
    clear<2>(histogram);
    each_projection<false>(tiles, pixels, group, [&](float hematoxylin, float eosin) {
        atomicAdd(&histogram[0][concentration_key(hematoxylin) >> FINE_BITS], 1u);
        atomicAdd(&histogram[1][concentration_key(eosin) >> FINE_BITS], 1u);
    });
    __syncthreads();
    merge<2>(histogram, group);
    if (last_to_arrive(group)) conclude_coarse(group, 1);
}

STAIN_PASS(stain_concentrations_fine) {
    using namespace estimate;
    Group& group = groups[blockIdx.y];
    if (group.flagged) return;
    const unsigned bins[2] = {group.bins[0], group.bins[1]};
    each_projection<false>(tiles, pixels, group, [&](float hematoxylin, float eosin) {
        tally_fine(group, bins, 0, concentration_key(hematoxylin));
        tally_fine(group, bins, 1, concentration_key(eosin));
    });
    if (!last_to_arrive(group)) return;
    conclude_fine(group, [&](const int (&keys)[2]) {
        conclude_concentrations(group, keys, {transforms, statuses, fallback});
    });
}
