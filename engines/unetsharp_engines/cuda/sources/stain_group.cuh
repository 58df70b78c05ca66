// What the passes of stain estimation know of a group of pixels, and how its blocks come to know it together.
#pragma once

#include "stain_pixels.cuh"

namespace estimate {

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

// Visits the projections on the group's two rows of this block's pixels, or of those that are tissue: visit(first, second).
template <bool TISSUE_ALONE, typename Visit>
__device__ __forceinline__ void each_projection(const u8* tiles, int pixels, const Group& group, Visit visit) {
    __shared__ float density[LEVELS];
    copy_table(DENSITY, density);
    float rows[6];
#pragma unroll
    for (int i = 0; i < 6; ++i) rows[i] = group.rows[i];
    __syncthreads();
    each_pixel(tiles, pixels, [&](unsigned r, unsigned g, unsigned b) {
        if (TISSUE_ALONE && !is_tissue(r, g, b)) return;
        const float x = density[r], y = density[g], z = density[b];
        visit(project(rows, x, y, z), project(rows + 3, x, y, z));
    });
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

// The end of a coarse pass: the bins in which the fine one has to look.
__device__ __forceinline__ void conclude_coarse(Group& group, int second) {
    conclude_percentiles(group, second, [&](const Found* found) {
        for (int i = 0; i < 2; ++i) group.bins[i] = found[i].bin, group.ranks[i] = found[i].rank;
    });
}

// A pixel's part in a fine histogram.
__device__ __forceinline__ void tally_fine(Group& group, const unsigned (&bins)[2], int which, unsigned key) {
    if (key >> FINE_BITS == bins[which]) atomicAdd(&group.histogram[which][key % BINS], 1u);
}

// The end of a fine pass: thread 0 concludes from the keys of the two ranks.
template <typename Conclude>
__device__ __forceinline__ void conclude_fine(Group& group, Conclude conclude) {
    conclude_percentiles(group, 1, [&](const Found* found) {
        int keys[2];
        for (int i = 0; i < 2; ++i) keys[i] = static_cast<int>(group.bins[i] << FINE_BITS | found[i].bin);
        conclude(keys);
    });
}

}  // namespace estimate
