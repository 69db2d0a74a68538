// Products of activations with packed weight panels (see pack.py for the layout).
//
// Every output is summed over the input in one order whatever the shape of the tile that computes it, so a row's result
// never depends on the rows beside it. With int8 weights the sum is of integers and exact.
#pragma once

#include <algorithm>

#include "block_formats.h"
#include "layout.h"
#include "vec.h"

namespace warmstart {

struct Matrix {
    const uint8_t* data = nullptr;
    const float* scales = nullptr;  // [rows / 16][groups][16], int8 only
    const float* bias = nullptr;    // [rows] or none
    int rows = 0;                   // outputs, padded to a multiple of 16
    int columns = 0;                // inputs, padded to a multiple of 16
    int kind = kFloat32;
    int first = 0, step = 1;        // in panels: where the outputs lie among those of a larger matrix

    size_t panel_bytes() const {
        if (is_block(kind)) return block_panel_bytes(format_of(kind), columns);
        return (size_t)kLanes * columns * (kind == kFloat32 ? 4 : kind == kInt8 ? 1 : 2);
    }
};

constexpr int kGroup = 64;  // columns that share a scale, of a token's activations and of a row's weights: see pack.py

// Activations of some tokens: float32, or int8 with one scale for each group of columns of a token.
struct Activations {
    const float* values = nullptr;     // [tokens, stride]
    const int8_t* quantized = nullptr; // [tokens, stride]
    const float* scales = nullptr;     // [tokens, groups]
    const uint32_t* offsets = nullptr; // [tokens, groups] minus 128 x the sum of a group: what unsigned weights add
    const int32_t* sums16 = nullptr;   // [tokens, stride / 16] sums of each 16 quantized values, for block formats
    const int32_t* sums32 = nullptr;   // [tokens, stride / 32] of each 32
    const int16_t* scaled16 = nullptr; // [tokens, scaled_stride] the same times their groups' scales, in `units`
    const int16_t* scaled32 = nullptr;
    const float* relative = nullptr;   // [tokens, groups] scales in units
    const float* units = nullptr;      // [tokens]
    int stride = 0;
    int groups = 0;
};

// Of Activations::scaled16 and scaled32: an even number, since they are read in pairs.
constexpr size_t scaled_stride(size_t columns, int group) { return (columns / group + 1) / 2 * 2; }

#if defined(__AVX512F__)
constexpr int kTileRows = 8, kTilePanels = 3;
#else
constexpr int kTileRows = 4, kTilePanels = 1;
#endif
constexpr int kSinglePanels = 4;  // side by side for one token, to hide the latency of the sums

#if defined(__AVX512VNNI__)
constexpr bool kUnsignedWeights = true;  // u8 x s8 leaves 128 x sum(activations) to take off
inline Ints dot(Ints acc, Ints weights, int32_t four) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)weights, _mm512_set1_epi32(four));
}
#else
constexpr bool kUnsignedWeights = false;
inline Ints dot(Ints acc, Ints weights, int32_t four) {
    const uint8_t* w = (const uint8_t*)&weights;
    const int8_t* a = (const int8_t*)&four;
    for (int i = 0; i < kLanes; i++)
        for (int j = 0; j < 4; j++) acc[i] += ((int)w[4 * i + j] - 128) * a[j];
    return acc;
}
#endif

template <class V>
inline V load_as(const uint8_t* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

// A panel's sums of one token, with the bias, to the token's outputs; or added to them, times `add`, if that is not 0.
inline void write(const Matrix& w, int panel, Floats sums, float* out, float add) {
    const int place = (w.first + panel * w.step) * kLanes;
    float* to = out + place;
    if (w.bias) sums += load(w.bias + place);
    store(to, add != 0 ? load(to) + sums * add : sums);
}

}  // namespace warmstart

#include "tile_amx.h"
#if defined(__ARM_FEATURE_DOTPROD)
#include "tile_neon.h"
#endif

