// A step of a decoder on the CPU, from token ids to chosen tokens.
//
// All sequences' tokens of a step pass through the linear layers together, packed [tokens, columns]. layout.h has the
// structures that describe the model and the step.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "check.h"
#include "experts.h"
#include "gemm.h"
#include "input_rows.h"
#include "layout.h"
#include "memory.h"
#include "mixers.h"
#include "norm.h"
#include "pool.h"
#include "positions.h"
#include "products.h"
#include "sample.h"
#include "weights.h"

namespace warmstart {

class Decoder {
  public:
    explicit Decoder(const Config& config)
        : c_(config), layer_(config.layer, config.layer + config.layers), w_(c_), pool_(config.threads), at_(c_),
          mixers_(c_, w_, pool_, at_), experts_(c_, w_, pool_), rows_(config.max_tokens, std::max({w_.hidden, w_.heads, w_.intermediate})),
          found_(pool_.threads()) {
        c_.layer = layer_.data();
        const size_t m = c_.max_tokens;
        x_.reserve(m * w_.hidden);
        if (!c_.transient) kept_.reserve(m * w_.hidden);
        if (c_.parallel || branches()) branch_.reserve(m * w_.hidden);
        wide_.reserve(m * std::max({w_.qkv, up_width(w_.intermediate), c_.convolution_width > 0 ? 3 * w_.hidden : 0}));
    }

    // Nothing is written before all of the step is checked. A step that is interrupted has chosen nothing; it is kept
    // until another one is interrupted, and other steps may run before it goes on.
    Status step(const Step& s) {
        if (const Status status = check(c_, s)) return status;
        if (s.resume && s.tokens != kept_tokens_) return kBadRows;
        const Pool::Awake awake(pool_);
        const int last = s.last_layer ? s.last_layer : c_.layers;
        at_.locate(s);
        mixers_.plan(s);
        int i = s.first_layer;
        if (!i) embed(s);
        if (s.resume) {  // with the angles, which embed has computed again
            x_.swap(kept_);
            i = kept_layer_;
            kept_tokens_ = 0;
        }
        for (; i < last; i++) {
            if (interrupted(s)) return keep(s, i);
            layer(s, i);
        }
        if (last < c_.layers) return kOk;
        if (interrupted(s)) return keep(s, i);
        output(s);
        return kOk;
    }

    Status copy_block(int source, int target) {
        if (!within(source, 0, c_.blocks - 1) || !within(target, 0, c_.blocks - 1)) return kBadBlock;
        if (source == target) return kOk;
        mixers_.cache().copy(source, target);
        return kOk;
    }

    // Sums `bytes` at `data`, read by all threads once.
    float read(const void* data, size_t bytes) {
        const int slices = (int)(bytes >> 16);
        std::vector<float> sums(slices);
        const Pool::Awake awake(pool_);
        pool_.run(slices, 4, [&](int first, int last, int) {
            for (int slice = first; slice < last; slice++) {
                const float* from = (const float*)((const uint8_t*)data + ((size_t)slice << 16));
                Floats acc[4] = {};
                for (int i = 0; i < (1 << 14); i += 4 * kLanes)
                    for (int j = 0; j < 4; j++) acc[j] += load(from + i + j * kLanes);
                sums[slice] = sum(acc[0] + acc[1] + acc[2] + acc[3]);
            }
        });
        float total = 0;
        for (float part : sums) total += part;
        return total;
    }

  private:
    bool interrupted(const Step& s) const {
        return s.interrupt && !c_.transient && __atomic_load_n(s.interrupt, __ATOMIC_RELAXED);
    }

    // Keeps a step that is interrupted before a layer, or before its output: between layers it is the residual stream.
    Status keep(const Step& s, int layer) {
        x_.swap(kept_);
        kept_layer_ = layer;
        kept_tokens_ = s.tokens;
        return kInterrupted;
    }

    // Whether the outputs of attention and MLP are normalized before they are added.
    bool branches() const { return layer_[0].attention_post_norm.data && !c_.norm_after_sum; }

    // Width of what leads into an MLP of a width.
    int up_width(int intermediate) const { return c_.gated ? 2 * intermediate : intermediate; }

    void multiply_all(int tokens, const Weights& w, int columns, float* out, int stride, float add = 0) {
        Job jobs[kMaxParts];
        for (int i = 0; i < w.count; i++) jobs[i] = {w.part[i], 0, tokens};
        multiply(pool_, rows_.view(columns), jobs, w.count, out, stride, add);
    }

