// Products of activations with matrices in the formats of block_formats.h.
//
// All tokens pass over 256 columns of a few panels while those are in the nearest cache. Codes of 4, 5 and 6 bits are taken
// apart with every tile, in registers; others are unpacked to bytes before.
//
// A group's products are summed in integers; then, for each group in order, value += sum x scale + sum of the activations
// x minimum, and for each 64 columns total += value x scale of the activations. The operations on a row and a token are the
// same in tiles of all shapes, and multiply_add leaves nothing to the compiler, so that a row's result never depends on
// the rows beside it.
#pragma once

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

// Adds the products of M tokens with some columns of P panels, from `first` on, to totals [tokens][P][16]. Codes have
// `Stored` bits as they lie in the file, or are unpacked to bytes if that is 0. With `Ahead`, what is next is prefetched.
template <int M, int P, int Group, int Bits, bool Minima, int Stored, bool Ahead>
inline void tile_blocks(const Activations& a, int token, int first, int columns, int zero, const Unpacked* w,
                        float* totals) {
    constexpr int kRegisters = P * kParts;
    if (Bits == 8 && kWideIsSigned) zero = 0;
    const size_t stride = a.stride, sum_stride = stride / Group;
    const size_t first_sum = token * sum_stride + first / Group;
    const int32_t* sums = (Group == 16 ? a.sums16 : a.sums32) + first_sum;
    const float* float_sums = (Group == 16 ? a.float_sums16 : a.float_sums32) + first_sum;
    const int8_t* rows = a.quantized + token * stride + first;
    const float* steps = a.scales + (size_t)token * a.groups + first / kGroup;
    for (int begin = 0; begin < columns; begin += kGroup, steps++) {  // columns of one step of the activations
        const int end = std::min(begin + kGroup, columns);
        Part values[M][kRegisters] = {};
        for (int g = begin / Group; g < end / Group; g++) {
            Register acc[M][kRegisters];
            for (int m = 0; m < M; m++) {
                const Register start = begin_sums<Bits>(Minima ? 0 : -zero * sums[m * sum_stride + g]);
                for (int n = 0; n < kRegisters; n++) acc[m][n] = start;
            }
            if (Stored && Ahead)
                for (int p = 0; p < P; p++)
                    for (int line = 0; line < Group * Stored / 32; line++)
                        __builtin_prefetch(w[p].ahead + g * Group * 2 * Stored + line * 64, 0, 2);
            if constexpr (Stored && Stored < 8) {
                const int8_t* inputs = rows + g * Group;
                const auto pairs = std::make_integer_sequence<int, Group / 8>{};
                if (Group == 32 || g % 2 == 0)
                    add_stored<0, Stored, Bits, M, P>(acc, w, g * Group, inputs, stride, pairs);
                else
                    add_stored<4, Stored, Bits, M, P>(acc, w, (g - 1) * Group, inputs, stride, pairs);
            } else {
                for (int k = g * Group; k < (g + 1) * Group; k += kGroupStep) {
                    Words4 codes[kRegisters];
                    for (int n = 0; n < kRegisters; n++)
                        codes[n] = load_codes<Bits>(w[n / kParts].codes + (size_t)k * kLanes + n % kParts * kPartBytes);
                    for (int m = 0; m < M; m++) {
                        const Words4 x = splat_inputs(rows + m * stride + k);
                        for (int n = 0; n < kRegisters; n++) acc[m][n] = add_products<Bits>(acc[m][n], codes[n], x);
                    }
                }
            }
            // Where registers are few, stored before they are scaled, or the compiler stores them with every step.
            alignas(64) Register stored[M][kRegisters];
            std::memcpy(stored, acc, sizeof stored);
            if constexpr (!kManyRegisters) asm volatile("" : : "r"(stored) : "memory");
            for (int n = 0; n < kRegisters; n++) {
                const int at = g * kLanes + n % kParts * kPartLanes;
                const Part scale = load_part(w[n / kParts].scales + at);
                for (int m = 0; m < M; m++) {
                    const int32_t offset = Minima ? 0 : -zero * sums[m * sum_stride + g];
                    values[m][n] = multiply_add(end_sums<Bits>(stored[m][n], offset), scale, values[m][n]);
                    if (Minima) {
                        const Part minimum = load_part(w[n / kParts].minima + at);
                        values[m][n] = multiply_add(minimum, splat_part(float_sums[m * sum_stride + g]), values[m][n]);
                    }
                }
            }
        }
        for (int m = 0; m < M; m++)
            for (int n = 0; n < kRegisters; n++) {
                float* total = totals + m * P * kLanes + n * kPartLanes;
                const Part value = multiply_add(values[m][n], splat_part(steps[(size_t)m * a.groups]), load_part(total));
                std::memcpy(total, &value, sizeof value);
            }
    }
}

