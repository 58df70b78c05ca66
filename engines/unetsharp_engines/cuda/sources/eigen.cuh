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

// One rotation that annuls the off-diagonal `pq` between diagonal `pp` and `qq`; `pr`, `qr` are the other two
// off-diagonals, `p` and `q` the columns of eigenvectors it turns.
__device__ __forceinline__ void rotate(
    double& pp, double& qq, double& pq, double& pr, double& qr, Vector& p, Vector& q) {
    if (pq == 0.0) return;
    const double theta = (qq - pp) / (2.0 * pq);
    const double t = copysign(1.0, theta) / (fabs(theta) + sqrt(theta * theta + 1.0));
    const double c = 1.0 / sqrt(t * t + 1.0), s = t * c;
    pp -= t * pq;
    qq += t * pq;
    pq = 0.0;
    const double old = pr;
    pr = c * old - s * qr;
    qr = s * old + c * qr;
    const Vector turned = combine(c, p, -s, q);
    q = combine(s, p, c, q);
    p = turned;
}

struct Spectrum {
    double least, middle, largest;
    Vector normal;  // of the least
};

__device__ inline Spectrum spectrum(Symmetric a) {
    constexpr int SWEEPS = 8;  // converges quadratically: four do
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
