// A model's weights as products read them: the matrices of layout.h, in parts where a model has its weights in parts.
#pragma once

#include "gemm.h"
#include "layout.h"
#include "tile_blocks.h"

namespace warmstart {

// The widths of a model's rows, padded.
struct Widths {
    int hidden, head_dim, intermediate, heads, qkv, up, vocabulary;

    explicit Widths(const Config& c)
        : hidden(padded(c.hidden)), head_dim(padded(c.head_dim)), intermediate(padded(c.intermediate)),
          heads(c.heads * head_dim), qkv((c.heads + 2 * c.kv_heads) * head_dim),
          up(c.gated ? 2 * intermediate : intermediate), vocabulary(padded(c.vocabulary)) {}
};

inline Matrix matrix(const Tensor& t, int rows, int columns) {
    Matrix w;
    w.data = (const uint8_t*)t.data;
    w.scales = t.scales;
    w.bias = t.bias;
    w.rows = padded(rows);
    w.columns = padded(columns);
    w.kind = t.kind;
    return w;
}

// The parts of a matrix, and what of the activations they read.
struct Weights {
    Matrix part[kMaxParts];
    int count = 0;
    bool floats = false, steps = false, sums = false;

    void add(const Matrix& w) {
        part[count++] = w;
        const bool quantized = w.kind == kInt8 || is_block(w.kind);
        steps |= quantized, floats |= !quantized, sums |= is_block(w.kind);
    }
};

inline Weights weights(const Tensor& t, int rows, int columns) {
    Weights found;
    found.add(matrix(t, rows, columns));
    return found;
}

// What a layer computes of the residual stream for its attention or convolution.
inline Weights mixer_weights(const Config& c, const Widths& w, const Layer& l) {
    if (l.kind == kConvolution) return weights(l.qkv[0], 3 * w.hidden, w.hidden);
    if (!l.qkv[1].data) return weights(l.qkv[0], w.qkv, w.hidden);
    const int keys = c.kv_heads * w.head_dim, rows[] = {w.heads, keys, keys};
    Weights found;
    for (int i = 0, first = 0; i < 3; first += rows[i++] / kLanes) {
        Matrix part = matrix(l.qkv[i], rows[i], w.hidden);
        part.first = first, part.bias = l.qkv[0].bias;
        found.add(part);
    }
    return found;
}

// What a layer computes of the residual stream for its MLP.
inline Weights up_weights(const Config& c, const Widths& w, const Layer& l) {
    if (!c.gated || !l.up[1].data) return weights(l.up[0], w.up, w.hidden);
    Weights found;
    for (int i = 0; i < 2; i++) {
        Matrix part = matrix(l.up[i], w.intermediate, w.hidden);
        part.first = i, part.step = 2, part.bias = l.up[0].bias;
        found.add(part);
    }
    return found;
}

// Copies a row of the embedding, which is packed as a matrix of weights.
inline void embedding(const Matrix& table, int id, float* x) {
    const int lane = id % kLanes;
    const uint8_t* panel = table.data + id / kLanes * table.panel_bytes();
    if (is_block(table.kind)) {
        unpack_row(table, id, x);
    } else if (table.kind == kInt8) {
        const int groups = (table.columns + kGroup - 1) / kGroup;
        const float* scales = table.scales + (size_t)(id / kLanes) * groups * kLanes + lane;
        for (int k = 0; k < table.columns; k++)
            x[k] = ((int)panel[(size_t)(k / 4) * 64 + lane * 4 + k % 4] - 128) * scales[k / kGroup * kLanes];
    } else if (table.kind == kBfloat16) {
        for (int k = 0; k < table.columns; k++) {
            const uint32_t bits = (uint32_t)((const uint16_t*)panel)[(size_t)(k / 2) * 32 + lane * 2 + k % 2] << 16;
            std::memcpy(x + k, &bits, 4);
        }
    } else if (table.kind == kFloat16) {
        for (int k = 0; k < table.columns; k++) x[k] = load_half((const uint16_t*)panel + (size_t)k * kLanes)[lane];
    } else {
        for (int k = 0; k < table.columns; k++) x[k] = ((const float*)panel)[(size_t)k * kLanes + lane];
    }
}

}  // namespace warmstart
