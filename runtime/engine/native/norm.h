// Norms and activation functions of rows of floats. Rows are padded with zeros to a multiple of 16 values.
#pragma once

#include "layout.h"
#include "vec.h"

namespace warmstart {

template <class Int>
inline Int padded(Int width) {
    return (width + kLanes - 1) / kLanes * kLanes;
}

// Normalizes a row in `stride` values, of which all but `count` are padding. The sums run over the lanes in one order, so
// the result never depends on other rows. `out` may be `x`. The padding of the weight is 0, so that of the result is, too.
inline void normalize(int norm, const float* x, int stride, int count, const float* weight, const float* bias,
                      float epsilon, float* out) {
    Floats total = {};
    float mean = 0;
    if (norm == kLayerNorm) {
        for (int i = 0; i < stride; i += kLanes) total += load(x + i);
        mean = sum(total) / count;
        total = Floats{};
    }
    for (int i = 0; i < stride; i += kLanes) {
        const Floats v = load(x + i) - splat(mean);
        total += v * v;
    }
    const float squares = sum(total) - (stride - count) * mean * mean;  // each value of the padding added the mean's square
    const float scale = 1.0f / std::sqrt(squares / count + epsilon);
    for (int i = 0; i < stride; i += kLanes) {
        Floats v = (load(x + i) - splat(mean)) * scale * load(weight + i);
        if (bias) v += load(bias + i);
        store(out + i, v);
    }
}

// tanh(x) = 1 - 2 / (1 + exp(2 x)).
inline Floats hyperbolic_tangent(Floats x) { return 1.0f - 2.0f / (exponential(x * 2.0f) + 1.0f); }

// erf(x) within 4.2e-7: x times a quotient of polynomials in x^2 on -4 ... 4, outside which erf rounds to -1 or 1. The
// coefficients are those of Eigen's `erf` of floats.
inline Floats error_function(Floats x) {
    x = maximum(-maximum(-x, splat(-4.0f)), splat(-4.0f));
    const Floats square = x * x;
    Floats p = splat(-2.72614225801306e-10f);
    p = p * square + 2.77068142495902e-08f;
    p = p * square - 2.10102402082508e-06f;
    p = p * square - 5.69250639462346e-05f;
    p = p * square - 7.34990630326855e-04f;
    p = p * square - 2.95459980854025e-03f;
    p = p * square - 1.60960333262415e-02f;
    Floats q = splat(-1.45660718464996e-05f);
    q = q * square - 2.13374055278905e-04f;
    q = q * square - 1.68282697438203e-03f;
    q = q * square - 7.37332916720468e-03f;
    q = q * square - 1.42647390514189e-02f;
    return x * p / q;
}

inline Floats activate(Floats x, int activation) {
    switch (activation) {
        case kSilu: return x / (exponential(-x) + 1.0f);
        case kGeluTanh: {
            // 0.5 x (1 + tanh y) = x / (1 + exp(-2 y))
            const Floats y = (x + x * x * x * 0.044715f) * 0.7978845608028654f;
            return x / (exponential(y * -2.0f) + 1.0f);
        }
        case kGelu: return x * 0.5f * (error_function(x * 0.70710678118654752f) + 1.0f);
        case kSquaredRelu: {
            const Floats positive = maximum(x, splat(0.0f));
            return positive * positive;
        }
        default: return maximum(x, splat(0.0f));
    }
}

// What a gated MLP passes on, activation(gate) x up, of gate and up in turn for each 16 values.
inline void activate_gated(const float* gate_up, int width, int activation, float* out) {
    for (int i = 0; i < width; i += kLanes)
        store(out + i, activate(load(gate_up + 2 * i), activation) * load(gate_up + 2 * i + kLanes));
}

}  // namespace warmstart
