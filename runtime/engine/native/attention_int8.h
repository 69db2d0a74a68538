// Attention over keys and values of 8 bits: both products are of integers.
//
// A block holds, for each key-value head, the codes of its keys [head_dim / 4][16 positions][4] and of its values
// [8][head_dim][2 positions], then the keys' scales [groups][16 positions] and the values' [16 positions]. A key has a
// scale for each 32 of its values, because a few dimensions of some models are much larger than the others; a value has
// one. Queries get 8 bits as keys do; softmax weights, times the scales of the values, get 14 in each block, so that a
// large weight leaves enough steps to the small ones beside it. As with other types, a query's result depends neither on
// the queries beside it nor on the step in which it is computed.
#pragma once

#include "attention.h"
#include "int8_dot.h"

namespace warmstart {

constexpr int kKeyGroup = 32;  // values of a key or query that share a scale

inline int key_groups(int head_dim) { return (head_dim + kKeyGroup - 1) / kKeyGroup; }

// Bytes of a key-value head in a block. `head_dim` is a multiple of 16.
inline size_t int8_head_bytes(int head_dim) {
    return (size_t)2 * head_dim * kBlockTokens + (key_groups(head_dim) + 1) * kBlockTokens * sizeof(float);
}

// The addresses in a block of one key-value head.
struct Int8Head {
    uint8_t* keys;
    int8_t* values;
    float *key_scales, *value_scales;

