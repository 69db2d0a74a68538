// The positions of a step's tokens in their sequences, and the angles of their rotations.
#pragma once

#include <cmath>
#include <vector>

#include "layout.h"
#include "memory.h"
#include "vec.h"

namespace warmstart {

// Rotates the first 2 x count values of a head.
inline void rotate(float* x, const float* angles, int count) {
    int i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const Floats a = load(x + i), b = load(x + count + i), c = load(angles + i), s = load(angles + count + i);
        store(x + i, a * c - b * s);
        store(x + count + i, b * c + a * s);
    }
    for (; i < count; i++) {
        const float a = x[i], b = x[count + i];
        x[i] = a * angles[i] - b * angles[count + i];
        x[count + i] = b * angles[i] + a * angles[count + i];
    }
}

class Positions {
  public:
    explicit Positions(const Config& c) : rotation_(c.rotations, c.rotations + c.rotation_count) {
        for (const Rotation& rotation : rotation_) {
            start_.push_back(width_);
            width_ += 2 * (int)rotation.count;
        }
        angles_.reserve((size_t)c.max_tokens * width_);
    }

    // The position and the sequence of each token.
    void locate(const Step& s) {
        position_.resize(s.tokens);
        sequence_.resize(s.tokens);
        for (int i = 0; i < s.sequences; i++)
            for (int t = s.starts[i]; t < s.starts[i + 1]; t++) {
                position_[t] = s.at[i] + t - s.starts[i];
                sequence_[t] = i;
            }
    }

    int position(int token) const { return position_[token]; }
    int sequence(int token) const { return sequence_[token]; }

    // Computes the angles of a token's rotations: of each the cosines, then the sines.
    void compute_angles(const Step& s, int t) {
        for (size_t r = 0; r < rotation_.size(); r++) {
            const Rotation& rotation = rotation_[r];
            const bool long_text = s.long_texts[sequence_[t]] && rotation.long_frequencies;
            const float* frequencies = long_text ? rotation.long_frequencies : rotation.frequencies;
            float* angles = angles_.get() + (size_t)t * width_ + start_[r];
            for (uint64_t i = 0; i < rotation.count; i++) {
                const double angle = (float)position_[t] * frequencies[i];
                angles[i] = (float)std::cos(angle) * rotation.factor;
                angles[rotation.count + i] = (float)std::sin(angle) * rotation.factor;
            }
        }
    }

    // Rotates a token's heads, `width` values of `head_dim` each.
    void rotate_heads(int token, int rotation, float* heads, int width, int head_dim) const {
        const float* angles = angles_.get() + (size_t)token * width_ + start_[rotation];
        const int count = (int)rotation_[rotation].count;
        for (int at = 0; at < width; at += head_dim) rotate(heads + at, angles, count);
    }

  private:
    std::vector<Rotation> rotation_;
    std::vector<int> start_;  // of each rotation's angles in those of a token
    int width_ = 0;
    Buffer<float> angles_;
    std::vector<int32_t> position_, sequence_;  // of each token
};

}  // namespace warmstart
