// Products of activations with matrices in the formats of block_formats.h.
//
// For a few panels, 256 columns are unpacked at a time, and all tokens pass over them while they are in the nearest
// cache. A group's products are summed in integers; then, for each group in order,
// total += (sum x scale + sum of the activations x minimum) x scale of the activations. The operations on a row and a
// token are the same in tiles of all shapes, and multiply_add leaves nothing to the compiler, so that a row's result never
// depends on the rows beside it.
#pragma once

#include "block_formats.h"
#include "gemm.h"
#include "int8_dot.h"

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
typedef Ints Register;
typedef Ints Words4;  // kGroupStep bytes for each row
constexpr bool kWideIsSigned = false;
constexpr int kGroupStep = 4;

template <int Bits>
inline Words4 load_codes(const uint8_t* from) { return load_as<Ints>(from); }
inline Words4 splat_inputs(const int8_t* from) { return (Ints)_mm512_set1_epi32(load_word(from)); }

template <int Bits>
inline Register add_products(Register sums, Words4 codes, Words4 x) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, (__m512i)x);
}

template <int Bits>
inline Register begin_sums(int32_t begin) { return (Ints)_mm512_set1_epi32(begin); }
template <int Bits>
inline Part end_sums(Register sums, int32_t) { return (Part)_mm512_cvtepi32_ps((__m512i)sums); }

#elif defined(__AVX2__)

constexpr int kFewBits = 4;
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
inline Part end_sums(Register sums, int32_t begin) {
    if (Bits == 4) sums = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
    return (Part)_mm256_cvtepi32_ps(_mm256_add_epi32(sums, _mm256_set1_epi32(begin)));
}

#else

constexpr int kFewBits = 6;
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
inline Part end_sums(Register sums, int32_t) { return __builtin_convertvector(sums, Part); }

#endif

// Adds the products of M tokens with some columns of P panels, from `first` on, to totals [tokens][P][16].
template <int M, int P, int Group, int Bits, bool Minima>
inline void tile_blocks(const Activations& a, int token, int first, int columns, int zero, const Unpacked* w,
                        float* totals) {
    constexpr int kRegisters = P * kParts;
    if (Bits == 8 && kWideIsSigned) zero = 0;
    const size_t stride = a.stride, sum_stride = stride / Group;
    const int32_t* sums = (Group == 16 ? a.sums16 : a.sums32) + token * sum_stride + first / Group;
    const int8_t* rows = a.quantized + token * stride + first;
    const float* steps = a.scales + (size_t)token * a.groups;
    for (int g = 0; g < columns / Group; g++) {
        Register acc[M][kRegisters];
        for (int m = 0; m < M; m++) {
            const Register begin = begin_sums<Bits>(-zero * sums[m * sum_stride + g]);
            for (int n = 0; n < kRegisters; n++) acc[m][n] = begin;
        }
        for (int k = g * Group; k < (g + 1) * Group; k += kGroupStep) {
            Words4 codes[kRegisters];
            for (int n = 0; n < kRegisters; n++)
                codes[n] = load_codes<Bits>(w[n / kParts].codes + (size_t)k * kLanes + n % kParts * kPartBytes);
            for (int m = 0; m < M; m++) {
                const Words4 x = splat_inputs(rows + m * stride + k);
                for (int n = 0; n < kRegisters; n++) acc[m][n] = add_products<Bits>(acc[m][n], codes[n], x);
            }
        }
        // Stored before they are scaled, or the compiler stores them with every step.
        alignas(64) Register group_sums[M][kRegisters];
        for (int m = 0; m < M; m++)
            for (int n = 0; n < kRegisters; n++) group_sums[m][n] = acc[m][n];
        asm volatile("" : : "r"(group_sums) : "memory");
        const int step = (first + g * Group) / kGroup;
        for (int n = 0; n < kRegisters; n++) {
            const int at = g * kLanes + n % kParts * kPartLanes;
            const Part scale = load_part(w[n / kParts].scales + at);
            for (int m = 0; m < M; m++) {
                const int32_t sum = sums[m * sum_stride + g];
                Part value = end_sums<Bits>(group_sums[m][n], -zero * sum) * scale;
                if (Minima) value = multiply_add(load_part(w[n / kParts].minima + at), splat_part(sum), value);
                float* total = totals + m * P * kLanes + n * kPartLanes;
                value = multiply_add(value, splat_part(steps[(size_t)m * a.groups + step]), load_part(total));
                std::memcpy(total, &value, sizeof value);
            }
        }
    }
}

constexpr int kBlockTokensAtOnce = 128;  // tokens that pass over unpacked columns

