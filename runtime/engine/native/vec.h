// Sixteen floats at a time in GCC's vector extension: one AVX-512 register, two of AVX2, four of Neon or SSE.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace warmstart {

constexpr int kLanes = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));

inline Floats load(const float* from) {
    Floats v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

inline void store(float* to, Floats v) { std::memcpy(to, &v, sizeof v); }

inline Floats splat(float x) { return Floats{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

inline Floats select(Ints mask, Floats yes, Floats no) {
    return (Floats)(((Ints)yes & mask) | ((Ints)no & ~mask));
}

inline Floats maximum(Floats a, Floats b) { return select(a > b, a, b); }

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
    x = select(underflow, splat(-87.0f), x);
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
#else
inline Floats load_half(const uint16_t* from) {
    Floats v;
    for (int i = 0; i < kLanes; i++) {
        _Float16 h;
        std::memcpy(&h, from + i, 2);
        v[i] = (float)h;
    }
    return v;
}
inline void store_half(uint16_t* to, Floats v) {
    for (int i = 0; i < kLanes; i++) {
        const _Float16 h = (_Float16)v[i];
        std::memcpy(to + i, &h, 2);
    }
}
#endif

// The two bfloat16 of each lane as floats: the lower half of a word is the even column.
inline Floats even_bfloat(Words w) { return (Floats)(w << 16); }
inline Floats odd_bfloat(Words w) { return (Floats)(w & 0xffff0000u); }

}  // namespace warmstart
