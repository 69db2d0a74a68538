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
constexpr int kCodesAhead = 2048;  // bytes that are prefetched, as the processor does not foresee pieces of panels
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

// Up to 256 columns of a panel. Codes are [columns / 4][16][4] bytes, scales and minima [columns / group][16].
struct Unpacked {
    alignas(64) uint8_t own[kOuter * kLanes];
    alignas(64) float scales[kOuter / 16 * kLanes];
    alignas(64) float minima[kOuter / 16 * kLanes];  // what is added to a group's products with the sum of its activations
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

template <int Bits, bool Table = false>
inline void unpack_codes(const uint8_t* planes, int columns, uint8_t* out) {
    for (int k = 0; k < columns; k += kCodeStep, planes += Bits * 64, out += kCodeStep * kLanes) {
        for (int line = 0; line < Bits; line++) __builtin_prefetch(planes + kCodesAhead + line * 64, 0, 2);
        unpack_step<Bits, Table>(planes, out, std::make_integer_sequence<int, 8>{});
    }
}

// Sixteen bytes as floats.
template <class T>
inline Floats load_bytes(const uint8_t* from) {
    typedef T Sixteen __attribute__((vector_size(16)));
    Sixteen v;
    std::memcpy(&v, from, sizeof v);
#if defined(__AVX512F__)  // written out, because GCC 12 converts number by number
    const __m512i wide = (T)-1 < 0 ? _mm512_cvtepi8_epi32((__m128i)v) : _mm512_cvtepu8_epi32((__m128i)v);
    return (Floats)_mm512_cvtepi32_ps(wide);
#elif defined(__AVX2__)
    const auto wide = [](__m128i part) { return (T)-1 < 0 ? _mm256_cvtepi8_epi32(part) : _mm256_cvtepu8_epi32(part); };
    const __m256 parts[] = {_mm256_cvtepi32_ps(wide((__m128i)v)),
                            _mm256_cvtepi32_ps(wide(_mm_unpackhi_epi64((__m128i)v, (__m128i)v)))};
    Floats all;
    std::memcpy(&all, parts, sizeof all);
    return all;
#else
    return __builtin_convertvector(__builtin_convertvector(v, Ints), Floats);
#endif
}

inline void unpack_scales(const BlockFormat& f, const uint8_t* from, int columns, Unpacked& out) {
    if (!f.nested) {
        for (int g = 0; g < columns / kCodeStep; g++, from += scale_piece_bytes(f)) {
            store(out.scales + g * kLanes, load_half((const uint16_t*)from));
            if (f.minima) store(out.minima + g * kLanes, load_half((const uint16_t*)from + kLanes));
        }
        return;
    }
    const int groups = kOuter / f.group;
    const uint8_t* numbers = from + (f.minima ? 4 : 2) * kLanes;
    const Floats factor = load_half((const uint16_t*)from);
    for (int g = 0; g < groups; g++) store(out.scales + g * kLanes, load_bytes<int8_t>(numbers + g * kLanes) * factor);
    if (!f.minima) return;
    const Floats minus = -load_half((const uint16_t*)from + kLanes);
    numbers += groups * kLanes;
    for (int g = 0; g < groups; g++) store(out.minima + g * kLanes, load_bytes<uint8_t>(numbers + g * kLanes) * minus);
}

// Unpacks the columns of a panel from `first`, a multiple of 256, on: at most 256 of them. With `planes`, codes are left as
// they are stored.
inline void unpack(const BlockFormat& f, const uint8_t* panel, size_t all_columns, int first, int columns, Unpacked& out,
                   bool planes = false) {
    unpack_scales(f, panel + scale_bytes(f, first), columns, out);
    const uint8_t* codes = panel + scale_bytes(f, all_columns) + (size_t)first * kLanes * f.bits / 8;
    out.codes = planes ? codes : out.own;
    if (planes) return;
    switch (f.bits) {
        case 2: unpack_codes<2>(codes, columns, out.own); break;
        case 3: unpack_codes<3>(codes, columns, out.own); break;
        case 4:
            f.table ? unpack_codes<4, true>(codes, columns, out.own) : unpack_codes<4>(codes, columns, out.own);
            break;
        case 5: unpack_codes<5>(codes, columns, out.own); break;
        case 6: unpack_codes<6>(codes, columns, out.own); break;
        default: out.codes = codes;
    }
}

}  // namespace warmstart
