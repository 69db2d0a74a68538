// Formats of matrices that keep the quantization of a GGUF file; runtime/model/block_formats.py describes and packs them.
// Here a piece of a panel is unpacked to what all of them have in common: a byte for each code, and float scales.
#pragma once

#include <utility>

#include "layout.h"
#include "vec.h"

namespace warmstart {

struct BlockFormat {
    int bits;      // of a stored code
    int group;     // columns that share a scale
    int zero;      // code of the value zero, after unpacking
    bool minima;   // whether groups have minima
    bool nested;   // whether scales are integers times a factor of 256 columns
    bool table;    // whether a code is an index into kIq4Values
};

constexpr int kOuter = 256;  // columns that share a factor, and that are unpacked at a time
constexpr int kCodeStep = 32;  // columns whose codes are stored together

// By Kind, from kFirstBlock on.
constexpr BlockFormat kBlockFormats[] = {
    {4, 32, 8, false, false, false},   // kQ4_0
    {4, 32, 0, true, false, false},    // kQ4_1
    {5, 32, 16, false, false, false},  // kQ5_0
    {5, 32, 0, true, false, false},    // kQ5_1
    {8, 32, 128, false, false, false}, // kQ8_0
    {2, 16, 0, true, true, false},     // kQ2_K
    {3, 16, 4, false, true, false},    // kQ3_K
    {4, 32, 0, true, true, false},     // kQ4_K
    {5, 32, 0, true, true, false},     // kQ5_K
    {6, 16, 32, false, true, false},   // kQ6_K
    {4, 32, 128, false, false, true},  // kIq4Nl
    {4, 32, 128, false, true, true},   // kIq4Xs
};
static_assert(sizeof kBlockFormats / sizeof *kBlockFormats == kKinds - kFirstBlock);

inline bool is_block(int kind) { return kind >= kFirstBlock && kind < kKinds; }

inline const BlockFormat& format_of(int kind) { return kBlockFormats[kind - kFirstBlock]; }

// Number of which a matrix's columns must be a multiple.
inline int column_multiple(const BlockFormat& f) { return f.nested ? kOuter : kCodeStep; }

// Bytes of the scales of 256 columns in a nested format, of 32 in others.
inline size_t scale_piece_bytes(const BlockFormat& f) {
    return (f.minima ? 2 : 1) * kLanes * (f.nested ? 2 + kOuter / f.group : 2);
}

inline size_t scale_bytes(const BlockFormat& f, size_t columns) {
    return columns / column_multiple(f) * scale_piece_bytes(f);
}

inline size_t block_panel_bytes(const BlockFormat& f, size_t columns) {
    return scale_bytes(f, columns) + columns * kLanes * f.bits / 8;
}

// The lowest bits that a group's sum of products loses, rounded, so that it fits 16 bits: two of them are multiplied with
// the integer scales of their groups at once. What is lost is a hundredth of what the rounding of the activations changes.
constexpr int shift_of(const BlockFormat& f) {
    const int top = (1 << f.bits) - 1 - f.zero, code = f.table ? 127 : top > f.zero ? top : f.zero;
    int shift = 0;
    while (code * 127 * f.group >> shift > INT16_MAX) shift++;
    return shift;
}

// Up to 256 columns of a panel. Codes are [columns / 4][16][4] bytes.
struct Unpacked {
    alignas(64) uint8_t own[kOuter * kLanes];
    alignas(64) float scales[kOuter / kCodeStep * kLanes];  // [columns / 32][16] in simple formats
    alignas(64) int16_t scale_pairs[kOuter / 16 * kLanes];  // [columns / group / 2][16][2] in nested formats
    alignas(64) int16_t minimum_pairs[kOuter / 16 * kLanes];
    // The value of 1 in scale_pairs, for sums after shift_of, and in minimum_pairs.
    alignas(64) float factors[kLanes];
    alignas(64) float minimum_factors[kLanes];
    const uint8_t* codes;
    const uint8_t* ahead;  // codes that are read next
};

// A register of bytes of the instruction set.
constexpr int kPartBytes = 4 * kPartLanes;
typedef uint8_t Octets __attribute__((vector_size(kPartBytes)));
typedef uint16_t Pairs __attribute__((vector_size(kPartBytes)));

// The values of IQ4_NL's and IQ4_XS's codes plus 128.
alignas(16) constexpr uint8_t kIq4Values[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                129, 141, 153, 166, 181, 197, 217, 241};

inline Octets iq4_values(Octets codes) {
#if defined(__AVX512BW__)
    return (Octets)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)kIq4Values)), (__m512i)codes);
#elif defined(__AVX2__)
    return (Octets)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)kIq4Values)),
                                       (__m256i)codes);