namespace warmstart {

#if defined(__AVX2__) && !defined(__AVX512VNNI__)
constexpr bool kOwnInt8Tile = true;

// The sums of M tokens x P panels with int8 weights. A panel is two registers of eight rows here, written out because
// the compiler keeps vectors of 64 bytes in memory on this level.
template <int M, int P>
inline void tile_int8(const Activations& a, int token, const Matrix& w, int panel, Floats (&total)[M][P]) {
    const size_t panel_bytes = w.panel_bytes();
    const uint8_t* data = w.data + panel * panel_bytes;
    const int8_t* rows = a.quantized + (size_t)token * a.stride;
    const __m256i ones = _mm256_set1_epi16(1), zero = _mm256_set1_epi8((char)128);
    for (int g = 0; g < a.groups; g++) {
        __m256i acc[M][P][2];
        for (int m = 0; m < M; m++)
            for (int p = 0; p < P; p++) acc[m][p][0] = acc[m][p][1] = _mm256_setzero_si256();
        const int last = std::min((g + 1) * kGroup, w.columns);
        for (int k = g * kGroup; k < last; k += 4) {
            __m256i weights[P][2], magnitudes[P][2];
            for (int p = 0; p < P; p++)
                for (int half = 0; half < 2; half++) {
                    const uint8_t* from = data + p * panel_bytes + (size_t)k * kLanes + 32 * half;
                    weights[p][half] = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)from), zero);
                    magnitudes[p][half] = _mm256_abs_epi8(weights[p][half]);
                }
            for (int m = 0; m < M; m++) {
                int32_t four;
                std::memcpy(&four, rows + (size_t)m * a.stride + k, 4);
                const __m256i x = _mm256_set1_epi32(four);
                // |w| x (x with the sign of w): a pair of products fits 16 bits, as w is within +-128 and x within +-127.
                for (int p = 0; p < P; p++)
                    for (int half = 0; half < 2; half++) {
                        const __m256i signed_x = _mm256_sign_epi8(x, weights[p][half]);
                        const __m256i pairs = _mm256_maddubs_epi16(magnitudes[p][half], signed_x);
                        acc[m][p][half] = _mm256_add_epi32(acc[m][p][half], _mm256_madd_epi16(pairs, ones));
                        asm volatile("" : "+x"(acc[m][p][half]));  // token by token, or the registers do not suffice
                    }
            }
        }
        for (int p = 0; p < P; p++)
            for (int half = 0; half < 2; half++) {
                const __m256 scale =
                    _mm256_loadu_ps(w.scales + ((size_t)(panel + p) * a.groups + g) * kLanes + 8 * half);
                for (int m = 0; m < M; m++) {
                    const __m256 step = _mm256_set1_ps(a.scales[(size_t)(token + m) * a.groups + g]);
                    const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[m][p][half]), scale);
                    float* sum = (float*)&total[m][p] + 8 * half;
                    _mm256_storeu_ps(sum, _mm256_fmadd_ps(value, step, _mm256_loadu_ps(sum)));
                }
            }
        asm volatile("" : : "r"(total) : "memory");  // keeps the sums in memory, and so the registers for `acc`
    }
}
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr bool kOwnInt8Tile = true;
#else
constexpr bool kOwnInt8Tile = false;
template <int M, int P>
inline void tile_int8(const Activations&, int, const Matrix&, int, Floats (&)[M][P]) {}
#endif