constexpr int kBlockTileRows = 4;  // sums and values of 4 x 3 registers leave room for weights
constexpr int kBlockTokensAtOnce = 128;  // tokens that pass over unpacked columns

// The products of some tokens with P panels of a part, from `panel` on.
template <int P, int Group, int Bits, bool Minima, int Stored = 0>
void panels_blocks(const Activations& a, int begin, int end, const Matrix& w, int panel, float* out, int stride, float add) {
    const BlockFormat& f = format_of(w.kind);
    alignas(64) float totals[(P > kTilePanels ? 1 : kBlockTokensAtOnce) * P * kLanes];
    Unpacked unpacked[P];
    std::memset(totals, 0, sizeof(float) * (end - begin) * P * kLanes);
    for (int first = 0; first < w.columns; first += kOuter) {
        const int columns = std::min(kOuter, w.columns - first);
        for (int p = 0; p < P; p++) {
            const uint8_t* data = w.data + (panel + p) * w.panel_bytes();
            unpack(f, data, w.columns, first, columns, unpacked[p], Stored && Stored < 8);
            // The processor foresees lines, not pieces: read next are the panel's, or the first of one P panels further on.
            const bool last = first + kOuter >= w.columns;
            const uint8_t* next = last ? data + P * w.panel_bytes() : data;
            unpacked[p].ahead = next + scale_bytes(f, w.columns) + (last ? 0 : (first + kOuter) * kLanes * f.bits / 8);
            if (Stored) {
                const uint8_t* scales = next + (last ? 0 : scale_bytes(f, first + kOuter));
                for (size_t at = 0; at < scale_bytes(f, kOuter); at += 64) __builtin_prefetch(scales + at, 0, 2);
            }
        }
        int token = begin;
        const auto to = [&] { return totals + (size_t)(token - begin) * P * kLanes; };
        if constexpr (P == kTilePanels) {  // few panels are left over, so they have no large tiles
            constexpr int kRows = kBlockTileRows;
            if (token + kRows <= end) {
                tile_blocks<kRows, P, Group, Bits, Minima, Stored, true>(a, token, first, columns, f.zero, unpacked, to());
                token += kRows;
            }
            for (; token + kRows <= end; token += kRows)
                tile_blocks<kRows, P, Group, Bits, Minima, Stored, false>(a, token, first, columns, f.zero, unpacked, to());
        }
        if constexpr (P <= kTilePanels)
            for (; token + 2 <= end; token += 2)
                tile_blocks<2, P, Group, Bits, Minima, Stored, true>(a, token, first, columns, f.zero, unpacked, to());
        for (; token < end; token++)
            tile_blocks<1, P, Group, Bits, Minima, Stored, true>(a, token, first, columns, f.zero, unpacked, to());
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
        case kQ4_0: return panels_blocks<P, 32, kFewBits, false, 4>(a, begin, end, w, panel, out, stride, add);
        case kQ4_1:
        case kQ4_K: return panels_blocks<P, 32, kFewBits, true, 4>(a, begin, end, w, panel, out, stride, add);
        case kQ5_0: return panels_blocks<P, 32, 6, false, 5>(a, begin, end, w, panel, out, stride, add);
        case kQ5_1:
        case kQ5_K: return panels_blocks<P, 32, 6, true, 5>(a, begin, end, w, panel, out, stride, add);
        case kQ6_K: return panels_blocks<P, 16, 6, false, 6>(a, begin, end, w, panel, out, stride, add);
        case kQ8_0: return panels_blocks<P, 32, 8, false, 8>(a, begin, end, w, panel, out, stride, add);
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
inline void sum_groups(const int8_t* quantized, int columns, int32_t* sums16, int32_t* sums32, float* float_sums16,
                       float* float_sums32) {
    for (int g = 0; g < columns / 16; g++) {
        int32_t sum = 0;
        for (int i = 0; i < 16; i++) sum += quantized[16 * g + i];
        float_sums16[g] = sums16[g] = sum;
    }
    for (int g = 0; g < columns / 32; g++) float_sums32[g] = sums32[g] = sums16[2 * g] + sums16[2 * g + 1];
}

}  // namespace warmstart
