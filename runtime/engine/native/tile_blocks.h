// Products of activations with matrices in the formats of block_formats.h.
//
// All tokens pass over 256 columns of a few panels while those are in the nearest cache. Codes of 4 bits are taken apart
// with every tile, in registers, and so are those of 5 and 6 bits for few tokens; others are unpacked to bytes before.
//
// A group's products are summed in integers. In nested formats these are multiplied with the integer scales of the groups
// and summed again, for each 64 columns, which share a scale of the activations; the factors come behind 256 columns. In
// simple formats they are multiplied with floats. Minima are multiplied with the sums of the activations of each group,
// which sum_groups has as integers for a whole token. Operations on a row and a token are the same in tiles of all
// shapes, and multiply_add leaves nothing to the compiler, so that a row's result never depends on the rows beside it.
#pragma once

#include <climits>

#include "block_dot.h"
#include "block_formats.h"
#include "gemm.h"

namespace warmstart {

// Adds the products of M tokens with pairs of four columns, whose codes have `Stored` bits in the planes of 32 columns
// from `first` on; `From` is the first pair's first number of eight.
template <int From, int Stored, int Bits, int M, int P, int... Pair>
inline void add_stored(Register (&acc)[M][P * kParts], const Unpacked* w, int first, const int8_t* inputs, size_t stride,
                       std::integer_sequence<int, Pair...>) {
    const auto add = [&](auto number) {
        constexpr int kPair = decltype(number)::value;
        Octets low[P * kParts], high[P * kParts];
        for (int n = 0; n < P * kParts; n++) {
            const uint8_t* planes = w[n / kParts].codes + (size_t)first * 2 * Stored + n % kParts * kPartBytes;
            low[n] = code_bytes<Stored, From + 2 * kPair>(planes);
            high[n] = code_bytes<Stored, From + 2 * kPair + 1>(planes);
        }
        for (int m = 0; m < M; m++) {
            const Words8 x = splat_eight(inputs + m * stride + 8 * kPair);
            for (int n = 0; n < P * kParts; n++) acc[m][n] = add_eight<Bits>(acc[m][n], low[n], high[n], x);
        }
    };
    (add(std::integral_constant<int, Pair>{}), ...);
}

// Whether eight tokens x one panel are faster than four x two, as codes are then taken apart half as often: measured.
constexpr bool is_tall(const BlockFormat& f) { return kManyRegisters && f.nested && f.bits == 5; }

// How the tiles compute the kind K. With `Bytes`, all codes are unpacked to bytes before.
template <int K, bool Bytes>
struct Rule {
    static constexpr BlockFormat kFormat = kBlockFormats[K - kFirstBlock];
    static constexpr int kGroup = kFormat.group;
    static constexpr int kBits = kFormat.table || kFormat.bits == 8 ? 8 : kFormat.bits <= 4 ? kFewBits : 6;
    static constexpr bool kPlanes = !Bytes && kFormat.bits >= 4 && kFormat.bits < 8 && !kFormat.table;
    static constexpr bool kPrefetches = kPlanes || kFormat.bits == 8;
    static constexpr int kShift = kFormat.nested ? shift_of(kFormat) : 0;
    // What is subtracted from the codes.
    static constexpr int kZero = kFormat.minima || (kBits == 8 && kWideIsSigned) ? 0 : kFormat.zero;
    // Rounds what is shifted: a half up in every second group, and down in the others, so that errors do not add up.
    static constexpr int half(int group) { return kShift ? (1 << kShift) / 2 - group % 2 : 0; }
    static constexpr int kGroups = kOuter / kGroup;
    static constexpr bool kTall = is_tall(kFormat);
};

// The sums of the products of M tokens with group g of P panels, which begin at `begins` [M][groups].
template <class R, int M, int P, bool Ahead>
[[gnu::always_inline]] inline void add_group(const Unpacked* w, int g, const int8_t* rows, size_t stride,
                                             const int32_t* begins, Register (&out)[M][P * kParts]) {
    constexpr int kRegisters = P * kParts, kBits = R::kFormat.bits;
    Register acc[M][kRegisters];
    for (int m = 0; m < M; m++) {
        const Register start = begin_sums<R::kBits>(R::kZero ? begins[m * R::kGroups + g] : R::half(g));
        for (int n = 0; n < kRegisters; n++) acc[m][n] = start;
    }
    if constexpr (Ahead)
        for (int p = 0; p < P; p++)
            for (int line = 0; line < R::kGroup * kBits / 32; line++)
                __builtin_prefetch(w[p].ahead + g * R::kGroup * 2 * kBits + line * 64, 0, 2);
    if constexpr (R::kPlanes) {
        const int8_t* inputs = rows + g * R::kGroup;
        const auto pairs = std::make_integer_sequence<int, R::kGroup / 8>{};
        if (R::kGroup == 32 || g % 2 == 0)
            add_stored<0, kBits, R::kBits, M, P>(acc, w, g * R::kGroup, inputs, stride, pairs);
        else
            add_stored<4, kBits, R::kBits, M, P>(acc, w, (g - 1) * R::kGroup, inputs, stride, pairs);
    } else {
#pragma GCC unroll 8
        for (int i = 0; i < R::kGroup; i += kGroupStep) {
            const int k = g * R::kGroup + i;
            Words4 codes[kRegisters];
            for (int n = 0; n < kRegisters; n++)
                codes[n] = load_codes<R::kBits>(w[n / kParts].codes + (size_t)k * kLanes + n % kParts * kPartBytes);
            for (int m = 0; m < M; m++) {
                const Words4 x = splat_inputs(rows + m * stride + k);
                for (int n = 0; n < kRegisters; n++) acc[m][n] = add_products<R::kBits>(acc[m][n], codes[n], x);
            }
        }
    }
    std::memcpy(out, acc, sizeof out);
}

// Adds the products of M tokens with some columns of P panels, from `first` on, to totals [tokens][P][16], in the tokens'
// units. With `Ahead`, what is next is prefetched.
template <int M, int P, int K, bool Bytes, bool Ahead>
inline void tile_blocks(const Activations& a, int token, int first, int columns, const Unpacked* w, float* totals) {
    using R = Rule<K, Bytes>;
    constexpr int kRegisters = P * kParts, kGroups = kGroup / R::kGroup;  // of one step of the activations
    const size_t stride = a.stride, sum_stride = stride / R::kGroup;
    const int32_t* sums = (R::kGroup == 16 ? a.sums16 : a.sums32) + token * sum_stride + first / R::kGroup;
    const int8_t* rows = a.quantized + token * stride + first;
    const float* steps = a.relative + (size_t)token * a.groups + first / kGroup;
    alignas(64) int32_t begins[M * R::kGroups];
    if constexpr (R::kZero)
        for (int m = 0; m < M; m++)
            for (int g = 0; g < columns / R::kGroup; g++)
                begins[m * R::kGroups + g] = R::half(g) - R::kZero * sums[m * sum_stride + g];
    const auto offset = [&](int m, int g) { return R::kZero ? begins[m * R::kGroups + g] : R::half(g); };
    Part values[M][kRegisters] = {};
    for (int s = 0; s * kGroup < columns; s++) {
        if constexpr (R::kFormat.nested) {
            Register whole[M][kRegisters] = {};
            for (int pair = 0; pair < kGroups / 2; pair++) {
                const int g = s * kGroups + 2 * pair;
                alignas(64) Register first[M][kRegisters];
                add_group<R, M, P, Ahead>(w, g, rows, stride, begins, first);
                if (!kManyRegisters) asm volatile("" : : "r"(first) : "memory");
                Register second[M][kRegisters];
                add_group<R, M, P, Ahead>(w, g + 1, rows, stride, begins, second);
                if (!kManyRegisters) asm volatile("" : : "r"(second) : "memory");
                for (int n = 0; n < kRegisters; n++) {
                    const int place = g * kLanes + n % kParts * kPartLanes * 2;
                    const Register scale = load_register(w[n / kParts].scale_pairs + place);
                    for (int m = 0; m < M; m++) {
                        const Register even = end_sums<R::kBits>(first[m][n], offset(m, g));
                        const Register odd = end_sums<R::kBits>(second[m][n], offset(m, g + 1));
                        whole[m][n] = add_scaled<R::kShift>(whole[m][n], even, odd, scale);
                    }
                }
            }
            for (int m = 0; m < M; m++)
                for (int n = 0; n < kRegisters; n++) {
                    const Part step = splat_part(steps[(size_t)m * a.groups + s]);
                    values[m][n] = multiply_add(to_floats(whole[m][n]), step, values[m][n]);
                }
        } else {
            Part part[M][kRegisters] = {};
            for (int g = s * kGroups; g < (s + 1) * kGroups && g * R::kGroup < columns; g++) {
                Register sum[M][kRegisters];
                add_group<R, M, P, Ahead>(w, g, rows, stride, begins, sum);
                if (!kManyRegisters) asm volatile("" : : "r"(sum) : "memory");
                for (int n = 0; n < kRegisters; n++) {
                    const Part scale = load_part(w[n / kParts].scales + (g * kLanes + n % kParts * kPartLanes));
                    for (int m = 0; m < M; m++) {
                        const Register whole = end_sums<R::kBits>(sum[m][n], offset(m, g));
                        part[m][n] = multiply_add(to_floats(whole), scale, part[m][n]);
                    }
                }
            }
            for (int m = 0; m < M; m++)
                for (int n = 0; n < kRegisters; n++)
                    values[m][n] = multiply_add(part[m][n], splat_part(steps[(size_t)m * a.groups + s]), values[m][n]);
        }
    }
    Register minima[M][kRegisters] = {};
    if constexpr (R::kFormat.minima) {
        const size_t pair_stride = scaled_stride(stride, R::kGroup);
        const int16_t* scaled = (R::kGroup == 16 ? a.scaled16 : a.scaled32) + token * pair_stride + first / R::kGroup;
        for (int g = 0; g * R::kGroup < columns; g += 2)
            for (int m = 0; m < M; m++) {
                const Register x = splat_word(load_word(scaled + m * pair_stride + g));
                for (int n = 0; n < kRegisters; n++) {
                    const int16_t* pairs = w[n / kParts].minimum_pairs + (g * kLanes + n % kParts * kPartLanes * 2);
                    minima[m][n] = add_pairs(minima[m][n], load_register(pairs), x);
                }
            }
    }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < kRegisters; n++) {
            const Unpacked& panel = w[n / kParts];
            const int lane = n % kParts * kPartLanes;
            float* total = totals + m * P * kLanes + n * kPartLanes;
            Part value = load_part(total);
            if (R::kFormat.nested)
                value = multiply_add(values[m][n], load_part(panel.factors + lane), value);
            else
                value += values[m][n];
            if (R::kFormat.minima)
                value = multiply_add(to_floats(minima[m][n]), load_part(panel.minimum_factors + lane), value);
            std::memcpy(total, &value, sizeof value);
        }
}

