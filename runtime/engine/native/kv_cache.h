// The cache of keys and values, in blocks of 16 positions; of convolutions it has their inputs.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "attention_int8.h"
#include "layout.h"
#include "memory.h"

namespace warmstart {

// A block of a layer: keys and values of 16 positions, or what a convolution reads of them.
inline size_t block_bytes(const Config& c, int layer) {
    const int head_dim = padded(c.head_dim);
    if (c.layer[layer].kind == kConvolution)
        return (size_t)padded(c.hidden) * kBlockTokens * (c.kv_type == kFloat32KV ? 4 : 2);
    if (c.kv_type == kInt8KV) return c.kv_heads * int8_head_bytes(head_dim);
    return (size_t)2 * c.kv_heads * head_dim * kBlockTokens * (c.kv_type == kFloat32KV ? 4 : 2);
}

class KVCache {
  public:
    explicit KVCache(const Config& c) : layer_start_(layout(c)), pages_(layer_start_.back()) {
        for (int i = 0; i < c.layers; i++) block_bytes_.push_back(warmstart::block_bytes(c, i));
    }

    // Bytes of a layer's block.
    size_t block_bytes(int layer) const { return block_bytes_[layer]; }

    uint8_t* block(int layer, int block) const {
        return pages_.get() + layer_start_[layer] + block * block_bytes_[layer];
    }

    // Copies a block onto another one, in all layers.
    void copy(int source, int target) {
        for (size_t i = 0; i < block_bytes_.size(); i++)
            std::memcpy(block((int)i, target), block((int)i, source), block_bytes_[i]);
    }

  private:
    // Where each layer's blocks begin in the cache, and the cache's size, in bytes. What is kept for one layer only is
    // in the same place for all.
    static std::vector<size_t> layout(const Config& c) {
        std::vector<size_t> starts{0};
        size_t most = 0;
        for (int i = 0; i < c.layers; i++) {
            const size_t bytes = warmstart::block_bytes(c, i) * c.blocks;
            most = std::max(most, bytes);
            starts.push_back(c.transient ? 0 : starts.back() + bytes);
        }
        if (c.transient) starts.back() = most;
        return starts;
    }

    std::vector<size_t> layer_start_, block_bytes_;
    Pages pages_;
};

}  // namespace warmstart
