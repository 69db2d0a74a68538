// The rows of activations that the next product reads, as its weights need them.
#pragma once

#include <cstring>

#include "gemm.h"
#include "memory.h"
#include "tile_blocks.h"
#include "weights.h"

namespace warmstart {

class InputRows {
  public:
    // For `tokens` rows of up to `widest` columns.
    InputRows(size_t tokens, int widest) {
        const int groups = (widest + kGroup - 1) / kGroup;
        values_.reserve(tokens * widest);
        quantized_.reserve(tokens * widest);
        scale_.reserve(tokens * groups);
        offset_.reserve(tokens * groups);
        sum16_.reserve(tokens * (widest / 16));
        sum32_.reserve(tokens * (widest / 32));
        scaled16_.reserve(tokens * scaled_stride(widest, 16));
        scaled32_.reserve(tokens * scaled_stride(widest, 32));
        relative_.reserve(tokens * groups);
        unit_.reserve(tokens);
    }

    // The rows before they are ready, in float32.
    float* values() const { return values_.get(); }

    // Makes a row ready for the next product: quantized if the weights are.
    void ready(int token, const float* row, int columns, const Weights& next) {
        if (next.steps) {
            const size_t t = token, groups = (columns + kGroup - 1) / kGroup;
            int8_t* quantized = quantized_.get() + t * columns;
            float* scales = scale_.get() + t * groups;
            quantize(row, columns, quantized, scales, offset_.get() + t * groups);
            if (next.sums)
                sum_groups(quantized, scales, columns, sum16_.get() + t * (columns / 16),
                           sum32_.get() + t * (columns / 32), scaled16_.get() + t * scaled_stride(columns, 16),
                           scaled32_.get() + t * scaled_stride(columns, 32), relative_.get() + t * groups,
                           unit_.get() + t);
        }
        if (next.floats && row != values_.get() + (size_t)token * columns)
            std::memcpy(values_.get() + (size_t)token * columns, row, columns * sizeof(float));
    }

    // Copies a row that is ready, from other rows.
    void copy(const InputRows& from, int row, int to, int columns, const Weights& next) {
        const auto part = [&](auto& target, const auto& source, size_t width) {
            std::memcpy(target.get() + to * width, source.get() + row * width, width * sizeof *target.get());
        };
        const size_t groups = (columns + kGroup - 1) / kGroup;
        if (next.floats) part(values_, from.values_, columns);
        if (next.steps) {
            part(quantized_, from.quantized_, columns);
            part(scale_, from.scale_, groups), part(offset_, from.offset_, groups);
        }
        if (next.sums) {
            part(sum16_, from.sum16_, columns / 16), part(sum32_, from.sum32_, columns / 32);
            part(scaled16_, from.scaled16_, scaled_stride(columns, 16));
            part(scaled32_, from.scaled32_, scaled_stride(columns, 32));
            part(relative_, from.relative_, groups), part(unit_, from.unit_, 1);
        }
    }

    // The rows as a product of `columns` columns reads them.
    Activations view(int columns) const {
        Activations a;
        a.values = values_.get();
        a.quantized = quantized_.get();
        a.scales = scale_.get();
        a.offsets = offset_.get();
        a.sums16 = sum16_.get();
        a.sums32 = sum32_.get();
        a.scaled16 = scaled16_.get();
        a.scaled32 = scaled32_.get();
        a.relative = relative_.get();
        a.units = unit_.get();
        a.stride = columns;
        a.groups = (columns + kGroup - 1) / kGroup;
        return a;
    }

  private:
    Buffer<float> values_, scale_, relative_, unit_;
    Buffer<int8_t> quantized_;
    Buffer<uint32_t> offset_;
    Buffer<int32_t> sum16_, sum32_;
    Buffer<int16_t> scaled16_, scaled32_;
};

}  // namespace warmstart
