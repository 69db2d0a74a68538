// Attention over paged keys and values.
//
// A block holds 16 positions of one key-value head: its keys transposed [head_dim][16], so that one register holds a
// score for each position, and its values [16][head_dim]. All scores of a query are computed first, then their softmax,
// then the sum of the values in order of position, so that a query's result depends neither on the queries beside it nor
// on the step in which it is computed.
#pragma once

#include <algorithm>
#include <type_traits>

#include "norm.h"

namespace warmstart {

constexpr int kBlockTokens = 16;
constexpr int kQueries = 12;  // that share one reading of the keys

// Storage of keys and values: float or IEEE half.
template <class T>
inline Floats load_kv(const T* from);
template <>
inline Floats load_kv<float>(const float* from) { return load(from); }
template <>
inline Floats load_kv<uint16_t>(const uint16_t* from) { return load_half(from); }

template <class T>
inline Parts load_parts(const T* from) {
    return parts_of(load_kv<T>(from));
}
#if defined(__AVX2__) && !defined(__AVX512F__)
template <>
inline Parts load_parts<uint16_t>(const uint16_t* from) {
    Parts all;
    for (int i = 0; i < kParts; i++) all.part[i] = (Part)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from + i));
    return all;
}
#endif

inline void store_kv(float* to, Floats v) { store(to, v); }
inline void store_kv(uint16_t* to, Floats v) { store_half(to, v); }

// Queries and vectors of values whose sums stay in registers.
#if defined(__AVX512F__)
constexpr int kWeighQueries = 3, kWeighVectors = 4;
#else
constexpr int kWeighQueries = 3, kWeighVectors = 1;
#endif

// One query head of one token.
struct Query {
    const float* q;  // [head_dim], scaled
    float* out;      // [head_dim]
    int first;       // it attends to the positions first ... length - 1
    int length;
    float slope;     // of ALiBi, taken off for each position between the key and the query
    const float* bias = nullptr;  // of relative positions, for the distances -range ... range; or none
    int range = 0, position = 0;  // its own position
};

// The blocks that a group of queries reads: first ... end - 1.
struct BlockRange {
    int first, end;

    BlockRange(const Query* queries, int count) {
        int from = queries[0].first, to = queries[0].length;
        for (int i = 1; i < count; i++) {
            from = std::min(from, queries[i].first);
            to = std::max(to, queries[i].length);
        }
        first = from / kBlockTokens;
        end = (to + kBlockTokens - 1) / kBlockTokens;
    }
    int positions() const { return (end - first) * kBlockTokens; }
};

// Limits the scores of a query at a block's positions, adds its bias, and masks the positions that it does not attend to.
inline Floats final_score(Floats score, const Query& query, int block, float softcap) {
    if (softcap == 0 && query.slope == 0 && !query.bias && !query.first && (block + 1) * kBlockTokens <= query.length)
        return score;
    Floats position;
    for (int i = 0; i < kLanes; i++) position[i] = (float)i;
    position += (float)(block * kBlockTokens);
    if (softcap != 0) score = hyperbolic_tangent(score * (1.0f / softcap)) * softcap;
    if (query.slope != 0) {
        const Floats distance = position - splat((float)query.position);
        score -= maximum(distance, -distance) * query.slope;
    }
    if (query.bias)
        for (int i = 0; i < kLanes; i++) {
            const int distance = block * kBlockTokens + i - query.position;
            score[i] += query.bias[std::clamp(distance, -query.range, query.range) + query.range];
        }
    score = select(position < splat((float)query.length), score, splat(-INFINITY));
    return query.first ? select(position < splat((float)query.first), splat(-INFINITY), score) : score;
}

// Turns scores into weights, of which `largest` has the largest of each lane, and returns what to multiply them by.
inline float softmax(float* row, int width, Floats largest) {
    const Floats top = splat(maximum(largest));
    Floats total = {};
    for (int t = 0; t < width; t += kLanes) {
        const Floats weight = exponential(load(row + t) - top);
        store(row + t, weight);
        total += weight;
    }
    return 1.0f / sum(total);
}

