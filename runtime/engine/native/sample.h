// Choosing one row's next token. runtime/engine/pytorch/sampling.py says what is right; this gives the same answers.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "layout.h"
#include "vec.h"

namespace warmstart {

using Candidate = std::pair<float, int32_t>;  // logit, id

inline bool likelier(const Candidate& a, const Candidate& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
}

// The largest logit, or NaN if there is one.
inline float largest(const float* logits, int size) {
    Floats most = splat(-INFINITY);
    Ints odd = {};
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        const Floats v = load(logits + i);
        odd |= v != v;
        most = maximum(v, most);
    }
    float found = maximum(most);
    for (int lane = 0; lane < kLanes; lane++)
        if (odd[lane]) return NAN;
    for (; i < size; i++) {
        if (logits[i] != logits[i]) return NAN;
        found = std::max(found, logits[i]);
    }
    return found;
}

// The sum of exp((logit - top) / temperature) over all ids, as one order of adding fixes it.
inline double mass(const float* logits, int size, float top, float temperature) {
    const float inverse = 1.0f / temperature;
    double total = 0;
    int i = 0;
    while (i + kLanes <= size) {
        Floats part = {};
        for (int n = 0; n < 32 && i + kLanes <= size; n++, i += kLanes)
            part += exponential((load(logits + i) - splat(top)) * inverse);
        total += sum(part);
    }
    for (; i < size; i++) total += std::exp((logits[i] - top) * inverse);
    return total;
}

// The `count` likeliest ids, best first, ties in id order.
inline void likeliest(const float* logits, int size, int count, std::vector<Candidate>& found) {
    found.clear();
    count = std::min(count, size);
    const size_t limit = (size_t)count * 2 + 64;
    float threshold = -INFINITY;
    bool full = false;  // from then on an equal logit comes too late, its id being higher
    auto shrink = [&] {
        if (found.size() > (size_t)count) {
            std::nth_element(found.begin(), found.begin() + (count - 1), found.end(), likelier);
            found.resize(count);
            threshold = found[count - 1].first;
            full = true;
        }
    };
    auto consider = [&](int id) {
        if (full ? logits[id] > threshold : true) {
            found.emplace_back(logits[id], id);
            if (found.size() >= limit) shrink();
        }
    };
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        if (full) {
            const Ints above = load(logits + i) > splat(threshold);
#if defined(__AVX512F__)
            if (!_mm512_test_epi32_mask((__m512i)above, (__m512i)above)) continue;
#else
            Ints any = above;
            for (int width = kLanes / 2; width; width /= 2)
                for (int lane = 0; lane < width; lane++) any[lane] |= any[lane + width];
            if (!any[0]) continue;
#endif
        }
        for (int lane = 0; lane < kLanes; lane++) consider(i + lane);
    }
    for (; i < size; i++) consider(i);
    shrink();
    std::sort(found.begin(), found.end(), likelier);
}

// Sets the logits of all ids without a bit in the mask to -infinity.
inline void apply_mask(float* logits, int size, const uint32_t* mask) {
    for (int first = 0; first < size; first += 32) {
        const uint32_t word = mask[first / 32];
        if (word == ~0u) continue;
        const int count = std::min(32, size - first);
        for (int i = 0; i < count; i++) logits[first + i] = word >> i & 1 ? logits[first + i] : -INFINITY;
    }
}

