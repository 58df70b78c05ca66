// Small steps that several kernels take.
#pragma once

#include "ptx.cuh"

typedef unsigned char u8;
typedef unsigned long long u64;

__device__ __forceinline__ float to_float(float x) {
    return x;
}

__device__ __forceinline__ void from_float(float x, float& y) {
    y = x;
}

// Greatest whole number not above x, for x in 0..2^22: the conversion instructions run at a quarter of this rate.
__device__ __forceinline__ float truncate(float x) {
    return __fadd_rz(x, 8388608.0f) - 8388608.0f;
}

// Byte `index` of little-endian `words`; index must be known at compile time.
__device__ __forceinline__ unsigned byte_of(const unsigned* words, int index) {
    return (words[index >> 2] >> (8 * (index & 3))) & 255u;
}

// 2^23 + byte, exactly, by placing the byte in a float's last mantissa bits.
__device__ __forceinline__ float lifted_byte_of(const unsigned* words, int index) {
    return __uint_as_float(__byte_perm(words[index >> 2], 0x4B000000u, 0x7440u + (index & 3)));
}
