// All that Python passes is checked before it is used as an address or an index, in every build. The cost of a step's check is one
// pass over its token ids and its block tables.
#pragma once

#include <algorithm>
#include <initializer_list>

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
    kBadType,
    kInterrupted,
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
        "a token type is out of range",
        "the step was interrupted",
    };
    return status >= 0 && status < kStatuses ? texts[status] : "an unknown error";
}

// Bounds that keep every product of sizes, which the kernels compute as int, far from overflow.
constexpr int kMaxWidth = 1 << 20;       // of activations
constexpr int kMaxVocabulary = 1 << 24;
constexpr int kMaxTokens = 1 << 16;      // of a step
constexpr int kMaxBlocks = 1 << 26;
constexpr int kMaxLayers = 1 << 10;
constexpr int kMaxConvolution = 1 << 10;
constexpr int kMaxExperts = 1 << 12;
constexpr int kMaxExpertRows = 1 << 24;  // of the matrix of all experts of a layer
constexpr int kMaxThreads = 1 << 10;

inline bool within(int64_t value, int64_t min, int64_t max) { return value >= min && value <= max; }

// Whether all of `count` values are in [0, bound).
inline bool all_below(const int32_t* values, int32_t count, int32_t bound) {
    uint32_t largest = 0;
    for (int32_t i = 0; i < count; i++) largest = std::max(largest, (uint32_t)values[i]);
    return !count || largest < (uint32_t)bound;
}

inline bool readable(const void* data, uint64_t count, uint64_t wanted) {
    return data && (uintptr_t)data % alignof(float) == 0 && count == wanted;
}

// A vector of floats, padded to a multiple of 16.
inline bool check_vector(const Tensor& t, int64_t rows, int width) {
    return readable(t.data, t.data_bytes, (uint64_t)rows * padded(width) * sizeof(float)) &&
           (!t.bias || readable(t.bias, t.bias_count, padded(width)));
}

// A norm that the model has, or has not.
inline bool check_norm(const Tensor& t, int width, bool present) {
    return present ? check_vector(t, 1, width) : !t.data;
}

// The bias may be that of a larger matrix, with `bias_rows`.
inline bool check_matrix(const Tensor& t, int rows, int columns, int bias_rows) {
    if (!within(t.kind, 0, kKinds - 1)) return false;
    const uint64_t outputs = padded(rows), inputs = padded(columns), groups = (inputs + kGroup - 1) / kGroup;
    uint64_t bytes = outputs * inputs * (t.kind == kFloat32 ? 4 : t.kind == kInt8 ? 1 : 2);
    if (is_block(t.kind)) {
        const BlockFormat& f = format_of(t.kind);
        if (columns % column_multiple(f)) return false;
        bytes = outputs / kLanes * block_panel_bytes(f, inputs);
    }
    return readable(t.data, t.data_bytes, bytes) &&
           (t.kind != kInt8 || readable(t.scales, t.scale_count, outputs * groups)) &&
           (!t.bias || readable(t.bias, t.bias_count, padded(bias_rows)));
}

inline bool check_matrix(const Tensor& t, int rows, int columns) { return check_matrix(t, rows, columns, rows); }

// A matrix in parts with these numbers of rows, or a whole one in the first place.
inline bool check_parts(const Tensor* parts, std::initializer_list<int> rows, int columns) {
    int all = 0, i = 0;
    for (int count : rows) all += padded(count);
    const bool whole = std::none_of(parts + 1, parts + rows.size(), [](const Tensor& t) { return t.data; });
    if (whole) return check_matrix(parts[0], all, columns);
    for (int count : rows) {
        if (!check_matrix(parts[i], count, columns, all) || (i && parts[i].bias)) return false;
        i++;
    }
    return true;
}

// The MLP, or the shared expert; none if it has no width.
inline bool check_mlp(const Config& c, const Layer& l) {
    if (!l.intermediate) return !l.up[0].data && !l.up[1].data && !l.down.data;
    const int rows = padded(l.intermediate);
    const bool up =
        c.gated ? check_parts(l.up, {rows, rows}, c.hidden) : !l.up[1].data && check_matrix(l.up[0], rows, c.hidden);
    return up && check_matrix(l.down, c.hidden, l.intermediate);
}

// The mixture of experts; none if there is no router.
inline bool check_experts(const Config& c, const Layer& l) {
    if (!l.router.data)
        return !l.router_correction.data && !l.experts_up[0].data && !l.experts_up[1].data && !l.experts_down.data;
    const int up_rows = c.experts * padded(c.experts_intermediate);
    return c.experts && l.router.kind == kFloat32 && !l.router.bias && !l.experts_up[0].bias && !l.experts_down.bias &&
           check_matrix(l.router, c.experts + c.shared_gate, c.hidden) &&
           check_norm(l.router_correction, c.experts, l.router_correction.data) &&
           check_parts(l.experts_up, {up_rows, up_rows}, c.hidden) &&
           check_matrix(l.experts_down, c.experts * padded(c.hidden), c.experts_intermediate);
}

