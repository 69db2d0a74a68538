// What mixes the tokens of a sequence in a layer: attention, or a gated short convolution.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "attention.h"
#include "attention_int8.h"
#include "kv_cache.h"
#include "layout.h"
#include "memory.h"
#include "norm.h"
#include "pool.h"
#include "positions.h"
#include "weights.h"

namespace warmstart {

class Mixers {
  public:
    Mixers(const Config& config, const Widths& widths, Pool& pool, const Positions& positions)
        : c_(config), w_(widths), pool_(pool), at_(positions), cache_(config), scores_(pool.threads()),
          queries_(pool.threads()) {}

    KVCache& cache() { return cache_; }

    // Divides the attention of a step into tasks.
    void plan(const Step& s) {
        task_.clear();
        const int group = c_.heads / c_.kv_heads, together = std::max(1, kQueries / group);
        for (int i = 0; i < s.sequences; i++) {
            for (int t = s.starts[i]; t < s.starts[i + 1]; t += together)
                for (int h = 0; h < c_.kv_heads; h++)
                    task_.push_back({i, h, t, std::min(together, s.starts[i + 1] - t)});
        }
    }

    // Computes a layer's attention or convolution, and stores what later steps need of it.
    //
    // `wide` has queries, keys and values, or the projections B, C and X of a convolution; queries and keys are prepared
    // in their place. `mixed` gets the result.
    void run(const Step& s, int layer, float* wide, float* mixed) {
        if (c_.layer[layer].kind == kConvolution)
            c_.kv_type == kFloat32KV ? convolution<float>(s, layer, wide, mixed)
                                     : convolution<uint16_t>(s, layer, wide, mixed);
        else if (c_.kv_type == kFloat32KV)
            attention<float>(s, layer, wide, mixed);
        else
            c_.kv_type == kFloat16KV ? attention<uint16_t>(s, layer, wide, mixed)
                                     : attention<uint8_t>(s, layer, wide, mixed);
    }

  private:
    // Queries that are computed together: a few tokens of one sequence, for one key-value head.
    struct Task {
        int sequence, kv_head, first, count;  // tokens
    };

    // Normalizes the queries or keys of a token: each head alone, or all at once.
    void norm_heads(float* x, int heads, const Tensor& weight) const {
        const float* w = (const float*)weight.data;
        if (c_.qk_norm == kFullNorm) {
            normalize(c_.norm, x, heads * w_.head_dim, heads * c_.head_dim, w, weight.bias, c_.epsilon, x);
        } else if (c_.qk_norm == kHeadNorm) {
            for (int at = 0; at < heads * w_.head_dim; at += w_.head_dim)
                normalize(c_.norm, x + at, w_.head_dim, c_.head_dim, w + at, weight.bias ? weight.bias + at : nullptr,
                          c_.epsilon, x + at);
        }
    }

    // The block that holds a token's position in a layer.
    template <class T>
    T* block_of(const Step& s, int layer_index, int sequence, int position) const {
        return (T*)cache_.block(layer_index, s.blocks[s.tables[sequence] + position / kBlockTokens]);
    }

    // Normalizes, rotates and scales a token's queries, and normalizes and rotates its keys.
    void prepare_queries(const Layer& l, int t, float* wide) {
        float* q = wide + (size_t)t * w_.qkv;
        float* k = q + w_.heads;
        norm_heads(q, c_.heads, l.q_norm);
        norm_heads(k, c_.kv_heads, l.k_norm);
        if (l.rotation >= 0) {
            at_.rotate_heads(t, l.rotation, q, w_.heads, w_.head_dim);
            at_.rotate_heads(t, l.rotation, k, c_.kv_heads * w_.head_dim, w_.head_dim);
        }
        for (int i = 0; i < w_.heads; i++) q[i] *= c_.attention_scale;
    }

    // Stores a token's keys and values.
    template <class T>
    void store_keys(const Step& s, int layer_index, int t, int thread, const float* wide) {
        const float* k = wide + (size_t)t * w_.qkv + w_.heads;
        const float* v = k + (size_t)c_.kv_heads * w_.head_dim;
        const int position = at_.position(t), offset = position % kBlockTokens;
        T* base = block_of<T>(s, layer_index, at_.sequence(t), position);
        for (int h = 0; h < c_.kv_heads; h++) {
            const float *key = k + (size_t)h * w_.head_dim, *value = v + (size_t)h * w_.head_dim;
            if constexpr (std::is_same_v<T, uint8_t>) {
                queries_[thread].reserve(int8_scratch(w_.head_dim));
                const Int8Head head(base + h * int8_head_bytes(w_.head_dim), w_.head_dim);
                store_int8(head, offset, key, value, w_.head_dim, (int8_t*)queries_[thread].get());
            } else {
                T* keys = base + (size_t)h * 2 * w_.head_dim * kBlockTokens;
                T* values = keys + (size_t)w_.head_dim * kBlockTokens + (size_t)offset * w_.head_dim;
                for (int d = 0; d < w_.head_dim; d += kLanes) {
                    T sixteen[kLanes];
                    store_kv(sixteen, load(key + d));
                    for (int i = 0; i < kLanes; i++) keys[(size_t)(d + i) * kBlockTokens + offset] = sixteen[i];
                    store_kv(values + d, load(value + d));
                }
            }
        }
    }