constexpr int kBlockTileRows = 4, kBlockPanels = kManyRegisters ? 2 : 1;
constexpr int kTallTileRows = 8;
constexpr int kBlockTokensAtOnce = 128;  // tokens that pass over unpacked columns

// Tokens from which on codes are unpacked to bytes once; others are as fast with every tile.
template <class R>
constexpr int kLeastUnpacked = R::kFormat.bits == 4 || R::kTall ? INT_MAX : R::kFormat.bits == 5 ? 5 : 9;

// The products of some tokens with P panels of a part, from `panel` on.
template <int P, int K, bool Bytes>
void panels_blocks(const Activations& a, int begin, int end, const Matrix& w, int panel, float* out, int stride,
                   float add) {
    using R = Rule<K, Bytes>;
    constexpr const BlockFormat& f = R::kFormat;
    // Few panels are left over, so they have no large tiles.
    constexpr int kRows = R::kTall && P == 1 ? kTallTileRows : P == kBlockPanels ? kBlockTileRows : 0;
    alignas(64) float totals[(P > kBlockPanels ? 1 : kBlockTokensAtOnce) * P * kLanes];
    Unpacked unpacked[P];
    std::memset(totals, 0, sizeof(float) * (end - begin) * P * kLanes);
    for (int first = 0; first < w.columns; first += kOuter) {
        const int columns = std::min(kOuter, w.columns - first);
        for (int p = 0; p < P; p++) {
            const uint8_t* data = w.data + (panel + p) * w.panel_bytes();
            // The processor foresees lines, not pieces: read next are the panel's, or the first of one P panels further on.
            const bool last = first + kOuter >= w.columns;
            const uint8_t* next = last ? data + P * w.panel_bytes() : data;
            unpacked[p].ahead = codes_of(f, next, w.columns, last ? 0 : first + kOuter);
            const uint8_t* scales = next + (last ? 0 : scale_bytes(f, first + kOuter));
            for (size_t at = 0; at < scale_bytes(f, kOuter); at += 64) __builtin_prefetch(scales + at, 0, 2);
            unpack_scales(f, data + scale_bytes(f, first), columns, unpacked[p]);
            unpacked[p].codes = codes_of(f, data, w.columns, first);
            if (!R::kPlanes) unpack_codes(f, unpacked[p].codes, columns, unpacked[p]);
        }
        int token = begin;
        const auto to = [&] { return totals + (size_t)(token - begin) * P * kLanes; };
        if constexpr (kRows) {
            if (token + kRows <= end) {
                tile_blocks<kRows, P, K, Bytes, R::kPrefetches>(a, token, first, columns, unpacked, to());
                token += kRows;
            }
            for (; token + kRows <= end; token += kRows)
                tile_blocks<kRows, P, K, Bytes, false>(a, token, first, columns, unpacked, to());
            if constexpr (kRows > 4)
                for (; token + 4 <= end; token += 4)
                    tile_blocks<4, P, K, Bytes, R::kPrefetches>(a, token, first, columns, unpacked, to());
        }
        if constexpr (P <= kBlockPanels)
            for (; token + 2 <= end; token += 2)
                tile_blocks<2, P, K, Bytes, R::kPrefetches>(a, token, first, columns, unpacked, to());
        for (; token < end; token++) tile_blocks<1, P, K, Bytes, R::kPrefetches>(a, token, first, columns, unpacked, to());
    }
    for (int token = begin; token < end; token++)
        for (int p = 0; p < P; p++) {
            const Floats total = load(totals + ((size_t)(token - begin) * P + p) * kLanes);
            write(w, panel + p, total * a.units[token], out + (size_t)token * stride, add);
        }
}

