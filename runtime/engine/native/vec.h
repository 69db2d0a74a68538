// Sixteen floats at a time in GCC's vector extension: one AVX-512 register, two of AVX2, four of Neon or SSE.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace warmstart {

constexpr int kLanes = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));

// The same in registers of the instruction set, for sums that must stay in registers: GCC keeps the wider type in memory.
#if defined(__AVX512F__)
constexpr int kPartLanes = 16;
#elif defined(__AVX2__)
constexpr int kPartLanes = 8;
#else
constexpr int kPartLanes = 4;
#endif
constexpr int kParts = kLanes / kPartLanes;
typedef float Part __attribute__((vector_size(4 * kPartLanes)));

struct Parts {
    Part part[kParts] = {};

    // Adds values x factor.
    void add(const Parts& values, float factor) {
        for (int i = 0; i < kParts; i++) part[i] += values.part[i] * factor;
    }
    Floats floats() const {
        Floats all;
        std::memcpy(&all, part, sizeof all);
        return all;
    }
};

inline Parts parts_of(const Floats& v) {
    Parts all;
    std::memcpy(all.part, &v, sizeof v);
    return all;
}

inline Floats load(const float* from) {
    Floats v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

inline void store(float* to, Floats v) { std::memcpy(to, &v, sizeof v); }

inline Floats splat(float x) { return Floats{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

inline Floats select(Ints mask, Floats yes, Floats no) {
    return mask ? yes : no;
}

// The larger of each lane; b where one is not a number, as in the instruction.
#if defined(__AVX512F__)
inline Floats maximum(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
#else
inline Floats maximum(Floats a, Floats b) { return select(a > b, a, b); }
#endif

// Always in the same order, so that a sum never depends on who asks for it.
inline float sum(Floats v) {
    for (int width = kLanes / 2; width; width /= 2)
        for (int i = 0; i < width; i++) v[i] += v[i + width];
    return v[0];
}

inline float maximum(Floats v) {
    for (int width = kLanes / 2; width; width /= 2)
        for (int i = 0; i < width; i++) v[i] = v[i] > v[i + width] ? v[i] : v[i + width];
    return v[0];
}

// The same in fewer instructions, for values that are all numbers.
inline float largest_lane(Floats v) {
    v = maximum(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = maximum(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    v = maximum(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    v = maximum(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
    return v[0];
}

inline uint32_t sum(Words v) {
    v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v += __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return v[0];
}

// To nearest even, for magnitudes below 2^22.
inline Floats round_even(Floats x) {
    const Floats magic = splat(12582912.0f);
    return (x + magic) - magic;
}

// exp(x) within 2 units in the last place (Cephes' expf: range reduction by ln 2, then a polynomial). Below -87 it is
// exactly 0, so that a masked score has no weight; above 88 it stays at exp(88).
inline Floats exponential(Floats x) {
    const Ints underflow = x < splat(-87.0f);
    x = select(x > splat(88.0f), splat(88.0f), x);
    x = maximum(splat(-87.0f), x);
    const Floats n = round_even(x * 1.44269504088896341f);
    Floats r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    Floats p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
    return select(underflow, splat(0.0f), p * (Floats)power);
}

// IEEE half precision, for keys and values.
#if defined(__AVX512F__)
inline Floats load_half(const uint16_t* from) {
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
}
inline void store_half(uint16_t* to, Floats v) {
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
inline Floats load_half(const uint16_t* from) {
    Floats v;
    for (int i = 0; i < 2; i++) {
        const __m256 part = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from + i));
        std::memcpy((char*)&v + 32 * i, &part, 32);
    }
    return v;
}
inline void store_half(uint16_t* to, Floats v) {
    for (int i = 0; i < 2; i++) {
        __m256 part;
        std::memcpy(&part, (const char*)&v + 32 * i, 32);
        _mm_storeu_si128((__m128i*)to + i, _mm256_cvtps_ph(part, _MM_FROUND_TO_NEAREST_INT));
    }
}
#elif defined(__aarch64__)
inline Floats load_half(const uint16_t* from) {
    Floats v;
    for (int i = 0; i < 4; i++) {
        const float32x4_t part = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * i)));
        std::memcpy((char*)&v + 16 * i, &part, 16);
    }
    return v;
}
inline void store_half(uint16_t* to, Floats v) {
    for (int i = 0; i < 4; i++) {
        float32x4_t part;
        std::memcpy(&part, (const char*)&v + 16 * i, 16);
        vst1_u16(to + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(part)));
    }
}
#else
inline Words select(Ints mask, Words yes, Words no) { return (yes & (Words)mask) | (no & ~(Words)mask); }

// In integers, since compilers have a half-precision type only where the processor does.
inline Floats load_half(const uint16_t* from) {
    Words h;
    for (int i = 0; i < kLanes; i++) h[i] = from[i];
    const Words magnitude = h & 0x7fffu;
    const Words scaled = (Words)((Floats)(magnitude << 13) * 0x1p112f);  // exact, for subnormal numbers as well
    return (Floats)(select(magnitude < 0x7c00u, scaled, magnitude << 13 | 0x7f800000u) | (h & 0x8000u) << 16);
}
inline void store_half(uint16_t* to, Floats v) {
    const Words magnitude = (Words)v & 0x7fffffffu;
    const Words normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;  // to nearest even
    const Words subnormal = (Words)((Floats)magnitude + 0.5f) - (126u << 23);  // the addition rounds
    const Words no_number = 0x7e00u | (magnitude >> 13 & 0x3ffu);
    const Words large = select(magnitude > 0x7f800000u, no_number, Words{} + 0x7c00u);
    const Words half = select(magnitude < 0x38800000u, subnormal, select(magnitude < 0x47800000u, normal, large));
    const Words all = half | ((Words)v >> 16 & 0x8000u);
    for (int i = 0; i < kLanes; i++) to[i] = (uint16_t)all[i];
}
#endif

// The two bfloat16 of each lane as floats: the lower half of a word is the even column.
inline Floats even_bfloat(Words w) { return (Floats)(w << 16); }
inline Floats odd_bfloat(Words w) { return (Floats)(w & 0xffff0000u); }

}  // namespace warmstart
