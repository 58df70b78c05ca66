// Eigenvectors of a symmetric 3x3 matrix by cyclic Jacobi rotations, in float64: accurate for the small ones too.
#pragma once

struct Symmetric {
    double xx, xy, xz, yy, yz, zz;
};

struct Vector {
    double x, y, z;
};

__device__ __forceinline__ double dot(Vector a, Vector b) {
    return a.x * b.x + a.y * b.y + a.z * b.z;
}

__device__ __forceinline__ Vector cross(Vector a, Vector b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

__device__ __forceinline__ Vector combine(double s, Vector a, double t, Vector b) {
    return {s * a.x + t * b.x, s * a.y + t * b.y, s * a.z + t * b.z};
}

// One rotation that all but annuls the off-diagonal `pq` between diagonal `pp` and `qq`; `pr`, `qr` are the other two
// off-diagonals, `p` and `q` the columns of eigenvectors it turns. Its tangent needs no more than float32, being made up
// for by the next sweep; that it turns and does not stretch needs float64.
__device__ __forceinline__ void rotate(
    double& pp, double& qq, double& pq, double& pr, double& qr, Vector& p, Vector& q) {
    const float off_diagonal = static_cast<float>(pq);
    if (off_diagonal == 0.0f) return;
    const float theta = static_cast<float>((qq - pp) * 0.5) / off_diagonal;
    const double t = copysignf(1.0f, theta) / (fabsf(theta) + sqrtf(fmaf(theta, theta, 1.0f)));
    const double c = rsqrt(t * t + 1.0), s = t * c;
    const double crossed = 2.0 * c * s * pq, cc = c * c, ss = s * s;
    pq = (cc - ss) * pq + c * s * (pp - qq);
    const double old_pp = pp, old_pr = pr;
    pp = cc * pp - crossed + ss * qq;
    qq = ss * old_pp + crossed + cc * qq;
    pr = c * pr - s * qr;
    qr = s * old_pr + c * qr;
    const Vector turned = combine(c, p, -s, q);
    q = combine(s, p, c, q);
    p = turned;
}

struct Spectrum {
    double least, middle, largest;
    Vector normal;  // of the least
};

__device__ inline Spectrum spectrum(Symmetric a) {
    constexpr int SWEEPS = 10;  // at most
    Vector x = {1.0, 0.0, 0.0}, y = {0.0, 1.0, 0.0}, z = {0.0, 0.0, 1.0};
#pragma unroll 1
    for (int sweep = 0; sweep < SWEEPS; ++sweep) {
        const double off = fabs(a.xy) + fabs(a.xz) + fabs(a.yz);
        if (off <= 1e-18 * (fabs(a.xx) + fabs(a.yy) + fabs(a.zz))) break;
        rotate(a.xx, a.yy, a.xy, a.xz, a.yz, x, y);
        rotate(a.xx, a.zz, a.xz, a.xy, a.yz, x, z);
        rotate(a.yy, a.zz, a.yz, a.xy, a.xz, y, z);
    }
    const double least = fmin(a.xx, fmin(a.yy, a.zz)), largest = fmax(a.xx, fmax(a.yy, a.zz));
    const double middle = fmax(fmin(a.xx, a.yy), fmin(fmax(a.xx, a.yy), a.zz));
    return {least, middle, largest, least == a.xx ? x : (least == a.yy ? y : z)};
}