inline Status check(const Config& c, const Layer& l, const Layer& first) {
    const int heads = c.heads * padded(c.head_dim), keys = c.kv_heads * padded(c.head_dim);
    const bool convolves = l.kind == kConvolution, qk_norm = !convolves && c.qk_norm != kNoNorm;
    const bool post = first.attention_post_norm.data;
    if (!within(l.kind, kAttention, kConvolution) || !within(l.window, 0, INT32_MAX) ||
        !within(l.rotation, -1, (int64_t)c.rotation_count - 1) || (convolves && (!c.convolution_width || c.hidden % kLanes || c.bidirectional)) ||
        (c.norm_after_sum && (!post || l.attention_norm.data || l.mlp_norm.data)) ||
        !within(l.intermediate, l.router.data ? 0 : 1, kMaxWidth))
        return kBadShape;
    const bool norms = check_norm(l.attention_norm, c.hidden, l.attention_norm.data) &&
                       check_norm(l.mlp_norm, c.hidden, l.mlp_norm.data) &&
                       check_norm(l.attention_post_norm, c.hidden, post) &&
                       check_norm(l.mlp_post_norm, c.hidden, post) && check_norm(l.q_norm, heads, qk_norm) &&
                       check_norm(l.k_norm, keys, qk_norm);
    const bool mixer = convolves ? !l.qkv[1].data && !l.qkv[2].data &&
                                       check_matrix(l.qkv[0], 3 * padded(c.hidden), c.hidden) &&
                                       check_matrix(l.attention_out, c.hidden, c.hidden) &&
                                       check_vector(l.convolution, c.convolution_width, c.hidden)
                                 : check_parts(l.qkv, {heads, keys, keys}, c.hidden) &&
                                       check_matrix(l.attention_out, c.hidden, heads);
    return norms && mixer && check_mlp(c, l) && check_experts(c, l) ? kOk : kBadTensor;
}

// The sizes of the experts, of which `c.experts` may be 0.
inline bool check_expert_sizes(const Config& c) {
    const int least = c.experts ? 1 : 0;
    return within(c.experts, 0, kMaxExperts) && within(c.experts_per_token, least, c.experts) &&
           within(c.experts_intermediate, least, kMaxWidth) && within(c.router_scores, kSoftmax, kSigmoid) &&
           within(c.normalized, 0, 1) && within(c.shared_gate, 0, 1) && (c.gated || !c.experts) &&
           (int64_t)c.experts * padded((int64_t)c.experts_intermediate) * 2 <= kMaxExpertRows &&
           (int64_t)c.experts * padded((int64_t)c.hidden) <= kMaxExpertRows;
}

inline Status check(const Config& c) {
    const int64_t heads_width = c.heads * padded((int64_t)c.head_dim);  // may be out of range still
    const bool shape =
        within(c.norm, kRms, kLayerNorm) && within(c.qk_norm, kNoNorm, kFullNorm) &&
        within(c.activation, kSilu, kSquaredRelu) && within(c.kv_type, kFloat32KV, kInt8KV) &&
        within(c.gated, 0, 1) && within(c.parallel, 0, 1) && within(c.shared_norm, 0, 1) &&
        within(c.bidirectional, 0, 1) && within(c.transient, 0, 1) && within(c.norm_after_sum, 0, 1) &&
        within(c.token_types, 0, kMaxWidth) && within(c.relative_range, 0, kMaxWidth) &&
        (c.transient || !c.bidirectional) && !(c.norm_after_sum && c.parallel) &&
        within(c.layers, 1, kMaxLayers) && within(c.hidden, 1, kMaxWidth) &&
        within(c.heads, 1, kMaxWidth) && within(c.kv_heads, 1, c.heads) && within(c.head_dim, 1, kMaxWidth) &&
        within(heads_width, 1, kMaxWidth) && within(c.vocabulary, 1, kMaxVocabulary) &&
        within(c.convolution_width, 0, kMaxConvolution) && within(c.threads, 1, kMaxThreads) &&
        within(c.max_tokens, 1, kMaxTokens) && within(c.blocks, 1, kMaxBlocks) &&
        within(c.rotation_count, 0, kMaxLayers) && c.heads % c.kv_heads == 0 &&
        !(c.shared_norm && !c.parallel) && c.residual_scale != 0 && check_expert_sizes(c);
    if (!shape) return kBadShape;
    if (c.alibi_slopes && !readable(c.alibi_slopes, c.slope_count, c.heads)) return kBadTensor;
    if (c.positions) {
        if (!within(c.context, 1, INT32_MAX)) return kBadShape;
        if (!readable(c.positions, c.position_count, (uint64_t)c.context * padded(c.hidden))) return kBadTensor;
    }
    if (c.types ? !readable(c.types, c.type_count, (uint64_t)c.token_types * padded(c.hidden)) : c.token_types != 0)
        return kBadTensor;
    if (c.relative_bias &&
        !readable(c.relative_bias, c.relative_count, (uint64_t)c.heads * (2 * (uint64_t)c.relative_range + 1)))
        return kBadTensor;
    if (c.rotation_count && !c.rotations) return kBadTensor;
    for (int i = 0; i < c.rotation_count; i++) {
        const Rotation& rotation = c.rotations[i];
        if (!within((int64_t)rotation.count, 1, c.head_dim / 2)) return kBadShape;
        if (!readable(rotation.frequencies, rotation.count, rotation.count)) return kBadTensor;
        if (rotation.long_frequencies && !readable(rotation.long_frequencies, rotation.count, rotation.count))
            return kBadTensor;
    }
    if (!c.layer || !check_matrix(c.embed, c.vocabulary, c.hidden) ||
        !check_norm(c.embed_norm, c.hidden, c.embed_norm.data) || !check_norm(c.final_norm, c.hidden, c.final_norm.data) ||
        !check_matrix(c.head, c.vocabulary, c.hidden))
        return kBadTensor;
    for (int i = 0; i < c.layers; i++)
        if (const Status status = check(c, c.layer[i], c.layer[0])) return status;
    return kOk;
}