// Changes the logits in place.
inline void choose(float* logits, int size, const Choice& how, Chosen& chosen, std::vector<Candidate>& found) {
    const float raw_top = largest(logits, size);
    chosen.failed = !std::isfinite(raw_top);
    chosen.tops = 0;
    chosen.id = 0;
    if (chosen.failed) return;
    double log_mass = 0;
    std::vector<Candidate> tops;
    if (how.logprobs >= 0) {
        log_mass = std::log(mass(logits, size, raw_top, 1.0f));
        if (how.logprobs) likeliest(logits, size, std::min(how.logprobs, kMaxLogprobs), tops);
    }
    std::vector<Candidate> kept;  // logits as they were, of the few ids that are changed below
    auto change = [&](int32_t id, float value) {
        if (how.logprobs >= 0) kept.emplace_back(logits[id], id);
        logits[id] = value;
    };
    for (int i = 0; i < how.biases; i++) change(how.bias_ids[i], logits[how.bias_ids[i]] + how.bias[i]);
    if (how.repetition_penalty != 1.0f)
        for (int i = 0; i < how.seen; i++) {
            const float value = logits[how.seen_ids[i]];
            change(how.seen_ids[i], value < 0 ? value * how.repetition_penalty : value / how.repetition_penalty);
        }
    for (int i = 0; i < how.counted; i++)
        change(how.counted_ids[i], logits[how.counted_ids[i]] -
                                       (how.presence_penalty + how.frequency_penalty * (float)how.counts[i]));
    for (int i = 0; i < how.bans; i++) change(how.banned[i], -INFINITY);
    if (how.mask) apply_mask(logits, size, how.mask);

    const bool changed = how.mask || how.biases || how.counted || how.bans || how.repetition_penalty != 1.0f;
    const float top = changed ? largest(logits, size) : raw_top;
    chosen.failed = top != top;  // a bias or penalty that is not a number, or too large, made it so
    if (chosen.failed) return;
    if (how.temperature == 0 || top == -INFINITY) {
        int id = 0;
        for (; id + kLanes <= size; id += kLanes) {
            const Ints same = load(logits + id) == splat(top);
            int32_t any = 0;
            for (int lane = 0; lane < kLanes; lane++) any |= same[lane];
            if (any) break;
        }
        while (logits[id] != top) id++;
        chosen.id = id;
    } else {
        const bool all = how.top_k == 0 || how.top_k >= size;
        const bool limited = how.top_p < 1 || how.min_p > 0;
        const double inverse = 1.0 / (double)how.temperature;
        const double everything = all ? mass(logits, size, top, how.temperature) : 0;
        std::vector<double> weights;  // of the likeliest: 1
        // With every token a candidate, sorting them all is seldom needed: take more until enough is seen.
        for (int want = all ? std::min(256, size) : how.top_k;; want = std::min(want * 8, size)) {
            likeliest(logits, size, want, found);
            const bool complete = !all || want == size;
            weights.clear();
            double total = 0;
            for (const Candidate& c : found) {
                weights.push_back(std::exp(((double)c.first - top) * inverse));
                total += weights.back();
            }
            if (all) total = everything;
            // A token stays while the probability before it has not yet reached top-p: at least one always does.
            double before = 0;
            size_t count = 0;
            while (count < weights.size() && (!count || ((how.top_p >= 1 || before < (double)how.top_p * total) &&
                                                         weights[count] >= (double)how.min_p)))
                before += weights[count++];
            if (limited && count == weights.size() && !complete) continue;  // the end of what is kept is not in sight
            const double target = how.u * (limited ? before : total);
            double passed = 0;
            size_t at = 0;
            while (at < count && (passed += weights[at]) <= target) at++;
            if (at == count && !complete) continue;
            chosen.id = found[std::min(at, count - 1)].second;
            break;
        }
    }
    if (how.logprobs >= 0) {
        float raw = logits[chosen.id];
        for (const Candidate& c : kept)
            if (c.second == chosen.id) {
                raw = c.first;
                break;
            }
        chosen.logprob = (float)((double)raw - raw_top - log_mass);
        chosen.tops = (int32_t)tops.size();
        for (size_t i = 0; i < tops.size(); i++) {
            chosen.top_ids[i] = tops[i].second;
            chosen.top_logprobs[i] = (float)((double)tops[i].first - raw_top - log_mass);
        }
    }
}

}  // namespace warmstart