// Keys at `base + block * stride`, values head_dim x 16 elements behind them. `softcap` limits the scores, 0 for none.
// `scores` is scratch of count x range.positions(). A masked position has a weight of exactly 0, so neither the range nor
// the queries beside a query change a bit of its result.
template <class T>
void attend(const Query* queries, int count, BlockRange range, const T* base, size_t stride, const int32_t* blocks,
            int head_dim, float softcap, float* scores) {
    int longest = 0;
    for (int i = 0; i < count; i++) longest = std::max(longest, queries[i].length);
    const int width = range.positions();
    Floats largest[kQueries];
    for (int i = 0; i < count; i++) largest[i] = splat(-INFINITY);

    auto score = [&](auto number, int first, int b) {
        constexpr int n = decltype(number)::value;
        const T* keys = base + (size_t)blocks[b] * stride;
        Parts acc[n];
        for (int d = 0; d < head_dim; d++) {
            const Parts k = load_parts<T>(keys + (size_t)d * kBlockTokens);
            for (int i = 0; i < n; i++) acc[i].add(k, queries[first + i].q[d]);
        }
        for (int i = 0; i < n; i++) {
            const Floats found = final_score(acc[i].floats(), queries[first + i], b, softcap);
            store(scores + (size_t)(first + i) * width + (b - range.first) * kBlockTokens, found);
            largest[first + i] = maximum(found, largest[first + i]);
        }
    };
    for (int b = range.first; b < range.end; b++) {
        int i = 0;
        for (; i + 6 <= count; i += 6) score(std::integral_constant<int, 6>{}, i, b);
        for (; i + 3 <= count; i += 3) score(std::integral_constant<int, 3>{}, i, b);
        for (; i < count; i++) score(std::integral_constant<int, 1>{}, i, b);
    }

    float inverse[kQueries];
    for (int i = 0; i < count; i++) inverse[i] = softmax(scores + (size_t)i * width, width, largest[i]);

    // Only positions that this sequence has written: the rest of the last block may hold another sequence's values.
    auto weigh = [&](auto number, auto vectors, int first, int offset) {
        constexpr int n = decltype(number)::value, v = decltype(vectors)::value;
        Parts acc[n][v];
        for (int b = range.first; b < range.end; b++) {
            const T* values = base + (size_t)blocks[b] * stride + (size_t)head_dim * kBlockTokens + offset;
            const int last = longest - b * kBlockTokens < kBlockTokens ? longest - b * kBlockTokens : kBlockTokens;
            for (int t = 0; t < last; t++) {
                Parts value[v];
                for (int j = 0; j < v; j++) value[j] = load_parts<T>(values + (size_t)t * head_dim + j * kLanes);
                for (int i = 0; i < n; i++) {
                    const float weight = scores[(size_t)(first + i) * width + (b - range.first) * kBlockTokens + t];
                    for (int j = 0; j < v; j++) acc[i][j].add(value[j], weight);
                }
            }
        }
        for (int i = 0; i < n; i++)
            for (int j = 0; j < v; j++)
                store(queries[first + i].out + offset + j * kLanes, acc[i][j].floats() * inverse[first + i]);
    };
    using std::integral_constant;
    int offset = 0;
    for (; offset + kWeighVectors * kLanes <= head_dim; offset += kWeighVectors * kLanes) {
        int i = 0;
        for (; i + kWeighQueries <= count; i += kWeighQueries)
            weigh(integral_constant<int, kWeighQueries>{}, integral_constant<int, kWeighVectors>{}, i, offset);
        for (; i < count; i++) weigh(integral_constant<int, 1>{}, integral_constant<int, kWeighVectors>{}, i, offset);
    }
    // Narrower heads, such as those of small encoders: fewer vectors of more queries.
    auto weigh_rest = [&](auto number, auto vectors) {
        int i = 0;
        for (; i + decltype(number)::value <= count; i += decltype(number)::value) weigh(number, vectors, i, offset);
        for (; i < count; i++) weigh(integral_constant<int, 1>{}, vectors, i, offset);
        offset += decltype(vectors)::value * kLanes;
    };
    constexpr integral_constant<int, 2 * kWeighQueries> together{};
    if (offset + 2 * kLanes <= head_dim) weigh_rest(together, integral_constant<int, 2>{});
    while (offset < head_dim) weigh_rest(together, integral_constant<int, 1>{});
}

}  // namespace warmstart