template <int P, int K>
inline void panels_blocks(const Activations& a, int begin, int end, const Matrix& w, int panel, float* out, int stride,
                          float add) {
    using R = Rule<K, false>;
    if constexpr (P == kBlockPanels && R::kPlanes && kLeastUnpacked<R> < INT_MAX)
        if (end - begin >= kLeastUnpacked<R>) return panels_blocks<P, K, true>(a, begin, end, w, panel, out, stride, add);
    panels_blocks<P, K, false>(a, begin, end, w, panel, out, stride, add);
}

template <int P>
inline void panels_blocks(const Activations& a, int begin, int end, const Matrix& w, int panel, float* out, int stride,
                          float add) {
    switch (w.kind) {
        case kQ2_K: return panels_blocks<P, kQ2_K>(a, begin, end, w, panel, out, stride, add);
        case kQ3_K: return panels_blocks<P, kQ3_K>(a, begin, end, w, panel, out, stride, add);
        case kQ4_0: return panels_blocks<P, kQ4_0>(a, begin, end, w, panel, out, stride, add);
        case kQ4_1: return panels_blocks<P, kQ4_1>(a, begin, end, w, panel, out, stride, add);
        case kQ4_K: return panels_blocks<P, kQ4_K>(a, begin, end, w, panel, out, stride, add);
        case kQ5_0: return panels_blocks<P, kQ5_0>(a, begin, end, w, panel, out, stride, add);
        case kQ5_1: return panels_blocks<P, kQ5_1>(a, begin, end, w, panel, out, stride, add);
        case kQ5_K: return panels_blocks<P, kQ5_K>(a, begin, end, w, panel, out, stride, add);
        case kQ6_K: return panels_blocks<P, kQ6_K>(a, begin, end, w, panel, out, stride, add);
        case kQ8_0: return panels_blocks<P, kQ8_0>(a, begin, end, w, panel, out, stride, add);
        case kIq4Nl: return panels_blocks<P, kIq4Nl>(a, begin, end, w, panel, out, stride, add);
        default: return panels_blocks<P, kIq4Xs>(a, begin, end, w, panel, out, stride, add);
    }
}