    // Normalizes a row of the residual stream's width.
    void norm(const float* x, const Tensor& weight, float* out) const {
        normalize(c_.norm, x, w_.hidden, c_.hidden, (const float*)weight.data, weight.bias, c_.epsilon, out);
    }

    // Prepares the residual stream for a product, normalized if the layer has that norm. Before, with `sum_norm`, it is
    // itself normalized in its place.
    void prepare(int tokens, const Tensor& weight, const Weights& next, const Tensor* sum_norm = nullptr) {
        pool_.each(tokens, [&](int t, int) {
            float* x = x_.get() + (size_t)t * w_.hidden;
            if (sum_norm) norm(x, *sum_norm, x);
            float* out = rows_.values() + (size_t)t * w_.hidden;
            if (weight.data) {
                norm(x, weight, out);
                x = out;
            }
            rows_.ready(t, x, w_.hidden, next);
        });
    }

    // Adds what a layer has computed in branch_ to the residual stream, normalized if the layer has that norm.
    void add_branch(int tokens, const Tensor& weight, float factor) {
        pool_.each(tokens, [&](int t, int) {
            float *x = x_.get() + (size_t)t * w_.hidden, *branch = branch_.get() + (size_t)t * w_.hidden;
            if (weight.data) norm(branch, weight, branch);
            for (int i = 0; i < w_.hidden; i += kLanes) store(x + i, load(x + i) + load(branch + i) * factor);
        });
    }

    // Normalizes the residual stream in its place.
    void normalize_sum(int tokens, const Tensor& weight) {
        pool_.each(tokens, [&](int t, int) {
            float* x = x_.get() + (size_t)t * w_.hidden;
            norm(x, weight, x);
        });
    }

    void embed(const Step& s) {
        const Matrix table = matrix(c_.embed, c_.vocabulary, c_.hidden);
        pool_.each(s.tokens, [&](int t, int) {
            float* x = x_.get() + (size_t)t * w_.hidden;
            embedding(table, s.ids[t], x);
            if (c_.embedding_scale != 1)
                for (int k = 0; k < w_.hidden; k++) x[k] *= c_.embedding_scale;
            if (c_.positions) {
                const float* p = c_.positions + (size_t)at_.position(t) * w_.hidden;
                for (int k = 0; k < w_.hidden; k++) x[k] += p[k];
            }
            if (c_.types) {
                const float* type = c_.types + (size_t)(s.types ? s.types[t] : 0) * w_.hidden;
                for (int k = 0; k < w_.hidden; k++) x[k] += type[k];
            }
            if (c_.embed_norm.data) norm(x, c_.embed_norm, x);
            at_.compute_angles(s, t);
        });
    }

    // After the last layer's attention only the tokens with outputs are needed: moves their rows to the front.
    int keep_outputs(const Step& s, int width) {
        for (int i = 0; i < s.outputs; i++) {
            const int t = s.output_tokens[i];  // ascending, so nothing is overwritten before it is moved
            if (t == i) continue;
            float *mixed = rows_.values(), *x = x_.get();
            std::memcpy(mixed + (size_t)i * width, mixed + (size_t)t * width, width * sizeof(float));
            std::memcpy(x + (size_t)i * w_.hidden, x + (size_t)t * w_.hidden, w_.hidden * sizeof(float));
        }
        return s.outputs;
    }

    // Multiplies the prepared activations, and adds the result to the residual stream, or leaves it in branch_.
    void project(int tokens, const Weights& weights, int columns, bool separate) {
        multiply_all(tokens, weights, columns, separate ? branch_.get() : x_.get(), w_.hidden,
                     separate ? 0 : c_.residual_scale);
    }