// The products of some tokens with P panels of a part, from `panel` on.
template <int P, int Group, int Bits, bool Minima>
void panels_blocks(const Activations& a, int begin, int end, const Matrix& w, int panel, float* out, int stride, float add) {
    const BlockFormat& f = format_of(w.kind);
    alignas(64) float totals[(P > kTilePanels ? 1 : kBlockTokensAtOnce) * P * kLanes];
    Unpacked unpacked[P];
    std::memset(totals, 0, sizeof(float) * (end - begin) * P * kLanes);
    for (int first = 0; first < w.columns; first += kOuter) {
        const int columns = std::min(kOuter, w.columns - first);
        for (int p = 0; p < P; p++)
            unpack(f, w.data + (panel + p) * w.panel_bytes(), w.columns, first, columns, unpacked[p]);
        int token = begin;
        const auto to = [&] { return totals + (size_t)(token - begin) * P * kLanes; };
        if constexpr (P == kTilePanels)  // few panels are left over, so they have no large tiles
            for (; token + kTileRows <= end; token += kTileRows)
                tile_blocks<kTileRows, P, Group, Bits, Minima>(a, token, first, columns, f.zero, unpacked, to());
        if constexpr (P <= kTilePanels)
            for (; token + 2 <= end; token += 2)
                tile_blocks<2, P, Group, Bits, Minima>(a, token, first, columns, f.zero, unpacked, to());
        for (; token < end; token++)
            tile_blocks<1, P, Group, Bits, Minima>(a, token, first, columns, f.zero, unpacked, to());
    }
    for (int token = begin; token < end; token++)
        for (int p = 0; p < P; p++)
            write(w, panel + p, load(totals + ((size_t)(token - begin) * P + p) * kLanes), out + (size_t)token * stride, add);
}

template <int P>
inline void panels_blocks(const Activations& a, int begin, int end, const Matrix& w, int panel, float* out, int stride,
                          float add) {
    switch (w.kind) {
        case kQ2_K: return panels_blocks<P, 16, kFewBits, true>(a, begin, end, w, panel, out, stride, add);
        case kQ3_K: return panels_blocks<P, 16, kFewBits, false>(a, begin, end, w, panel, out, stride, add);
        case kQ4_0: return panels_blocks<P, 32, kFewBits, false>(a, begin, end, w, panel, out, stride, add);
        case kQ4_1:
        case kQ4_K: return panels_blocks<P, 32, kFewBits, true>(a, begin, end, w, panel, out, stride, add);
        case kQ5_0: return panels_blocks<P, 32, 6, false>(a, begin, end, w, panel, out, stride, add);
        case kQ5_1:
        case kQ5_K: return panels_blocks<P, 32, 6, true>(a, begin, end, w, panel, out, stride, add);
        case kQ6_K: return panels_blocks<P, 16, 6, false>(a, begin, end, w, panel, out, stride, add);
        default: return panels_blocks<P, 32, 8, false>(a, begin, end, w, panel, out, stride, add);
    }
}

// As `multiply`, for the parts of a matrix: those in block formats in one loop of the threads.
inline void multiply_parts(Pool& pool, const Activations& a, int tokens, const Matrix* parts, int count, float* out,
                           int stride, float add = 0) {
    const int wide = tokens == 1 ? kSinglePanels : kTilePanels;
    const int blocks = (tokens + kBlockTokensAtOnce - 1) / kBlockTokensAtOnce;
    int starts[kMaxParts + 1] = {0};  // number of the first task of each part
    for (int i = 0; i < count; i++) {
        if (!is_block(parts[i].kind)) multiply(pool, a, tokens, parts[i], out, stride, add);
        const int panels = is_block(parts[i].kind) ? parts[i].rows / kLanes : 0;
        starts[i + 1] = starts[i] + (panels + wide - 1) / wide;
    }
    const int groups = starts[count], tasks = groups * blocks;
    const int grain = tokens >= 32 ? 1 : std::max(1, tasks / (pool.threads() * 4));
    pool.run(tasks, grain, [&](int first, int last, int) {
        for (int task = first; task < last; task++) {
            const int begin = task / groups * kBlockTokensAtOnce, end = std::min(begin + kBlockTokensAtOnce, tokens);
            int part = 0;
            while (task % groups >= starts[part + 1]) part++;
            const Matrix& w = parts[part];
            int panel = (task % groups - starts[part]) * wide;
            if (panel + wide > w.rows / kLanes)
                for (; panel < w.rows / kLanes; panel++) panels_blocks<1>(a, begin, end, w, panel, out, stride, add);
            else if (tokens == 1)
                panels_blocks<kSinglePanels>(a, begin, end, w, panel, out, stride, add);
            else
                panels_blocks<kTilePanels>(a, begin, end, w, panel, out, stride, add);
        }
    });
}

// The values of a row of a matrix, for an embedding.
inline void unpack_row(const Matrix& w, int row, float* out) {
    const BlockFormat& f = format_of(w.kind);
    const int lane = row % kLanes;
    Unpacked u;
    for (int first = 0; first < w.columns; first += kOuter) {
        const int columns = std::min(kOuter, w.columns - first);
        unpack(f, w.data + row / kLanes * w.panel_bytes(), w.columns, first, columns, u);
        for (int k = 0; k < columns; k++) {
            const int at = k / f.group * kLanes + lane, code = u.codes[(size_t)(k / 4) * 64 + lane * 4 + k % 4] - f.zero;
            out[first + k] = code * u.scales[at] + (f.minima ? u.minima[at] : 0);
        }
    }
}

// The sums of each 16 and each 32 of a token's quantized activations; columns are a multiple of 16.
inline void sum_groups(const int8_t* quantized, int columns, int32_t* sums16, int32_t* sums32) {
    for (int g = 0; g < columns / 16; g++) {
        int32_t sum = 0;
        for (int i = 0; i < 16; i++) sum += quantized[16 * g + i];
        sums16[g] = sum;
    }
    for (int g = 0; g < columns / 32; g++) sums32[g] = sums16[2 * g] + sums16[2 * g + 1];
}

}  // namespace warmstart