// The values of a row of a matrix, for an embedding.
inline void unpack_row(const Matrix& w, int row, float* out) {
    const BlockFormat& f = format_of(w.kind);
    const int lane = row % kLanes;
    const uint8_t* panel = w.data + row / kLanes * w.panel_bytes();
    Unpacked u;
    for (int first = 0; first < w.columns; first += kOuter) {
        const int columns = std::min(kOuter, w.columns - first);
        u.ahead = panel;  // nothing
        unpack_codes(f, codes_of(f, panel, w.columns, first), columns, u);
        const uint8_t* scales = panel + scale_bytes(f, first);
        for (int g = 0; g < columns / f.group; g++) {
            const auto [scale, minimum] = scales_of(f, scales, g, lane);
            for (int k = g * f.group; k < (g + 1) * f.group; k++)
                out[first + k] = (u.codes[(size_t)(k / 4) * 64 + lane * 4 + k % 4] - f.zero) * scale + minimum;
        }
    }
}

// What block formats need of a token's quantized activations, whose scales are `steps`: the sums of each 16 and each 32;
// the same times their steps, as integers in the token's unit, whose rounding is a 32,000th of the largest; and the steps
// in that unit. Columns are a multiple of 32.
inline void sum_groups(const int8_t* quantized, const float* steps, int columns, int32_t* sums16, int32_t* sums32,
                       int16_t* scaled16, int16_t* scaled32, float* relative, float* unit) {
    constexpr int kMost = INT16_MAX / 2;  // so that the sum of two fits
    const int groups = columns / 16;
    float most = 1e-30f;  // so that its inverse is a number
    for (int g = 0; g < (columns + kGroup - 1) / kGroup; g++) most = std::max(most, steps[g]);
    for (int g = 0; g < groups; g++) {
        int32_t sum = 0;
        for (int i = 0; i < 16; i++) sum += quantized[16 * g + i];
        sums16[g] = sum;
        most = std::max(most, std::abs(sum * steps[g / 4]));
    }
    const float inverse = kMost / most;
    for (int g = 0; g < groups; g += kPartLanes) {
        const int count = std::min(kPartLanes, groups - g);
        Part products = {};
        for (int i = 0; i < count; i++) products[i] = sums16[g + i] * steps[(g + i) / 4] * inverse;
        const PartInts rounded = to_integers(products);
        for (int i = 0; i < count; i++) scaled16[g + i] = (int16_t)rounded[i];
    }
    for (int g = 0; g < groups / 2; g++) {
        sums32[g] = sums16[2 * g] + sums16[2 * g + 1];
        scaled32[g] = (int16_t)(scaled16[2 * g] + scaled16[2 * g + 1]);
    }
    if (groups / 2 % 2) scaled32[groups / 2] = 0;
    for (int g = 0; g < (columns + kGroup - 1) / kGroup; g++) relative[g] = steps[g] * inverse;
    *unit = most / kMost;
}

}  // namespace warmstart
