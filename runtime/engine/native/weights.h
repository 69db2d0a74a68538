// A model's weights as products read them: the matrices of layout.h, in parts where a model has its weights in parts.
#pragma once

#include <algorithm>

#include "gemm.h"
#include "layout.h"
#include "tile_blocks.h"

namespace warmstart {

// The widths of a model's rows, padded.
struct Widths {
    int hidden, head_dim, heads, qkv, expert, vocabulary;
    int intermediate = 0;  // the largest of the layers' MLPs

    explicit Widths(const Config& c)
        : hidden(padded(c.hidden)), head_dim(padded(c.head_dim)), heads(c.heads * head_dim),
          qkv((c.heads + 2 * c.kv_heads) * head_dim), expert(padded(c.experts_intermediate)),
          vocabulary(padded(c.vocabulary)) {
        for (int i = 0; i < c.layers; i++) intermediate = std::max(intermediate, padded(c.layer[i].intermediate));
    }
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

    // The activations are read by the other weights, too.
    void read_with(const Weights& other) {
        steps |= other.steps, floats |= other.floats, sums |= other.sums;
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

// A projection into MLPs: of `rows` rows of gate and as many of up, or not gated, of `rows` rows.
inline Weights up_weights(const Tensor (&up)[2], bool gated, int rows, int columns) {
    if (!up[1].data) return weights(up[0], gated ? 2 * rows : rows, columns);
    Weights found;
    for (int i = 0; i < 2; i++) {
        Matrix part = matrix(up[i], rows, columns);
        part.first = i, part.step = 2, part.bias = up[0].bias;
        found.add(part);
    }
    return found;
}

// Some panels of a matrix without a bias, as a matrix of their own.
inline Matrix slice(const Matrix& w, int first_panel, int panels) {
    Matrix part = w;
    part.data += first_panel * w.panel_bytes();
    if (w.scales) part.scales += (size_t)first_panel * ((w.columns + kGroup - 1) / kGroup) * kLanes;
    part.rows = panels * kLanes;
    return part;
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