// One tile: M tokens x P panels, written to out[token][panel * 16 ...], or added to it, times `add`, if that is not 0.
template <int M, int P, int K>
inline void tile(const Activations& a, int token, const Matrix& w, int panel, float* out, int stride, float add) {
    const size_t panel_bytes = w.panel_bytes();
    const uint8_t* data = w.data + panel * panel_bytes;
    Floats total[M][P] = {};
    if constexpr (K == kInt8 && kOwnInt8Tile) {
        tile_int8<M, P>(a, token, w, panel, total);
    } else if constexpr (K == kInt8) {
        const int8_t* rows = a.quantized + (size_t)token * a.stride;
        for (int g = 0; g < a.groups; g++) {
            Ints acc[M][P];
            for (int m = 0; m < M; m++) {
                const int32_t begin = kUnsignedWeights ? (int32_t)a.offsets[(size_t)(token + m) * a.groups + g] : 0;
                for (int p = 0; p < P; p++) acc[m][p] = Ints{} + begin;
            }
            const int last = std::min((g + 1) * kGroup, w.columns);
            for (int k = g * kGroup; k < last; k += 4) {
                Ints weights[P];
                for (int p = 0; p < P; p++) weights[p] = load_as<Ints>(data + p * panel_bytes + (size_t)k * kLanes);
                for (int m = 0; m < M; m++) {
                    int32_t four;
                    std::memcpy(&four, rows + (size_t)m * a.stride + k, 4);
                    for (int p = 0; p < P; p++) acc[m][p] = dot(acc[m][p], weights[p], four);
                }
            }
            for (int p = 0; p < P; p++) {
                const Floats scale = load(w.scales + ((size_t)(panel + p) * a.groups + g) * kLanes);
                for (int m = 0; m < M; m++)
                    total[m][p] += __builtin_convertvector(acc[m][p], Floats) * scale *
                                   a.scales[(size_t)(token + m) * a.groups + g];
            }
        }
    } else if constexpr (K == kBfloat16) {
        const float* rows = a.values + (size_t)token * a.stride;
        for (int k = 0; k < w.columns; k += 2) {
            Floats even[P], odd[P];
            for (int p = 0; p < P; p++) {
                const Words words = load_as<Words>(data + p * panel_bytes + (size_t)k * 2 * kLanes);
                even[p] = even_bfloat(words);
                odd[p] = odd_bfloat(words);
            }
            for (int m = 0; m < M; m++) {
                const float x = rows[(size_t)m * a.stride + k], y = rows[(size_t)m * a.stride + k + 1];
                for (int p = 0; p < P; p++) {
                    total[m][p] += even[p] * x;
                    total[m][p] += odd[p] * y;
                }
            }
        }
    } else {
        const float* rows = a.values + (size_t)token * a.stride;
        for (int k = 0; k < w.columns; k++) {
            Floats weights[P];
            for (int p = 0; p < P; p++)
                if constexpr (K == kFloat16)
                    weights[p] = load_half((const uint16_t*)(data + p * panel_bytes) + (size_t)k * kLanes);
                else
                    weights[p] = load_as<Floats>(data + p * panel_bytes + (size_t)k * 4 * kLanes);
            for (int m = 0; m < M; m++) {
                const float x = rows[(size_t)m * a.stride + k];
                for (int p = 0; p < P; p++) total[m][p] += weights[p] * x;
            }
        }
    }
    for (int m = 0; m < M; m++)
        for (int p = 0; p < P; p++) write(w, panel + p, total[m][p], out + (size_t)(token + m) * stride, add);
}

// All tokens x P panels: the panels stay in the nearest cache while the tokens pass.
template <int P, int K>
inline void panels(const Activations& a, int first, int last, const Matrix& w, int panel, float* out, int stride,
                   float add) {
    int token = first;
    if constexpr (K != kInt8)  // whose integer and float sums of four tokens fill the registers
        for (; token + kTileRows <= last; token += kTileRows)
            tile<kTileRows, P, K>(a, token, w, panel, out, stride, add);
    if constexpr (kTileRows > 4 || K == kInt8)
        for (; token + 4 <= last; token += 4) tile<4, P, K>(a, token, w, panel, out, stride, add);
    for (; token + 2 <= last; token += 2) tile<2, P, K>(a, token, w, panel, out, stride, add);
    for (; token < last; token++) tile<1, P, K>(a, token, w, panel, out, stride, add);
}

// Quantize one token's activations in groups: each to -127 ... 127 steps of its largest magnitude / 127. Columns are a
// multiple of 16.
inline void quantize(const float* x, int columns, int8_t* out, float* scales, uint32_t* offsets) {
    typedef int8_t Bytes __attribute__((vector_size(16)));
    for (int g = 0, k = 0; k < columns; g++) {
        const int last = std::min(k + kGroup, columns);
        Floats most = {};
        for (int i = k; i < last; i += kLanes) {
            const Floats v = load(x + i);
            most = maximum(most, maximum(v, -v));
        }
        const float scale = std::max(largest_lane(most) / 127.0f, 1.17549435e-38f);
        const float inverse = 1.0f / scale;
        Words total = {};  // unsigned, since values that are not numbers have steps of any size, whose sum may overflow
        for (int i = k; i < last; i += kLanes) {
            const Ints q = __builtin_convertvector(round_even(load(x + i) * inverse), Ints);
            total += (Words)q;
            const Bytes bytes = __builtin_convertvector(q, Bytes);
            std::memcpy(out + i, &bytes, sizeof bytes);
        }
        scales[g] = scale;
        offsets[g] = -(128 * sum(total));
        k = last;
    }
}

}  // namespace warmstart
