// Mixtures of experts: each token passes through a few of a layer's many MLPs, those to which a router gives the largest
// scores (arXiv:1701.06538).
//
// The rows of a step are grouped by expert, so that each expert's weights are read once, and one loop of the threads
// computes a projection of all experts. A row's result is the sum over its experts in the order in which they were chosen,
// and so never depends on the rows beside it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "input_rows.h"
#include "layout.h"
#include "memory.h"
#include "norm.h"
#include "pool.h"
#include "products.h"
#include "weights.h"

namespace warmstart {

class Experts {
  public:
    Experts(const Config& config, const Widths& widths, Pool& pool)
        : c_(config), w_(widths), pool_(pool), router_rows_(c_.experts ? padded(c_.experts + c_.shared_gate) : 0),
          slots_(c_.experts ? (size_t)c_.max_tokens * c_.experts_per_token : 0, std::max(w_.hidden, w_.expert)),
          ranked_(pool.threads()), ends_(c_.experts) {
        if (!c_.experts) return;
        const size_t m = c_.max_tokens, slots = m * c_.experts_per_token;
        logits_.reserve(m * router_rows_), shares_.reserve(m), weights_.reserve(slots);
        chosen_.reserve(slots), slot_.reserve(slots), token_.reserve(slots);
        wide_.reserve(slots * std::max(2 * w_.expert, w_.hidden));
        shared_.reserve(m * w_.hidden);
    }

    // What a layer's experts and router read of their input.
    void read_by(const Layer& l, Weights& input) const {
        input.read_with(router(l));
        input.read_with(up(l));
    }

    // Computes the outputs of the experts of each of the first `tokens` rows, which `add` sums up.
    void run(int tokens, const InputRows& rows, const Layer& l) {
        Job route{router(l).part[0], 0, tokens};
        multiply(pool_, rows.view(w_.hidden), &route, 1, logits_.get(), router_rows_);
        pool_.each(tokens, [&](int t, int thread) { choose(t, l, ranked_[thread]); });
        group(tokens);
        const int slots = tokens * c_.experts_per_token;
        const Weights into = up(l), down = weights(l.experts_down, c_.experts * w_.hidden, w_.expert);
        pool_.each(slots, [&](int slot, int) { slots_.copy(rows, token_.get()[slot], slot, w_.hidden, into); });
        project(into, w_.hidden, 2 * w_.expert);
        pool_.each(slots, [&](int slot, int) {
            const float* values = wide_.get() + (size_t)slot * 2 * w_.expert;
            float* out = slots_.values() + (size_t)slot * w_.expert;
            activate_gated(values, w_.expert, c_.activation, out);
            slots_.ready(slot, out, w_.expert, down);
        });
        project(down, w_.expert, w_.hidden);
    }

    // Where the output of the shared expert [tokens, hidden] belongs before `add`.
    float* shared() const { return shared_.get(); }

    // Adds the weighted outputs of a row's experts, and of the shared one if there is one, times `factor` to a row; or
    // writes them there if `factor` is 0.
    void add(int tokens, bool shared, float* to, float factor) {
        pool_.each(tokens, [&](int t, int) {
            const float* share = shared_.get() + (size_t)t * w_.hidden;
            float* row = to + (size_t)t * w_.hidden;
            for (int i = 0; i < w_.hidden; i += kLanes) {
                Floats sum = {};
                for (int k = t * c_.experts_per_token; k < (t + 1) * c_.experts_per_token; k++)
                    sum += load(wide_.get() + (size_t)slot_.get()[k] * w_.hidden + i) * weights_.get()[k];
                if (shared) sum += load(share + i) * shares_.get()[t];
                store(row + i, factor != 0 ? load(row + i) + sum * factor : sum);
            }
        });
    }

  private:
    struct Ranked {
        float score;
        int expert;
    };

    Weights router(const Layer& l) const { return weights(l.router, router_rows_, w_.hidden); }

    Weights up(const Layer& l) const { return up_weights(l.experts_up, true, c_.experts * w_.expert, w_.hidden); }