    // A gated short convolution (LFM2): y = C x conv(B x X) for the projections B, C and X of the input. The products of
    // all positions are in the cache, where attention layers have keys and values.
    template <class T>
    void convolution(const Step& s, int layer_index, const float* wide, float* mixed) {
        const Tensor& weight = c_.layer[layer_index].convolution;
        pool_.each(s.tokens, [&](int t, int) {
            const float *b = wide + (size_t)t * 3 * w_.hidden, *x = b + 2 * w_.hidden;
            const int position = at_.position(t);
            T* cached = block_of<T>(s, layer_index, at_.sequence(t), position) +
                        (size_t)position % kBlockTokens * w_.hidden;
            for (int i = 0; i < w_.hidden; i += kLanes) store_kv(cached + i, load(b + i) * load(x + i));
        });
        pool_.each(s.tokens, [&](int t, int) {
            const float* gate = wide + (size_t)t * 3 * w_.hidden + w_.hidden;
            float* out = mixed + (size_t)t * w_.hidden;
            for (int i = 0; i < w_.hidden; i += kLanes)
                store(out + i, weight.bias ? load(weight.bias + i) : Floats{});
            for (int w = std::max(0, c_.convolution_width - 1 - at_.position(t)); w < c_.convolution_width; w++) {
                const int position = at_.position(t) - (c_.convolution_width - 1) + w;
                const T* cached = block_of<T>(s, layer_index, at_.sequence(t), position) +
                                  (size_t)position % kBlockTokens * w_.hidden;
                const float* taps = (const float*)weight.data + (size_t)w * w_.hidden;
                for (int i = 0; i < w_.hidden; i += kLanes)
                    store(out + i, load(out + i) + load_kv<T>(cached + i) * load(taps + i));
            }
            for (int i = 0; i < w_.hidden; i += kLanes) store(out + i, load(out + i) * load(gate + i));
        });
    }

    template <class T>
    void attention(const Step& s, int layer_index, float* wide, float* mixed) {
        pool_.each(s.tokens, [&](int t, int thread) {
            prepare_queries(c_.layer[layer_index], t, wide);
            store_keys<T>(s, layer_index, t, thread, wide);
        });
        const int group = c_.heads / c_.kv_heads, window = c_.layer[layer_index].window;
        const size_t stride = cache_.block_bytes(layer_index) / sizeof(T), head_stride = stride / c_.kv_heads;
        pool_.run((int)task_.size(), 1, [&](int first, int last, int thread) {
            for (int i = first; i < last; i++) {
                const Task& task = task_[i];
                T* base = (T*)cache_.block(layer_index, 0) + task.kv_head * head_stride;
                const int32_t* blocks = s.blocks + s.tables[task.sequence];
                Query queries[kQueries];
                int count = 0;
                auto flush = [&] {
                    const BlockRange range(queries, count);
                    scores_[thread].reserve((size_t)kQueries * range.positions());
                    if constexpr (std::is_same_v<T, uint8_t>) {
                        queries_[thread].reserve(int8_scratch(w_.head_dim));
                        attend_int8(queries, count, range, base, stride, blocks, w_.head_dim, c_.attention_softcap,
                                    scores_[thread].get(), queries_[thread].get());
                    } else {
                        attend<T>(queries, count, range, base, stride, blocks, w_.head_dim, c_.attention_softcap,
                                  scores_[thread].get());
                    }
                    count = 0;
                };
                for (int t = task.first; t < task.first + task.count; t++)
                    for (int g = 0; g < group; g++) {
                        const int head = task.kv_head * group + g, position = at_.position(t);
                        const size_t at = (size_t)head * w_.head_dim, distances = 2 * (size_t)c_.relative_range + 1;
                        int length = position + 1;
                        if (c_.bidirectional) {
                            const int end = s.starts[task.sequence + 1] - s.starts[task.sequence];
                            length = window ? (int)std::min((int64_t)end, (int64_t)position + window) : end;
                        }
                        queries[count++] = {wide + (size_t)t * w_.qkv + at,
                                            mixed + (size_t)t * w_.heads + at,
                                            window ? std::max(0, position - window + 1) : 0, length,
                                            c_.alibi_slopes ? c_.alibi_slopes[head] : 0,
                                            c_.relative_bias ? c_.relative_bias + head * distances : nullptr,
                                            c_.relative_range, position};
                        if (count == kQueries) flush();
                    }
                if (count) flush();
            }
        });
    }

    const Config& c_;
    const Widths& w_;
    Pool& pool_;
    const Positions& at_;
    KVCache cache_;
    std::vector<Task> task_;
    std::vector<Buffer<float>> scores_;  // scratch of each thread
    std::vector<Buffer<uint8_t>> queries_;  // likewise, in 8 bits
};

}  // namespace warmstart
