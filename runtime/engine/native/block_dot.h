// Sums of products of codes in block formats with quantized activations, in registers of the instruction set.
#pragma once

#include "block_formats.h"
#include "int8_dot.h"
#include "vec.h"

namespace warmstart {

// a x b + c, rounded once where the instruction set can.
inline Part multiply_add(Part a, Part b, Part c) {
#if defined(__AVX512F__)
    return (Part)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Part)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (Part)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

inline Part load_part(const float* from) {
    Part v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

inline Part splat_part(float x) {
#if defined(__AVX512F__)
    return (Part)_mm512_set1_ps(x);
#elif defined(__AVX2__)
    return (Part)_mm256_set1_ps(x);
#else
    return Part{x, x, x, x};
#endif
}

// The sums of a group's products for 16 rows are kParts registers, of codes [columns / 4][16][4] with the same four
// activations in every row. `Bits` is 4 for codes up to 15, 6 up to 63, 8 up to 255; where codes up to 15 have no kernel
// of their own, kFewBits is 6. A step adds kGroupStep columns.
#if defined(__AVX512VNNI__)

constexpr int kFewBits = 6;
constexpr bool kManyRegisters = true;  // for the sums and values of a tile
typedef Ints Register;
typedef Ints Words4;  // kGroupStep bytes for each row
constexpr bool kWideIsSigned = false;
constexpr int kGroupStep = 4;

template <int Bits>
inline Words4 load_codes(const uint8_t* from) { return (Ints)_mm512_loadu_si512(from); }
inline Words4 splat_inputs(const int8_t* from) { return (Ints)_mm512_set1_epi32(load_word(from)); }

template <int Bits>
inline Register add_products(Register sums, Words4 codes, Words4 x) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, (__m512i)x);
}

template <int Bits>
inline Register begin_sums(int32_t begin) { return (Ints)_mm512_set1_epi32(begin); }
template <int Bits>
inline Register end_sums(Register sums, int32_t) { return sums; }
inline Part to_floats(Register sums) { return (Part)_mm512_cvtepi32_ps((__m512i)sums); }

// Adds the products of two 16-bit numbers in each lane; those of two sums, without their `Shift` lowest bits, with scales.
inline Register add_pairs(Register sums, Register pairs, Register others) {
    return (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)pairs, (__m512i)others);
}
template <int Shift>
inline Register add_scaled(Register sums, Register first, Register second, Register scales) {
    const __m512i low = _mm512_srai_epi32((__m512i)first, Shift), high = _mm512_slli_epi32((__m512i)second, 16 - Shift);
    return add_pairs(sums, (Ints)_mm512_mask_blend_epi16(0xaaaaaaaa, low, high), scales);
}
inline Register splat_word(int32_t word) { return (Ints)_mm512_set1_epi32(word); }

#elif defined(__AVX2__)

constexpr int kFewBits = 4;
constexpr bool kManyRegisters = false;
typedef __m256i Register;
struct Words4 {
    Register first, second;
};
constexpr bool kWideIsSigned = true;  // 128 is subtracted from wide codes before they are multiplied
constexpr int kGroupStep = 8;

template <int Bits>
inline Words4 load_codes(const uint8_t* from) {
    const Register minus = _mm256_set1_epi8(Bits == 8 ? (char)128 : 0);
    return {_mm256_xor_si256(_mm256_loadu_si256((const __m256i*)from), minus),
            _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)(from + 64)), minus)};
}
inline Words4 splat_inputs(const int8_t* from) {
    return {_mm256_set1_epi32(load_word(from)), _mm256_set1_epi32(load_word(from + 4))};
}

// The sums of pairs of products fit 16 bits: of codes up to 15 for 32 columns, of codes up to 63 for 8.
template <int Bits>
inline Register add_products(Register sums, const Words4& codes, const Words4& x) {
    const Register ones = _mm256_set1_epi16(1);
    if constexpr (Bits == 8) {
        // |code| x (x with the sign of the code): a code may be -128, which has no positive counterpart.
        const Register a = _mm256_maddubs_epi16(_mm256_abs_epi8(codes.first), _mm256_sign_epi8(x.first, codes.first));
        const Register b = _mm256_maddubs_epi16(_mm256_abs_epi8(codes.second), _mm256_sign_epi8(x.second, codes.second));
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(a, ones));
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(b, ones));
    } else {
        const Register pairs =
            _mm256_add_epi16(_mm256_maddubs_epi16(codes.first, x.first), _mm256_maddubs_epi16(codes.second, x.second));
        sums = Bits == 4 ? _mm256_add_epi16(sums, pairs) : _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
    }
    asm volatile("" : "+x"(sums));  // token by token, or the registers do not suffice
    return sums;
}