    void layer(const Step& s, int index) {
        const Layer& l = layer_[index];
        const bool convolves = l.kind == kConvolution, attention_apart = c_.parallel || branches();
        const int in_width = convolves ? 3 * w_.hidden : w_.qkv, mixed_width = convolves ? w_.hidden : w_.heads;
        int m = s.tokens;
        const Weights in = mixer_weights(c_, w_, l), mixed = weights(l.attention_out, c_.hidden, mixed_width);
        prepare(m, l.attention_norm, in);
        multiply_all(m, in, w_.hidden, wide_.get(), in_width);
        mixers_.run(s, index, wide_.get(), rows_.values());
        if (index == c_.layers - 1) m = keep_outputs(s, mixed_width);
        if (!m) return;
        if (mixed.steps)
            pool_.each(m, [&](int t, int) {
                rows_.ready(t, rows_.values() + (size_t)t * mixed_width, mixed_width, mixed);
            });
        project(m, mixed, mixed_width, attention_apart);
        if (attention_apart && !c_.parallel) add_branch(m, l.attention_post_norm, c_.residual_scale);

        const bool routes = l.router.data;
        const int width = padded(l.intermediate), up_rows = up_width(width);
        const Weights up = up_weights(l.up, c_.gated, width, w_.hidden), down = weights(l.down, c_.hidden, width);
        Weights input = up;
        if (routes) experts_.read_by(l, input);
        prepare(m, c_.shared_norm ? l.attention_norm : l.mlp_norm, input,
                c_.norm_after_sum ? &l.attention_post_norm : nullptr);
        if (c_.parallel) add_branch(m, l.attention_post_norm, c_.residual_scale);  // now that the MLP has read its input
        if (routes) experts_.run(m, rows_, l);
        if (width) {
            multiply_all(m, up, w_.hidden, wide_.get(), up_rows);
            pool_.each(m, [&](int t, int) {
                const float* values = wide_.get() + (size_t)t * up_rows;
                float* out = rows_.values() + (size_t)t * width;
                if (c_.gated)
                    activate_gated(values, width, c_.activation, out);
                else
                    for (int i = 0; i < width; i += kLanes) store(out + i, activate(load(values + i), c_.activation));
                rows_.ready(t, out, width, down);
            });
            if (routes)
                multiply_all(m, down, width, experts_.shared(), w_.hidden);
            else
                project(m, down, width, branches());
        }
        if (routes)
            experts_.add(m, width > 0, branches() ? branch_.get() : x_.get(), branches() ? 0 : c_.residual_scale);
        if (branches()) add_branch(m, l.mlp_post_norm, c_.residual_scale);
        if (c_.norm_after_sum) normalize_sum(m, l.mlp_post_norm);
    }

    void output(const Step& s) {
        if (!s.outputs) return;
        if (s.states) {
            pool_.each(s.outputs, [&](int i, int) {
                float* x = x_.get() + (size_t)i * w_.hidden;
                if (c_.final_norm.data) norm(x, c_.final_norm, x);
                std::memcpy(s.states + (size_t)i * c_.hidden, x, c_.hidden * sizeof(float));
            });
            return;
        }
        const Weights head = weights(c_.head, c_.vocabulary, w_.hidden);
        pool_.each(s.outputs, [&](int i, int) {
            float* out = rows_.values() + (size_t)i * w_.hidden;
            const float* x = x_.get() + (size_t)i * w_.hidden;
            if (c_.final_norm.data) {
                norm(x, c_.final_norm, out);
                x = out;
            }
            rows_.ready(i, x, w_.hidden, head);
        });
        logits_.reserve((size_t)s.outputs * w_.vocabulary);
        multiply_all(s.outputs, head, w_.hidden, logits_.get(), w_.vocabulary);
        pool_.run(s.outputs, 1, [&](int first, int last, int thread) {
            for (int i = first; i < last; i++) {
                float* row = logits_.get() + (size_t)i * w_.vocabulary;
                if (c_.logit_scale != 1)
                    for (int j = 0; j < w_.vocabulary; j += kLanes) store(row + j, load(row + j) * c_.logit_scale);
                if (c_.logit_softcap != 0)
                    for (int j = 0; j < w_.vocabulary; j += kLanes)
                        store(row + j, hyperbolic_tangent(load(row + j) * (1.0f / c_.logit_softcap)) * c_.logit_softcap);
                if (s.logits)
                    std::memcpy(s.logits + (size_t)i * c_.vocabulary, row, c_.vocabulary * sizeof(float));
                choose(row, c_.vocabulary, s.choices[i], s.chosen[i], found_[thread]);
            }
        });
    }

    Config c_;
    std::vector<Layer> layer_;  // those of the configuration, which the caller may free
    Widths w_;
    Pool pool_;
    Positions at_;  // the tokens' places
    Mixers mixers_;
    Experts experts_;
    InputRows rows_;
    Buffer<float> x_, kept_, branch_, wide_, logits_;  // x_: the residual stream
    int kept_layer_ = 0, kept_tokens_ = 0;  // of the step that was interrupted last; 0 tokens if there is none
    std::vector<std::vector<Candidate>> found_;  // scratch of each thread
};

}  // namespace warmstart
