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

// The sums of a group's products for 16 rows, of codes [columns / 4][16][4] with the same four activations in every row.
// `Bits` is 4 for codes up to 15, 6 up to 63, 8 up to 255. The sums begin at `begin`.
#if defined(__AVX512VNNI__)

constexpr bool kWideIsSigned = false;
constexpr int kGroupStep = 4;  // columns that are added at a time

template <int Bits>
struct GroupSums {
    __m512i lanes;

    struct Codes {
        __m512i bytes;
        void load(const uint8_t* from) { bytes = _mm512_loadu_si512(from); }
    };
    struct Inputs {
        __m512i four;
        void load(const int8_t* from) {
            int32_t word;
            std::memcpy(&word, from, 4);
            four = _mm512_set1_epi32(word);
        }
    };
    void start(int32_t begin) { lanes = _mm512_set1_epi32(begin); }
    void add(const Codes& codes, const Inputs& x) { lanes = _mm512_dpbusd_epi32(lanes, codes.bytes, x.four); }
    Part floats(int, int32_t) const { return (Part)_mm512_cvtepi32_ps(lanes); }
};

#elif defined(__AVX2__)

constexpr bool kWideIsSigned = true;  // 128 is subtracted from wide codes before they are multiplied
constexpr int kGroupStep = 8;

// The sums of pairs of products fit 16 bits: of codes up to 15 for 32 columns, of codes up to 63 for 8.
template <int Bits>
struct GroupSums {
    __m256i lanes[2];

    struct Codes {
        __m256i bytes[4];
        void load(const uint8_t* from) {
            for (int i = 0; i < 4; i++) {
                bytes[i] = _mm256_loadu_si256((const __m256i*)from + i);
                if (Bits == 8) bytes[i] = _mm256_xor_si256(bytes[i], _mm256_set1_epi8((char)128));
            }
        }
    };
    struct Inputs {
        __m256i four[2];
        void load(const int8_t* from) {
            for (int i = 0; i < 2; i++) {
                int32_t word;
                std::memcpy(&word, from + 4 * i, 4);
                four[i] = _mm256_set1_epi32(word);
            }
        }
    };
    void start(int32_t) { lanes[0] = lanes[1] = _mm256_setzero_si256(); }
    void add(const Codes& codes, const Inputs& x) {
        const __m256i ones = _mm256_set1_epi16(1);
        for (int i = 0; i < 2; i++) {
            if (Bits == 8) {
                for (int j = 0; j < 2; j++) {
                    const __m256i part = _mm256_sign_epi8(codes.bytes[2 * j + i], x.four[j]);
                    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x.four[j]), part);
                    lanes[i] = _mm256_add_epi32(lanes[i], _mm256_madd_epi16(pairs, ones));
                }
                continue;
            }
            const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(codes.bytes[i], x.four[0]),
                                                   _mm256_maddubs_epi16(codes.bytes[2 + i], x.four[1]));
            lanes[i] = Bits == 4 ? _mm256_add_epi16(lanes[i], pairs)
                                 : _mm256_add_epi32(lanes[i], _mm256_madd_epi16(pairs, ones));
        }
    }
    Part floats(int part, int32_t begin) const {
        const __m256i sums = Bits == 4 ? _mm256_madd_epi16(lanes[part], _mm256_set1_epi16(1)) : lanes[part];
        return (Part)_mm256_cvtepi32_ps(_mm256_add_epi32(sums, _mm256_set1_epi32(begin)));
    }
};

#else

constexpr bool kWideIsSigned = true;
constexpr int kGroupStep = 4;
typedef int32_t PartInts __attribute__((vector_size(16)));

template <int Bits>
struct GroupSums {
    PartInts lanes[4];

    struct Codes {
#if defined(__ARM_FEATURE_DOTPROD)
        int8x16_t bytes[4];
        void load(const uint8_t* from) {
            for (int i = 0; i < 4; i++)
                bytes[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(from + 16 * i), vdupq_n_u8(Bits == 8 ? 128 : 0)));
        }
#else
        const uint8_t* bytes;
        void load(const uint8_t* from) { bytes = from; }
#endif
    };
    struct Inputs {
        int8_t four[4];
        void load(const int8_t* from) { std::memcpy(four, from, 4); }
    };
    void start(int32_t begin) {
        for (PartInts& part : lanes) part = PartInts{} + begin;
    }
    void add(const Codes& codes, const Inputs& x) {
#if defined(__ARM_FEATURE_DOTPROD)
        int32_t word;
        std::memcpy(&word, x.four, 4);
        for (int i = 0; i < 4; i++)
            lanes[i] = (PartInts)vdotq_s32((int32x4_t)lanes[i], codes.bytes[i], vreinterpretq_s8_s32(vdupq_n_s32(word)));
#else
        constexpr int zero = Bits == 8 ? 128 : 0;
        for (int i = 0; i < kLanes; i++)
            for (int j = 0; j < 4; j++) lanes[i / 4][i % 4] += ((int)codes.bytes[4 * i + j] - zero) * x.four[j];
#endif
    }
    Part floats(int part, int32_t) const { return __builtin_convertvector(lanes[part], Part); }
};