    Int8Head(uint8_t* base, int head_dim)
        : keys(base), values((int8_t*)base + head_dim * kBlockTokens),
          key_scales((float*)(base + 2 * head_dim * kBlockTokens)),
          value_scales(key_scales + key_groups(head_dim) * kBlockTokens) {}
};

// Writes count / 4 x 4 codes of -127 ... 127 and returns their scale. `count` is a multiple of 16.
inline float quantize_to(const float* x, int count, int8_t* codes) {
    typedef int8_t Bytes __attribute__((vector_size(16)));
    Floats most = {};
    for (int i = 0; i < count; i += kLanes) {
        const Floats v = load(x + i);
        most = maximum(most, maximum(v, -v));
    }
    const float scale = std::max(maximum(most) / 127.0f, 1.17549435e-38f), inverse = 1.0f / scale;
    for (int i = 0; i < count; i += kLanes) {
        const Bytes bytes = __builtin_convertvector(
            __builtin_convertvector(round_even(load(x + i) * inverse), Ints), Bytes);
        std::memcpy(codes + i, &bytes, sizeof bytes);
    }
    return scale;
}

// Stores the key and the value of one head at a position of a block. `codes` is scratch of head_dim bytes.
inline void store_int8(const Int8Head& head, int position, const float* key, const float* value, int head_dim,
                       int8_t* codes) {
    for (int g = 0; g * kKeyGroup < head_dim; g++) {
        const int first = g * kKeyGroup, count = std::min(kKeyGroup, head_dim - first);
        head.key_scales[g * kBlockTokens + position] = quantize_to(key + first, count, codes + first);
    }
    for (int d = 0; d < head_dim; d++)
        head.keys[(d / 4 * kBlockTokens + position) * 4 + d % 4] = (uint8_t)(codes[d] + 128);
    head.value_scales[position] = quantize_to(value, head_dim, codes);
    for (int d = 0; d < head_dim; d++)
        head.values[(position / 2 * head_dim + d) * 2 + position % 2] = codes[d];
}

// A query's codes, with a scale and the offset of `Sums` for each group.
struct Int8Query {
    int8_t* codes;
    float* scales;
    uint32_t* offsets;
};

// The weights of a block's positions, scale x code, in the place of 16 scores.
struct BlockWeights {
    int16_t codes[kBlockTokens];
    float scale;
};
static_assert(sizeof(BlockWeights) <= kBlockTokens * sizeof(float), "the weights are in the place of the scores");

// Codes of 0 ... 2^14; the scale is a power of two, so that no division is needed. Weights below 2^-90 count as 0.
inline BlockWeights block_weights(Floats weights, Floats scales) {
    typedef int16_t Shorts __attribute__((vector_size(32)));
    weights = select(weights > splat(0.0f), weights * scales, splat(0.0f));  // scales of other positions are undefined
    const Words most = (Words)splat(largest_lane(weights)) >> 23;  // its exponent, as they are positive
    const Ints counts = most > 36u;
    const Words exponent = most + (1 - 14);
    const Floats scale = (Floats)((exponent << 23) & (Words)counts);
    const Floats inverse = (Floats)(((254u - exponent) << 23) & (Words)counts);
    const Shorts codes = __builtin_convertvector(__builtin_convertvector(round_even(weights * inverse), Ints), Shorts);
    BlockWeights found;
    std::memcpy(found.codes, &codes, sizeof codes);
    found.scale = scale[0];
    return found;
}

#if defined(__AVX512F__)
constexpr int kScoreQueries = 6;  // whose sums stay in registers
#else
constexpr int kScoreQueries = 3;
#endif

inline size_t int8_scratch(int head_dim) {
    return (size_t)kQueries * (head_dim + key_groups(head_dim) * (sizeof(float) + sizeof(uint32_t)));
}

// As `attend`, for a key-value head at `base + block * stride`. `scratch` has int8_scratch(head_dim) bytes.
inline void attend_int8(const Query* queries, int count, BlockRange range, uint8_t* base, size_t stride,
                        const int32_t* blocks, int head_dim, float softcap, float* scores, uint8_t* scratch) {
    using std::integral_constant;
    const int width = range.positions(), groups = key_groups(head_dim);
    Int8Query quantized[kQueries];
    for (int i = 0; i < count; i++) {
        Int8Query& query = quantized[i];
        query.scales = (float*)scratch + i * groups;
        query.offsets = (uint32_t*)scratch + (kQueries + i) * groups;
        query.codes = (int8_t*)((float*)scratch + 2 * kQueries * groups) + i * head_dim;
        for (int g = 0; g < groups; g++) {
            const int first = g * kKeyGroup, size = std::min(kKeyGroup, head_dim - first);
            query.scales[g] = quantize_to(queries[i].q + first, size, query.codes + first);
            uint32_t sum = 0;
            for (int d = first; d < first + size; d++) sum += (uint32_t)(int32_t)query.codes[d];
            query.offsets[g] = -(128 * sum);
        }
    }
    Floats largest[kQueries];
    for (int i = 0; i < count; i++) largest[i] = splat(-INFINITY);

    auto score = [&](auto number, int first, int b) {
        constexpr int n = decltype(number)::value;
        const Int8Head head(base + (size_t)blocks[b] * stride, head_dim);
        Floats acc[n] = {};
        for (int g = 0; g < groups; g++) {
            const int begin = g * kKeyGroup, end = std::min(begin + kKeyGroup, head_dim);
            auto sums = sums_of<n>([&](int i) { return quantized[first + i].offsets[g]; });
            for (int d = begin; d < end; d += 4) {
                const Sums::Codes keys(head.keys + (size_t)d * kBlockTokens);
                for (int i = 0; i < n; i++) sums[i].add(keys, load_word(quantized[first + i].codes + d));
            }
            const Floats scale = load(head.key_scales + g * kBlockTokens);
            for (int i = 0; i < n; i++)
                acc[i] += __builtin_convertvector(sums[i].integers(), Floats) * scale * quantized[first + i].scales[g];
        }
        for (int i = 0; i < n; i++) {
            acc[i] = final_score(acc[i], queries[first + i], b, softcap);
            store(scores + (size_t)(first + i) * width + (b - range.first) * kBlockTokens, acc[i]);
            largest[first + i] = maximum(acc[i], largest[first + i]);
        }
    };
    for (int b = range.first; b < range.end; b++) {
        int i = 0;
        for (; i + kScoreQueries <= count; i += kScoreQueries) score(integral_constant<int, kScoreQueries>{}, i, b);
        for (; i + 3 <= count; i += 3) score(integral_constant<int, 3>{}, i, b);
        for (; i < count; i++) score(integral_constant<int, 1>{}, i, b);
    }

    float inverse[kQueries];
    for (int i = 0; i < count; i++) {
        float* row = scores + (size_t)i * width;
        inverse[i] = softmax(row, width, largest[i]);
        for (int b = range.first; b < range.end; b++, row += kBlockTokens) {
            const Int8Head head(base + (size_t)blocks[b] * stride, head_dim);
            const BlockWeights weights = block_weights(load(row), load(head.value_scales));
            std::memcpy(row, &weights, sizeof weights);
        }
    }

    auto weigh = [&](auto number, auto vectors, int first, int offset) {
        constexpr int n = decltype(number)::value, v = decltype(vectors)::value;
        Parts acc[n][v];
        for (int b = range.first; b < range.end; b++) {
            const Int8Head head(base + (size_t)blocks[b] * stride, head_dim);
            const BlockWeights* weights[n];
            for (int i = 0; i < n; i++)
                weights[i] = (const BlockWeights*)(scores + (size_t)(first + i) * width + (b - range.first) * kBlockTokens);
            PairSums sums[n][v];
            for (int t = 0; t < kBlockTokens; t += 2) {
                const int8_t* values = head.values + ((size_t)t / 2 * head_dim + offset) * 2;
                for (int j = 0; j < v; j++) {
                    const PairSums::Codes codes(values + 2 * j * kLanes);
                    for (int i = 0; i < n; i++) sums[i][j].add(codes, load_word(weights[i]->codes + t));
                }
            }
            for (int i = 0; i < n; i++)
                for (int j = 0; j < v; j++)
                    acc[i][j].add(parts_of(__builtin_convertvector(sums[i][j].integers(), Floats)), weights[i]->scale);
        }
        for (int i = 0; i < n; i++)
            for (int j = 0; j < v; j++)
                store(queries[first + i].out + offset + j * kLanes, acc[i][j].floats() * inverse[first + i]);
    };
    int offset = 0;
    for (; offset + kWeighVectors * kLanes <= head_dim; offset += kWeighVectors * kLanes) {
        int i = 0;
        for (; i + kWeighQueries <= count; i += kWeighQueries)
            weigh(integral_constant<int, kWeighQueries>{}, integral_constant<int, kWeighVectors>{}, i, offset);
        for (; i < count; i++) weigh(integral_constant<int, 1>{}, integral_constant<int, kWeighVectors>{}, i, offset);
    }
    for (; offset < head_dim; offset += kLanes)
        for (int i = 0; i < count; i++) weigh(integral_constant<int, 1>{}, integral_constant<int, 1>{}, i, offset);
}

}  // namespace warmstart