    // Chooses the experts of a row from the router's logits: those with the largest scores after the correction, of equal
    // ones those with the smaller index. Scores that are no numbers come last.
    void choose(int t, const Layer& l, std::vector<Ranked>& ranked) {
        float* scores = logits_.get() + (size_t)t * router_rows_;
        shares_.get()[t] = c_.shared_gate ? sigmoid(splat(scores[c_.experts]))[0] : 1;
        if (c_.router_scores == kSoftmax)
            softmax(scores);
        else
            for (int i = 0; i < router_rows_; i += kLanes) store(scores + i, sigmoid(load(scores + i)));
        const float* correction = (const float*)l.router_correction.data;
        ranked.clear();
        for (int i = 0; i < c_.experts; i++) {
            const float score = correction ? scores[i] + correction[i] : scores[i];
            ranked.push_back({std::isnan(score) ? -std::numeric_limits<float>::infinity() : score, i});
        }
        const int count = c_.experts_per_token;
        std::partial_sort(ranked.begin(), ranked.begin() + count, ranked.end(), [](const Ranked& a, const Ranked& b) {
            return a.score > b.score || (a.score == b.score && a.expert < b.expert);
        });
        float total = 0;
        for (int k = 0; k < count; k++) total += scores[ranked[k].expert];
        const float factor = c_.normalized ? c_.experts_scale / total : c_.experts_scale;
        for (int k = 0; k < count; k++) {
            chosen_.get()[(size_t)t * count + k] = ranked[k].expert;
            weights_.get()[(size_t)t * count + k] = scores[ranked[k].expert] * factor;
        }
    }

    static Floats sigmoid(Floats x) { return 1.0f / (exponential(-x) + 1.0f); }

    // In the place of the logits of all experts, with 0 behind them.
    void softmax(float* scores) const {
        Floats most = splat(-std::numeric_limits<float>::infinity()), total = {};
        for (int i = c_.experts; i < router_rows_; i++) scores[i] = most[0];
        for (int i = 0; i < router_rows_; i += kLanes) most = maximum(load(scores + i), most);
        const Floats largest = splat(maximum(most));
        for (int i = 0; i < router_rows_; i += kLanes) {
            const Floats power = exponential(load(scores + i) - largest);
            total += power;
            store(scores + i, power);
        }
        const Floats all = splat(sum(total));
        for (int i = 0; i < router_rows_; i += kLanes) store(scores + i, load(scores + i) / all);
    }

    // Gives each token's experts a slot: those of an expert lie side by side, in the tokens' order.
    void group(int tokens) {
        const int slots = tokens * c_.experts_per_token;
        std::fill(ends_.begin(), ends_.end(), 0);
        for (int k = 0; k < slots; k++) ends_[chosen_.get()[k]]++;
        for (int i = 0, first = 0; i < c_.experts; i++) {
            const int count = ends_[i];
            ends_[i] = first;
            first += count;
        }
        for (int k = 0; k < slots; k++) {
            const int slot = slot_.get()[k] = ends_[chosen_.get()[k]]++;
            token_.get()[slot] = k / c_.experts_per_token;
        }
    }

    // Multiplies each expert's slots with its part of the experts' matrices.
    void project(const Weights& w, int columns, int stride) {
        jobs_.clear();
        for (int i = 0, first = 0; i < c_.experts; first = ends_[i++])
            for (const Matrix* part = w.part; part < w.part + w.count && ends_[i] > first; part++) {
                const int panels = part->rows / kLanes / c_.experts;
                jobs_.push_back({slice(*part, i * panels, panels), first, ends_[i]});
            }
        multiply(pool_, slots_.view(columns), jobs_.data(), (int)jobs_.size(), wide_.get(), stride);
    }

    const Config& c_;
    const Widths& w_;
    Pool& pool_;
    int router_rows_;
    InputRows slots_;  // inputs of the experts: a row for each token and each of its experts, grouped by expert
    std::vector<std::vector<Ranked>> ranked_;  // scratch of each thread
    Buffer<float> logits_;  // [tokens, router_rows_], then the scores
    Buffer<float> shares_, weights_;  // [tokens] factors of the shared expert, [tokens, experts_per_token] of the others
    Buffer<int> chosen_, slot_, token_;  // [tokens, experts_per_token] experts and their slots; [slots] tokens
    Buffer<float> wide_, shared_;  // outputs of the slots, and of the shared expert
    std::vector<int> ends_;  // behind the last slot of each expert
    std::vector<Job> jobs_;
};

}  // namespace warmstart