template <int Bits>
inline Register begin_sums(int32_t) { return _mm256_setzero_si256(); }
template <int Bits>
inline Register end_sums(Register sums, int32_t begin) {
    if (Bits == 4) sums = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
    return _mm256_add_epi32(sums, _mm256_set1_epi32(begin));
}
inline Part to_floats(Register sums) { return (Part)_mm256_cvtepi32_ps(sums); }

inline Register add_pairs(Register sums, Register pairs, Register others) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, others));
}
template <int Shift>
inline Register add_scaled(Register sums, Register first, Register second, Register scales) {
    const Register low = _mm256_srai_epi32(first, Shift), high = _mm256_slli_epi32(second, 16 - Shift);
    return add_pairs(sums, _mm256_blend_epi16(low, high, 0xaa), scales);
}
inline Register splat_word(int32_t word) { return _mm256_set1_epi32(word); }

#else

constexpr int kFewBits = 6;
constexpr bool kManyRegisters = false;
typedef int32_t Register __attribute__((vector_size(16)));
typedef Register Words4;
constexpr bool kWideIsSigned = true;
constexpr int kGroupStep = 4;

template <int Bits>
inline Words4 load_codes(const uint8_t* from) {
    Octets bytes = load_octets(from);
    if (Bits == 8) bytes ^= 128;
    return (Register)bytes;
}
inline Words4 splat_inputs(const int8_t* from) { return Register{} + load_word(from); }

template <int Bits>
inline Register add_products(Register sums, Words4 codes, Words4 x) {
#if defined(__ARM_FEATURE_DOTPROD)
    return (Register)vdotq_s32((int32x4_t)sums, (int8x16_t)codes, (int8x16_t)x);
#elif defined(__SSE2__)
    const auto odd = [](Register v) { return _mm_srai_epi16((__m128i)v, 8); };
    const auto even = [](Register v) { return _mm_srai_epi16(_mm_slli_epi16((__m128i)v, 8), 8); };
    return sums + (Register)_mm_madd_epi16(even(codes), even(x)) +
           (Register)_mm_madd_epi16(odd(codes), odd(x));
#else
    for (int i = 0; i < 4; i++) sums += (codes << (24 - 8 * i) >> 24) * (x << (24 - 8 * i) >> 24);
    return sums;
#endif
}

template <int Bits>
inline Register begin_sums(int32_t begin) { return Register{} + begin; }
template <int Bits>
inline Register end_sums(Register sums, int32_t) { return sums; }
inline Part to_floats(Register sums) { return __builtin_convertvector(sums, Part); }

inline Register add_pairs(Register sums, Register pairs, Register others) {
#if defined(__SSE2__)
    return sums + (Register)_mm_madd_epi16((__m128i)pairs, (__m128i)others);
#else
    return sums + (pairs << 16 >> 16) * (others << 16 >> 16) + (pairs >> 16) * (others >> 16);
#endif
}
template <int Shift>
inline Register add_scaled(Register sums, Register first, Register second, Register scales) {
#if defined(__SSE2__)
    return add_pairs(sums, ((first >> Shift) & 0xffff) | (second >> Shift << 16), scales);
#else
    return sums + (first >> Shift) * (scales << 16 >> 16) + (second >> Shift) * (scales >> 16);
#endif
}
inline Register splat_word(int32_t word) { return Register{} + word; }

#endif

inline Register load_register(const void* from) {
    Register v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

// The same for the codes of eight columns, which are two of the above.
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
typedef Words4 Words8;
template <int Bits>
inline Register add_eight(Register sums, Octets low, Octets high, const Words8& x) {
    return add_products<Bits>(sums, Words4{(Register)low, (Register)high}, x);
}
inline Words8 splat_eight(const int8_t* from) { return splat_inputs(from); }
#else
struct Words8 {
    Words4 first, second;
};
template <int Bits>
inline Register add_eight(Register sums, Octets low, Octets high, const Words8& x) {
    return add_products<Bits>(add_products<Bits>(sums, (Words4)low, x.first), (Words4)high, x.second);
}
inline Words8 splat_eight(const int8_t* from) { return {splat_inputs(from), splat_inputs(from + 4)}; }
#endif

}  // namespace warmstart
