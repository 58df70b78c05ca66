// What the kernels ask of the machine beyond CUDA C++, one instruction each: with these no CUDA header is needed.
#pragma once

// IEEE binary16, as bits.
struct alignas(2) half_t {
    unsigned short bits;
};

// Base-2 logarithm: 2^-22 absolute within 0.5..2, else 2 units in the last place.
__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Base-2 exponential: 2^-22 relative; 0 where it would be denormal.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Quotient: 2 units in the last place for divisors within 2^-126..2^126.
__device__ __forceinline__ float divide_fast(float x, float y) {
    float quotient;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(quotient) : "f"(x), "f"(y));
    return quotient;
}

__device__ __forceinline__ float to_float(half_t x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

__device__ __forceinline__ void from_float(float x, half_t& y) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
}

// 8 bytes at once, which the compiler does not always make of two words; `to` is aligned to them.
__device__ __forceinline__ void store_words(void* to, unsigned a, unsigned b) {
    asm volatile("st.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(a), "r"(b) : "memory");
}

// 16 bytes at once.
__device__ __forceinline__ void store_words(void* to, unsigned a, unsigned b, unsigned c, unsigned d) {
    asm volatile("st.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
