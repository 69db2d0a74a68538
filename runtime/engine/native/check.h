// What Python hands over is checked before anything is read through it, in every build. The cost of a step's check is one
// pass over its token ids and its block tables.
#pragma once

#include <algorithm>

#include "attention.h"
#include "gemm.h"
#include "layout.h"

namespace warmstart {

enum Status {
    kOk,
    kNoMemory,
    kNoThreads,
    kClosed,
    kBadShape,
    kBadTensor,
    kBadSizes,
    kBadRows,
    kBadPosition,
    kBadBlock,
    kBadToken,
    kBadOutput,
    kBadChoice,
    kStatuses,
};

inline const char* describe(int32_t status) {
    static const char* const texts[kStatuses] = {
        "no error",
        "no memory",
        "no more threads",
        "the decoder is closed",
        "a size in the configuration is out of range",
        "a tensor is missing or has another size than the configuration demands",
        "the counts of sequences, tokens, outputs or blocks are out of range",
        "the rows do not cover the tokens",
        "a position is out of range",
        "a block is out of range",
        "a token id is out of range",
        "the output tokens are not ascending or out of range",
        "the parameters of a choice are out of range",
    };
    return status >= 0 && status < kStatuses ? texts[status] : "an unknown error";
}

// Bounds that keep every product of sizes, which the kernels compute as int, far from overflow.
constexpr int kMostWidth = 1 << 20;       // of activations
constexpr int kMostVocabulary = 1 << 24;
constexpr int kMostTokens = 1 << 16;      // of a step
constexpr int kMostBlocks = 1 << 26;
constexpr int kMostLayers = 1 << 10;
constexpr int kMostThreads = 1 << 10;

inline bool within(int64_t value, int64_t least, int64_t most) { return value >= least && value <= most; }

// Whether all of `count` values are in [0, bound).
inline bool all_below(const int32_t* values, int32_t count, int32_t bound) {
    uint32_t largest = 0;
    for (int32_t i = 0; i < count; i++) largest = std::max(largest, (uint32_t)values[i]);
    return !count || largest < (uint32_t)bound;
}

inline bool readable(const void* data, uint64_t count, uint64_t wanted) {
    return data && (uintptr_t)data % alignof(float) == 0 && count == wanted;
}

inline bool check_vector(const Tensor& t, int size) {
    return readable(t.data, t.data_bytes, (uint64_t)size * sizeof(float)) &&
           (!t.bias || readable(t.bias, t.bias_count, size));
}

inline bool check_matrix(const Tensor& t, int kind, int rows, int columns) {
    const uint64_t padded = ((uint64_t)rows + kLanes - 1) / kLanes * kLanes;
    const uint64_t element = kind == kFloat32 ? 4 : kind == kBfloat16 ? 2 : 1;
    const uint64_t groups = (columns + kGroup - 1) / kGroup;
    return readable(t.data, t.data_bytes, padded * columns * element) &&
           (kind != kInt8 || readable(t.scales, t.scale_count, padded * groups)) &&
           (!t.bias || readable(t.bias, t.bias_count, padded));
}

inline Status check(const Config& c) {
    const int64_t heads_width = (int64_t)c.heads * c.head_dim;
    const bool shape =
        within(c.family, kGpt2, kLlama) && within(c.activation, kSilu, kRelu) && within(c.kind, kFloat32, kInt8) &&
        within(c.half_kv, 0, 1) && within(c.layers, 1, kMostLayers) && within(c.hidden, 1, kMostWidth) &&
        within(c.intermediate, 1, kMostWidth) && within(c.heads, 1, kMostWidth) && within(c.kv_heads, 1, c.heads) &&
        within(c.head_dim, 1, kMostWidth) && within(heads_width, 1, kMostWidth) &&
        within(c.vocabulary, 1, kMostVocabulary) && within(c.threads, 1, kMostThreads) &&
        within(c.max_tokens, 1, kMostTokens) && within(c.blocks, 1, kMostBlocks) && c.hidden % kLanes == 0 &&
        c.intermediate % kLanes == 0 && c.head_dim % kLanes == 0 && c.heads % c.kv_heads == 0;
    if (!shape) return kBadShape;
    if (c.family == kGpt2) {
        if (!within(c.context, 1, INT32_MAX)) return kBadShape;
        if (!readable(c.positions, c.position_count, (uint64_t)c.context * c.hidden)) return kBadTensor;
    } else if (!readable(c.inverse_frequencies, c.frequency_count, c.head_dim / 2)) {
        return kBadTensor;
    }
    if (!c.layer || !check_matrix(c.embed, c.kind, c.vocabulary, c.hidden) || !check_vector(c.final_norm, c.hidden) ||
        !check_matrix(c.head, c.kind, c.vocabulary, c.hidden))
        return kBadTensor;
    const int qkv = (c.heads + 2 * c.kv_heads) * c.head_dim;
    const int up = c.family == kLlama ? 2 * c.intermediate : c.intermediate;
    for (int i = 0; i < c.layers; i++) {
        const Layer& l = c.layer[i];
        if (!check_vector(l.attention_norm, c.hidden) || !check_matrix(l.qkv, c.kind, qkv, c.hidden) ||
            !check_matrix(l.attention_out, c.kind, c.hidden, (int)heads_width) || !check_vector(l.mlp_norm, c.hidden) ||
            !check_matrix(l.up, c.kind, up, c.hidden) || !check_matrix(l.down, c.kind, c.hidden, c.intermediate))
            return kBadTensor;
    }
    return kOk;
}

inline bool check_ids(const int32_t* ids, int32_t count, int32_t vocabulary) {
    return within(count, 0, vocabulary) && (!count || ids) && all_below(ids, count, vocabulary);
}

inline bool check(const Config& c, const Choice& how) {
    return within(how.top_k, 0, INT32_MAX) && within(how.logprobs, -1, kMostLogprobs) &&
           check_ids(how.bias_ids, how.biases, c.vocabulary) && (!how.biases || how.bias) &&
           check_ids(how.seen_ids, how.seen, c.vocabulary) &&
           check_ids(how.counted_ids, how.counted, c.vocabulary) && (!how.counted || how.counts) &&
           check_ids(how.banned, how.bans, c.vocabulary);
}

inline Status check(const Config& c, const Step& s) {
    if (!within(s.tokens, 1, c.max_tokens) || !within(s.sequences, 1, s.tokens) || !within(s.outputs, 0, s.tokens) ||
        !within(s.block_count, 1, (int64_t)s.sequences * c.blocks) || !s.ids || !s.starts || !s.at || !s.tables ||
        !s.blocks || (s.outputs && (!s.output_tokens || !s.choices || !s.chosen)))
        return kBadSizes;
    if (s.starts[0] != 0 || s.tables[0] != 0 || s.starts[s.sequences] != s.tokens ||
        s.tables[s.sequences] != s.block_count)
        return kBadRows;
    for (int i = 0; i < s.sequences; i++) {
        const int64_t tokens = (int64_t)s.starts[i + 1] - s.starts[i], blocks = (int64_t)s.tables[i + 1] - s.tables[i];
        if (tokens < 1 || blocks < 1) return kBadRows;
        const int64_t end = s.at[i] + tokens;
        if (s.at[i] < 0 || end > blocks * kBlockTokens || (c.family == kGpt2 && end > c.context)) return kBadPosition;
    }
    if (!all_below(s.blocks, s.block_count, c.blocks)) return kBadBlock;
    if (!all_below(s.ids, s.tokens, c.vocabulary)) return kBadToken;
    for (int i = 0, last = -1; i < s.outputs; last = s.output_tokens[i++])
        if (s.output_tokens[i] <= last || s.output_tokens[i] >= s.tokens) return kBadOutput;
    for (int i = 0; i < s.outputs; i++)
        if (!check(c, s.choices[i])) return kBadChoice;
    return kOk;
}

}  // namespace warmstart
