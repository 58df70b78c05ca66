// The kernels' PTX, in C++.
#pragma once

struct alignas(2) half_t {
    unsigned short bits;
};

inline float log2_fast(float x) { return std::log2(x); }
inline float exp2_fast(float x) { return std::exp2(x); }
inline float divide_fast(float x, float y) { return x / y; }

inline float to_float(half_t x) {
    const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
    const float size = exponent == 0    ? std::ldexp(mantissa, -24)
                       : exponent == 31 ? (mantissa ? NAN : INFINITY)
                                        : std::ldexp(1024 + mantissa, exponent - 25);
    return x.bits >> 15 ? -size : size;
}

inline void from_float(float x, half_t& y) {
    const int exponent = x == 0.0f ? -14 : std::max(std::ilogb(x), -14);
    const int steps = static_cast<int>(std::nearbyint(std::ldexp(std::fabs(x), 10 - exponent)));  // of 2^(exponent - 10)
    const int bits = ((exponent + 14) << 10) + steps;  // carries into the exponent where it must
    y.bits = static_cast<unsigned short>(std::min(bits, 31 << 10) | (std::signbit(x) ? 1 << 15 : 0));
}

template <typename... Words>
inline void store_words(void* to, Words... words) {
    const unsigned all[] = {words...};
    if (reinterpret_cast<uintptr_t>(to) % sizeof(all) != 0) std::abort();  // as the machine would
    std::memcpy(to, all, sizeof(all));
}