inline bool check_ids(const int32_t* ids, int32_t count, int32_t vocabulary) {
    return within(count, 0, vocabulary) && (!count || ids) && all_below(ids, count, vocabulary);
}

inline bool check(const Config& c, const Choice& how) {
    return within(how.top_k, 0, INT32_MAX) && within(how.logprobs, -1, kMaxLogprobs) &&
           check_ids(how.bias_ids, how.biases, c.vocabulary) && (!how.biases || how.bias) &&
           check_ids(how.seen_ids, how.seen, c.vocabulary) &&
           check_ids(how.counted_ids, how.counted, c.vocabulary) && (!how.counted || how.counts) &&
           check_ids(how.banned, how.bans, c.vocabulary) &&
           (how.mask ? how.mask_words == (c.vocabulary + 31) / 32 : !how.mask_words);
}

inline Status check(const Config& c, const Step& s) {
    if (!within(s.tokens, 1, c.max_tokens) || !within(s.sequences, 1, s.tokens) || !within(s.outputs, 0, s.tokens) ||
        !within(s.block_count, 1, (int64_t)s.sequences * c.blocks) || !s.ids || !s.starts || !s.at || !s.long_texts || !s.tables ||
        !s.blocks || (s.outputs && (!s.output_tokens || (!s.states && (!s.choices || !s.chosen)))))
        return kBadSizes;
    // A part needs whole texts: the keys and values of its layers are then its own.
    if (!within(s.first_layer, 0, s.last_layer) || !within(s.last_layer, 0, c.layers) || (s.last_layer && !c.transient))
        return kBadSizes;
    if (!within(s.resume, 0, 1) || (s.resume && s.last_layer)) return kBadSizes;
    if (s.starts[0] != 0 || s.tables[0] != 0 || s.starts[s.sequences] != s.tokens ||
        s.tables[s.sequences] != s.block_count)
        return kBadRows;
    for (int i = 0; i < s.sequences; i++) {
        const int64_t tokens = (int64_t)s.starts[i + 1] - s.starts[i], blocks = (int64_t)s.tables[i + 1] - s.tables[i];
        if (tokens < 1 || blocks < 1) return kBadRows;
        const int64_t end = s.at[i] + tokens;
        if (s.at[i] < 0 || (c.transient && s.at[i]) || end > blocks * kBlockTokens || (c.positions && end > c.context)) return kBadPosition;
    }
    if (!all_below(s.blocks, s.block_count, c.blocks)) return kBadBlock;
    if (!all_below(s.ids, s.tokens, c.vocabulary)) return kBadToken;
    if (s.types && !all_below(s.types, s.tokens, c.token_types)) return kBadType;
    for (int i = 0, last = -1; i < s.outputs; last = s.output_tokens[i++])
        if (s.output_tokens[i] <= last || s.output_tokens[i] >= s.tokens) return kBadOutput;
    for (int i = 0; i < s.outputs && !s.states; i++)
        if (!check(c, s.choices[i])) return kBadChoice;
    return kOk;
}

}  // namespace warmstart