#endif

// Adds the products of M tokens with some columns of P panels, from `first` on, to totals [tokens][P][16].
template <int M, int P, int Group, int Bits, bool Minima>
inline void tile_blocks(const Activations& a, int token, int first, int columns, int zero, const Unpacked* w,
                        float* totals) {
    if (Bits == 8 && kWideIsSigned) zero = 0;
    const int all_columns = a.stride;
    const int32_t* sums = (Group == 16 ? a.sums16 : a.sums32) + (size_t)token * (all_columns / Group) + first / Group;
    const int8_t* rows = a.quantized + (size_t)token * all_columns + first;
    const float* steps = a.scales + (size_t)token * a.groups;
    for (int g = 0; g < columns / Group; g++) {
        GroupSums<Bits> acc[M][P];
        for (int m = 0; m < M; m++)
            for (int p = 0; p < P; p++) acc[m][p].start(-zero * sums[(size_t)m * (all_columns / Group) + g]);
        for (int k = g * Group; k < (g + 1) * Group; k += kGroupStep) {
            typename GroupSums<Bits>::Codes codes[P];
            for (int p = 0; p < P; p++) codes[p].load(w[p].codes + (size_t)k * kLanes);
            for (int m = 0; m < M; m++) {
                typename GroupSums<Bits>::Inputs x;
                x.load(rows + (size_t)m * all_columns + k);
                for (int p = 0; p < P; p++) acc[m][p].add(codes[p], x);
            }
        }
        const int step = (first + g * Group) / kGroup;
        for (int p = 0; p < P; p++)
            for (int i = 0; i < kParts; i++) {
                const int at = g * kLanes + i * kPartLanes;
                const Part scale = load_part(w[p].scales + at);
                for (int m = 0; m < M; m++) {
                    const int32_t sum = sums[(size_t)m * (all_columns / Group) + g];
                    Part value = acc[m][p].floats(i, -zero * sum) * scale;
                    if (Minima) value = multiply_add(load_part(w[p].minima + at), Part{} + (float)sum, value);
                    float* total = totals + ((size_t)m * P + p) * kLanes + i * kPartLanes;
                    value = multiply_add(value, Part{} + steps[(size_t)m * a.groups + step], load_part(total));
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
        if constexpr (P <= kTilePanels) {
            for (; token + kTileRows <= end; token += kTileRows)
                tile_blocks<kTileRows, P, Group, Bits, Minima>(a, token, first, columns, f.zero, unpacked, to());
            for (; token + 2 <= end; token += 2)
                tile_blocks<2, P, Group, Bits, Minima>(a, token, first, columns, f.zero, unpacked, to());
        }
        for (; token < end; token++)
            tile_blocks<1, P, Group, Bits, Minima>(a, token, first, columns, f.zero, unpacked, to());
    }
    for (int token = begin; token < end; token++)
        for (int p = 0; p < P; p++) {
            const int place = (w.first + (panel + p) * w.step) * kLanes;
            float* to = out + (size_t)token * stride + place;
            Floats value = load(totals + ((size_t)(token - begin) * P + p) * kLanes);
            if (w.bias) value += load(w.bias + place);
            store(to, add != 0 ? load(to) + value * add : value);
        }
}

template <int P>
inline void panels_blocks(const Activations& a, int begin, int end, const Matrix& w, int panel, float* out, int stride,
                          float add) {
    switch (w.kind) {
        case kQ2_K: return panels_blocks<P, 16, 4, true>(a, begin, end, w, panel, out, stride, add);
        case kQ3_K: return panels_blocks<P, 16, 4, false>(a, begin, end, w, panel, out, stride, add);
        case kQ4_0: return panels_blocks<P, 32, 4, false>(a, begin, end, w, panel, out, stride, add);
        case kQ4_1:
        case kQ4_K: return panels_blocks<P, 32, 4, true>(a, begin, end, w, panel, out, stride, add);
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