#elif defined(__aarch64__)
    return (Octets)vqtbl1q_u8(vld1q_u8(kIq4Values), (uint8x16_t)codes);
#else
    Octets values = codes;
    for (int i = 0; i < kPartBytes; i++) values[i] = kIq4Values[codes[i]];
    return values;
#endif
}

inline Octets load_octets(const uint8_t* from) {
    Octets v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

// The bits of each byte from `from` on, `width` of them, moved to `to`.
template <int Width, int From, int To>
inline Octets moved(Octets bytes) {
    const Octets mask = Octets{} + (uint8_t)(((1 << Width) - 1) << To);  // what crosses a byte's border is masked
    if constexpr (From > To) return (Octets)((Pairs)bytes >> (From - To)) & mask;
    if constexpr (From < To) return (Octets)((Pairs)bytes << (To - From)) & mask;
    return bytes & mask;
}

// The codes at one register's place in four columns, number T of eight, from the planes of their bits.
template <int Bits, int T>
inline Octets code_bytes(const uint8_t* planes) {
    Octets codes{};
    if constexpr (Bits & 4) codes = moved<4, T % 2 * 4, 0>(load_octets(planes + T / 2 * 64));
    if constexpr (Bits & 2) codes |= moved<2, T % 4 * 2, (Bits & 4)>(load_octets(planes + ((Bits & 4) + T / 4) * 64));
    if constexpr (Bits & 1) codes |= moved<1, T, (Bits & 6)>(load_octets(planes + (Bits & 6) * 64));
    return codes;
}

template <int Bits, bool Table, int... T>
inline void unpack_step(const uint8_t* planes, uint8_t* out, std::integer_sequence<int, T...>) {
    for (int at = 0; at < 64; at += kPartBytes) {
        const auto put = [&](int t, Octets codes) {
            if (Table) codes = iq4_values(codes);
            std::memcpy(out + t * 64 + at, &codes, sizeof codes);
        };
        (put(T, code_bytes<Bits, T>(planes + at)), ...);
    }
}

// Unpacks the codes of some columns to bytes, and prefetches as many.
template <int Bits, bool Table>
inline void unpack_codes(const uint8_t* planes, int columns, const uint8_t* ahead, uint8_t* out) {
    for (int k = 0; k < columns; k += kCodeStep, planes += Bits * 64, ahead += Bits * 64, out += kCodeStep * kLanes) {
        for (int line = 0; line < Bits; line++) __builtin_prefetch(ahead + line * 64, 0, 2);
        unpack_step<Bits, Table>(planes, out, std::make_integer_sequence<int, 8>{});
    }
}

// Sixteen bytes as integers.
template <class T>
inline Ints load_bytes(const uint8_t* from) {
    typedef T Sixteen __attribute__((vector_size(16)));
    Sixteen v;
    std::memcpy(&v, from, sizeof v);
#if defined(__AVX512F__)  // written out, because GCC 12 converts number by number
    return (Ints)((T)-1 < 0 ? _mm512_cvtepi8_epi32((__m128i)v) : _mm512_cvtepu8_epi32((__m128i)v));
#elif defined(__AVX2__)
    const auto wide = [](__m128i part) { return (T)-1 < 0 ? _mm256_cvtepi8_epi32(part) : _mm256_cvtepu8_epi32(part); };
    const __m256i parts[] = {wide((__m128i)v), wide(_mm_unpackhi_epi64((__m128i)v, (__m128i)v))};
    Ints all;
    std::memcpy(&all, parts, sizeof all);
    return all;
#else
    return __builtin_convertvector(v, Ints);
#endif
}

typedef int32_t PartInts __attribute__((vector_size(4 * kPartLanes)));

inline PartInts to_integers(Part x) {
#if defined(__AVX512F__)
    return (PartInts)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
    return (PartInts)_mm256_cvtps_epi32((__m256)x);
#else
    return __builtin_convertvector((x + 12582912.0f) - 12582912.0f, PartInts);  // to nearest even, below 2^22
#endif
}

inline PartInts larger(PartInts a, PartInts b) {
#if defined(__AVX512F__)
    return (PartInts)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (PartInts)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    const PartInts first = a > b;
    return (a & first) | (b & ~first);
#endif
}

// Two integers of 16 bits for each row.
inline void store_pairs(Ints first, Ints second, int16_t* out) {
    const Ints pairs = (first & 0xffff) | (second << 16);
    std::memcpy(out, &pairs, sizeof pairs);
}

// The minima of up to 256 columns as integers of 13 bits and a sign, times the power of two that the largest magnitude of
// the row demands: exact where they differ by no more than four times, as float16 has 11 bits.
inline void unpack_minima(const BlockFormat& f, const uint8_t* from, int groups, Unpacked& out) {
    constexpr int kMost = 12;  // the largest magnitude's exponent
    alignas(64) float minima[(kOuter / kCodeStep + 1) * kLanes];
    for (int g = 0; g < groups; g++)
        store(minima + g * kLanes, load_half((const uint16_t*)(from + g * scale_piece_bytes(f)) + kLanes));
    store(minima + groups * kLanes, splat(0));
    for (int lane = 0; lane < kLanes; lane += kPartLanes) {
        const auto part = [&](int g) {
            Part v;
            std::memcpy(&v, minima + g * kLanes + lane, sizeof v);
            return v;
        };
        PartInts most = PartInts{} + ((127 - 24) << 23);  // the least magnitude of float16
        for (int g = 0; g < groups; g++) most = larger(most, (PartInts)part(g) & 0x7fffffff);
        const PartInts power = most & 0x7f800000;
        const Part inverse = (Part)((2 * 127 + kMost - (power >> 23)) << 23);
        const Part factor = (Part)(power - (kMost << 23)) + ((Part)most - (Part)most);  // no number if a minimum is none
        std::memcpy(out.minimum_factors + lane, &factor, sizeof factor);
        for (int g = 0; g < groups; g += 2) {
            const PartInts pairs = (to_integers(part(g) * inverse) & 0xffff) | (to_integers(part(g + 1) * inverse) << 16);
            std::memcpy(out.minimum_pairs + g * kLanes + 2 * lane, &pairs, sizeof pairs);
        }
    }
}

// A group's scale and minimum of one row, from the scales of up to 256 columns.
inline std::pair<float, float> scales_of(const BlockFormat& f, const uint8_t* from, int g, int lane) {
    const auto half = [&](int place) { return load_half((const uint16_t*)from + place * kLanes)[lane]; };
    if (!f.nested) {
        from += g * scale_piece_bytes(f);
        return {half(0), f.minima ? half(1) : 0};
    }
    const uint8_t* numbers = from + (f.minima ? 4 : 2) * kLanes;
    const float scale = (int8_t)numbers[g * kLanes + lane] * half(0);
    if (!f.minima) return {scale, 0};
    return {scale, -(numbers[(kOuter / f.group + g) * kLanes + lane] * half(1))};
}

inline void unpack_scales(const BlockFormat& f, const uint8_t* from, int columns, Unpacked& out) {
    if (!f.nested) {
        for (int g = 0; g < columns / kCodeStep; g++)
            store(out.scales + g * kLanes, load_half((const uint16_t*)(from + g * scale_piece_bytes(f))));
        if (f.minima) unpack_minima(f, from, columns / kCodeStep, out);
        return;
    }
    const int groups = kOuter / f.group;
    const uint8_t* numbers = from + (f.minima ? 4 : 2) * kLanes;
    store(out.factors, load_half((const uint16_t*)from) * (float)(1 << shift_of(f)));
    for (int g = 0; g < groups; g += 2, numbers += 2 * kLanes)
        store_pairs(load_bytes<int8_t>(numbers), load_bytes<int8_t>(numbers + kLanes), out.scale_pairs + g * kLanes);
    if (!f.minima) return;
    store(out.minimum_factors, -load_half((const uint16_t*)from + kLanes));
    for (int g = 0; g < groups; g += 2, numbers += 2 * kLanes)
        store_pairs(load_bytes<uint8_t>(numbers), load_bytes<uint8_t>(numbers + kLanes), out.minimum_pairs + g * kLanes);
}

// The codes of a panel's columns from `first` on.
inline const uint8_t* codes_of(const BlockFormat& f, const uint8_t* panel, size_t all_columns, int first) {
    return panel + scale_bytes(f, all_columns) + (size_t)first * kLanes * f.bits / 8;
}

// Unpacks the codes of up to 256 columns to bytes, where they are fewer bits, and prefetches out.ahead.
inline void unpack_codes(const BlockFormat& f, const uint8_t* codes, int columns, Unpacked& out) {
    out.codes = out.own;
    switch (f.bits) {
        case 2: return unpack_codes<2, false>(codes, columns, out.ahead, out.own);
        case 3: return unpack_codes<3, false>(codes, columns, out.ahead, out.own);
        case 4:
            if (f.table) return unpack_codes<4, true>(codes, columns, out.ahead, out.own);
            return unpack_codes<4, false>(codes, columns, out.ahead, out.own);
        case 5: return unpack_codes<5, false>(codes, columns, out.ahead, out.own);
        case 6: return unpack_codes<6, false>(codes, columns, out.ahead, out.own);
        default: out.codes = codes;
    }
}

}  // namespace warmstart
