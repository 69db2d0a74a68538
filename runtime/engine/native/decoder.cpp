// A step of a GPT-2 or Llama decoder on the CPU, from token ids to chosen tokens, in one call without Python.
//
// All sequences' tokens of a step pass through the linear layers together, packed [tokens, columns]. layout.h has the
// structures that describe the model and the step.

#include <sys/mman.h>

#include <cstdlib>
#include <new>
#include <system_error>
#include <vector>

#include "attention.h"
#include "check.h"
#include "gemm.h"
#include "layout.h"
#include "pool.h"
#include "sample.h"

namespace warmstart {

template <class T>
class Buffer {  // aligned, never initialized
  public:
    void reserve(size_t count) {
        if (count <= size_) return;
        std::free(data_);
        size_ = count;
        data_ = (T*)std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
        if (!data_) {
            size_ = 0;
            throw std::bad_alloc();
        }
    }
    ~Buffer() { std::free(data_); }
    T* get() const { return data_; }

  private:
    T* data_ = nullptr;
    size_t size_ = 0;
};

// Memory for keys and values: pages come into being when first written, so an idle service holds none of it.
class Pages {
  public:
    explicit Pages(size_t bytes) : bytes_(bytes) {
        void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (found == MAP_FAILED) throw std::bad_alloc();
        data_ = (uint8_t*)found;
    }
    ~Pages() { munmap(data_, bytes_); }
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    uint8_t* get() const { return data_; }

  private:
    uint8_t* data_;
    size_t bytes_;
};

inline Floats activate(Floats x, int activation) {
    switch (activation) {
        case kSilu: return x / (exponential(-x) + 1.0f);
        case kGeluTanh: {
            // 0.5 x (1 + tanh y) = x / (1 + exp(-2 y))
            const Floats y = (x + x * x * x * 0.044715f) * 0.7978845608028654f;
            return x / (exponential(y * -2.0f) + 1.0f);
        }
        case kGelu:
            for (int i = 0; i < kLanes; i++) x[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678118654752f));
            return x;
        default: return maximum(x, splat(0.0f));
    }
}

class Decoder {
  public:
    explicit Decoder(const Config& config)
        : c_(config), layer_(config.layer, config.layer + config.layers), pool_(config.threads),
          kv_block_((size_t)2 * c_.head_dim * kBlockTokens * (c_.half_kv ? 2 : 4)),
          kv_(kv_block_ * c_.kv_heads * c_.blocks * c_.layers), found_(pool_.threads()), scores_(pool_.threads()) {
        heads_width_ = c_.heads * c_.head_dim;
        qkv_width_ = (c_.heads + 2 * c_.kv_heads) * c_.head_dim;
        up_width_ = c_.family == kLlama ? 2 * c_.intermediate : c_.intermediate;
        vocabulary_width_ = (c_.vocabulary + kLanes - 1) / kLanes * kLanes;
        const size_t m = c_.max_tokens;
        const int widest = std::max({c_.hidden, heads_width_, c_.intermediate});
        x_.reserve(m * c_.hidden);
        normed_.reserve(m * widest);
        wide_.reserve(m * std::max(qkv_width_, up_width_));
        rope_.reserve(m * c_.head_dim);
        groups_ = (widest + kGroup - 1) / kGroup;
        quantized_.reserve(m * widest);
        scale_.reserve(m * groups_);
        offset_.reserve(m * groups_);
    }

    // Nothing is written before all of the step is checked.
    Status step(const Step& s) {
        if (const Status status = check(c_, s)) return status;
        const Pool::Awake awake(pool_);
        embed(s);
        for (int i = 0; i < c_.layers; i++) layer(s, i);
        output(s);
        return kOk;
    }

    Status copy_block(int source, int target) {
        if (!within(source, 0, c_.blocks - 1) || !within(target, 0, c_.blocks - 1)) return kBadBlock;
        if (source == target) return kOk;
        for (int i = 0; i < c_.layers; i++)
            std::memcpy(block(i, target), block(i, source), kv_block_ * c_.kv_heads);
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
    static constexpr int kAlone = 2;   // tokens up to which row-wise work stays on the calling thread

    uint8_t* block(int layer, int block) const {
        return kv_.get() + ((size_t)layer * c_.blocks + block) * kv_block_ * c_.kv_heads;
    }

    Matrix matrix(const Tensor& t, int rows, int columns) const {
        Matrix w;
        w.data = (const uint8_t*)t.data;
        w.scales = t.scales;
        w.bias = t.bias;
        w.rows = (rows + kLanes - 1) / kLanes * kLanes;
        w.columns = columns;
        w.kind = c_.kind;
        return w;
    }

    // Calls body(token, thread) for each.
    template <class Body>
    void each(int tokens, const Body& body) {
        pool_.run(tokens, tokens <= kAlone ? tokens : std::max(1, tokens / (pool_.threads() * 4)),
                  [&](int first, int last, int thread) {
                      for (int t = first; t < last; t++) body(t, thread);
                  });
    }

    // Hands a row of activations to the next product, in the form that the weights want.
    void ready(int token, const float* row, int columns) {
        if (c_.kind == kInt8) {
            const int groups = (columns + kGroup - 1) / kGroup;
            quantize(row, columns, quantized_.get() + (size_t)token * columns, scale_.get() + (size_t)token * groups,
                     offset_.get() + (size_t)token * groups);
        } else if (row != normed_.get() + (size_t)token * columns) {
            std::memcpy(normed_.get() + (size_t)token * columns, row, columns * sizeof(float));
        }
    }

    Activations activations(int columns) const {
        Activations a;
        a.values = normed_.get();
        a.quantized = quantized_.get();
        a.scales = scale_.get();
        a.offsets = offset_.get();
        a.stride = columns;
        a.groups = (columns + kGroup - 1) / kGroup;
        return a;
    }

    void norm(const float* x, const Tensor& weight, float* out) const {
        const float* w = (const float*)weight.data;
        Floats total = {};
        float mean = 0;
        if (c_.family == kGpt2) {
            for (int i = 0; i < c_.hidden; i += kLanes) total += load(x + i);
            mean = sum(total) / c_.hidden;
            total = Floats{};
        }
        for (int i = 0; i < c_.hidden; i += kLanes) {
            const Floats v = load(x + i) - splat(mean);
            total += v * v;
        }
        const float scale = 1.0f / std::sqrt(sum(total) / c_.hidden + c_.epsilon);
        for (int i = 0; i < c_.hidden; i += kLanes) {
            Floats v = (load(x + i) - splat(mean)) * scale * load(w + i);
            if (weight.bias) v += load(weight.bias + i);
            store(out + i, v);
        }
    }

    void norm_all(int tokens, const Tensor& weight) {
        each(tokens, [&](int t, int) {
            float* out = normed_.get() + (size_t)t * c_.hidden;
            norm(x_.get() + (size_t)t * c_.hidden, weight, out);
            ready(t, out, c_.hidden);
        });
    }

    void embed(const Step& s) {
        const Matrix table = matrix(c_.embed, c_.vocabulary, c_.hidden);
        position_.resize(s.tokens);
        for (int i = 0; i < s.sequences; i++)
            for (int t = s.starts[i]; t < s.starts[i + 1]; t++) position_[t] = s.at[i] + t - s.starts[i];
        each(s.tokens, [&](int t, int) {
            const int id = s.ids[t], lane = id % kLanes;
            const uint8_t* panel = table.data + id / kLanes * table.panel_bytes();
            float* x = x_.get() + (size_t)t * c_.hidden;
            if (c_.kind == kInt8) {
                const int groups = (c_.hidden + kGroup - 1) / kGroup;
                const float* scales = table.scales + (size_t)(id / kLanes) * groups * kLanes + lane;
                for (int k = 0; k < c_.hidden; k++)
                    x[k] = ((int)panel[(size_t)(k / 4) * 64 + lane * 4 + k % 4] - 128) * scales[k / kGroup * kLanes];
            } else if (c_.kind == kBfloat16) {
                for (int k = 0; k < c_.hidden; k++) {
                    const uint32_t bits = (uint32_t)((const uint16_t*)panel)[(size_t)(k / 2) * 32 + lane * 2 + k % 2] << 16;
                    std::memcpy(x + k, &bits, 4);
                }
            } else {
                for (int k = 0; k < c_.hidden; k++) x[k] = ((const float*)panel)[(size_t)k * kLanes + lane];
            }
            if (c_.family == kGpt2) {
                const float* p = c_.positions + (size_t)position_[t] * c_.hidden;
                for (int k = 0; k < c_.hidden; k++) x[k] += p[k];
            } else {  // cos, then sin, of this position's angles
                const int half = c_.head_dim / 2;
                float* angles = rope_.get() + (size_t)t * c_.head_dim;
                for (int i = 0; i < half; i++) {
                    const double angle = (float)position_[t] * c_.inverse_frequencies[i];
                    angles[i] = (float)std::cos(angle) * c_.rope_factor;
                    angles[half + i] = (float)std::sin(angle) * c_.rope_factor;
                }
            }
        });
    }

    void rotate(float* x, const float* angles) const {
        const int half = c_.head_dim / 2;
        int i = 0;
        for (; i + kLanes <= half; i += kLanes) {
            const Floats a = load(x + i), b = load(x + half + i), c = load(angles + i), s = load(angles + half + i);
            store(x + i, a * c - b * s);
            store(x + half + i, b * c + a * s);
        }
        for (; i < half; i++) {
            const float a = x[i], b = x[half + i];
            x[i] = a * angles[i] - b * angles[half + i];
            x[half + i] = b * angles[i] + a * angles[half + i];
        }
    }

    // Rotates a token's queries and keys, and stores its keys and values.
    template <class T>
    void place(const Step& s, int layer_index, int t, int sequence) {
        float* q = wide_.get() + (size_t)t * qkv_width_;
        float* k = q + heads_width_;
        const float* v = k + (size_t)c_.kv_heads * c_.head_dim;
        const float* angles = rope_.get() + (size_t)t * c_.head_dim;
        const float scale = 1.0f / std::sqrt((float)c_.head_dim);
        for (int h = 0; h < c_.heads; h++) {
            if (c_.family == kLlama) rotate(q + (size_t)h * c_.head_dim, angles);
            for (int d = 0; d < c_.head_dim; d++) q[(size_t)h * c_.head_dim + d] *= scale;
        }
        const int position = position_[t], offset = position % kBlockTokens;
        T* base = (T*)block(layer_index, s.blocks[s.tables[sequence] + position / kBlockTokens]);
        for (int h = 0; h < c_.kv_heads; h++) {
            float* key = k + (size_t)h * c_.head_dim;
            if (c_.family == kLlama) rotate(key, angles);
            T* keys = base + (size_t)h * 2 * c_.head_dim * kBlockTokens;
            T* values = keys + (size_t)c_.head_dim * kBlockTokens + (size_t)offset * c_.head_dim;
            for (int d = 0; d < c_.head_dim; d += kLanes) {
                T sixteen[kLanes];
                store_kv(sixteen, load(key + d));
                for (int i = 0; i < kLanes; i++) keys[(size_t)(d + i) * kBlockTokens + offset] = sixteen[i];
                store_kv(values + d, load(v + (size_t)h * c_.head_dim + d));
            }
        }
    }

    struct Task {
        int sequence, kv_head, first, count;  // tokens
    };

    template <class T>
    void attention(const Step& s, int layer_index) {
        each(s.tokens, [&](int t, int) { place<T>(s, layer_index, t, sequence_[t]); });
        const int group = c_.heads / c_.kv_heads;
        const size_t stride = kv_block_ * c_.kv_heads / sizeof(T);
        pool_.run((int)task_.size(), 1, [&](int first, int last, int thread) {
            for (int i = first; i < last; i++) {
                const Task& task = task_[i];
                const T* base = (const T*)block(layer_index, 0) + (size_t)task.kv_head * 2 * c_.head_dim * kBlockTokens;
                const int32_t* blocks = s.blocks + s.tables[task.sequence];
                Query queries[kQueries];
                int count = 0;
                auto flush = [&] {
                    int longest = 0;
                    for (int j = 0; j < count; j++) longest = std::max(longest, queries[j].length);
                    scores_[thread].reserve((size_t)kQueries * (longest + kBlockTokens));
                    attend<T>(queries, count, base, stride, blocks, c_.head_dim, scores_[thread].get());
                    count = 0;
                };
                for (int t = task.first; t < task.first + task.count; t++)
                    for (int g = 0; g < group; g++) {
                        const size_t at = (size_t)(task.kv_head * group + g) * c_.head_dim;
                        queries[count++] = {wide_.get() + (size_t)t * qkv_width_ + at,
                                            query_out(t) + at, position_[t] + 1};
                        if (count == kQueries) flush();
                    }
                if (count) flush();
            }
        });
    }

    float* query_out(int t) const { return normed_.get() + (size_t)t * heads_width_; }

    // Who attends together: a few tokens of one sequence, for one key-value head.
    void plan(const Step& s) {
        task_.clear();
        sequence_.resize(s.tokens);
        const int group = c_.heads / c_.kv_heads, together = std::max(1, kQueries / group);
        for (int i = 0; i < s.sequences; i++) {
            for (int t = s.starts[i]; t < s.starts[i + 1]; t++) sequence_[t] = i;
            for (int t = s.starts[i]; t < s.starts[i + 1]; t += together)
                for (int h = 0; h < c_.kv_heads; h++)
                    task_.push_back({i, h, t, std::min(together, s.starts[i + 1] - t)});
        }
    }

    // Behind the last attention only the tokens that something is chosen behind matter: moves them to the front.
    int keep_outputs(const Step& s) {
        for (int i = 0; i < s.outputs; i++) {
            const int t = s.output_tokens[i];  // ascending, so nothing is overwritten before it is moved
            if (t == i) continue;
            std::memcpy(query_out(i), query_out(t), heads_width_ * sizeof(float));
            std::memcpy(x_.get() + (size_t)i * c_.hidden, x_.get() + (size_t)t * c_.hidden, c_.hidden * sizeof(float));
        }
        return s.outputs;
    }

    void layer(const Step& s, int index) {
        const Layer& l = layer_[index];
        int m = s.tokens;
        if (index == 0) plan(s);
        norm_all(m, l.attention_norm);
        multiply(pool_, activations(c_.hidden), m, matrix(l.qkv, qkv_width_, c_.hidden), wide_.get(), qkv_width_);
        if (c_.half_kv)
            attention<uint16_t>(s, index);
        else
            attention<float>(s, index);
        if (index == c_.layers - 1) m = keep_outputs(s);
        if (!m) return;
        if (c_.kind == kInt8) each(m, [&](int t, int) { ready(t, query_out(t), heads_width_); });
        multiply(pool_, activations(heads_width_), m, matrix(l.attention_out, c_.hidden, heads_width_), x_.get(), c_.hidden,
                 true);
        norm_all(m, l.mlp_norm);
        multiply(pool_, activations(c_.hidden), m, matrix(l.up, up_width_, c_.hidden), wide_.get(), up_width_);
        each(m, [&](int t, int) {
            const float* up = wide_.get() + (size_t)t * up_width_;
            float* out = normed_.get() + (size_t)t * c_.intermediate;
            for (int i = 0; i < c_.intermediate; i += kLanes) {
                if (c_.family == kLlama)
                    store(out + i, activate(load(up + 2 * i), c_.activation) * load(up + 2 * i + kLanes));
                else
                    store(out + i, activate(load(up + i), c_.activation));
            }
            ready(t, out, c_.intermediate);
        });
        multiply(pool_, activations(c_.intermediate), m, matrix(l.down, c_.hidden, c_.intermediate), x_.get(), c_.hidden,
                 true);
    }

    void output(const Step& s) {
        if (!s.outputs) return;
        each(s.outputs, [&](int i, int) {
            float* out = normed_.get() + (size_t)i * c_.hidden;
            norm(x_.get() + (size_t)i * c_.hidden, c_.final_norm, out);
            ready(i, out, c_.hidden);
        });
        logits_.reserve((size_t)s.outputs * vocabulary_width_);
        multiply(pool_, activations(c_.hidden), s.outputs, matrix(c_.head, c_.vocabulary, c_.hidden), logits_.get(),
                 vocabulary_width_);
        pool_.run(s.outputs, 1, [&](int first, int last, int thread) {
            for (int i = first; i < last; i++) {
                float* row = logits_.get() + (size_t)i * vocabulary_width_;
                if (s.logits)
                    std::memcpy(s.logits + (size_t)i * c_.vocabulary, row, c_.vocabulary * sizeof(float));
                choose(row, c_.vocabulary, s.choices[i], s.chosen[i], found_[thread]);
            }
        });
    }

    Config c_;
    std::vector<Layer> layer_;
    Pool pool_;
    int heads_width_, qkv_width_, up_width_, vocabulary_width_, groups_;
    size_t kv_block_;  // bytes of a block of one key-value head
    Pages kv_;
    Buffer<float> x_, normed_, wide_, rope_, scale_, logits_;
    Buffer<int8_t> quantized_;
    Buffer<uint32_t> offset_;
    std::vector<int32_t> position_, sequence_;
    std::vector<Task> task_;
    std::vector<std::vector<Candidate>> found_;  // scratch of each thread
    std::vector<Buffer<float>> scores_;
};

}  // namespace warmstart

using warmstart::Config;
using warmstart::Decoder;
using warmstart::Step;

namespace {

// No exception leaves the library: Python would end with it.
template <class Body>
int32_t status_of(const Body& body) {
    try {
        return body();
    } catch (const std::system_error&) {
        return warmstart::kNoThreads;
    } catch (...) {
        return warmstart::kNoMemory;
    }
}

}  // namespace

extern "C" {

// The layout of the shared structures, and how many numbers that is: see kLayout.
const int32_t* warmstart_layout(int32_t* count) {
    *count = sizeof(warmstart::kLayout) / sizeof(int32_t);
    return warmstart::kLayout;
}

// What a status means. 0 is success, 1 a lack of memory.
const char* warmstart_describe(int32_t status) { return warmstart::describe(status); }

// Returns a status; `decoder` is set if it is 0.
int32_t warmstart_open(const Config* config, void** decoder) {
    return status_of([&] {
        const warmstart::Status status = check(*config);
        if (status == warmstart::kOk) *decoder = new Decoder(*config);
        return status;
    });
}

// Returns a status.
int32_t warmstart_step(void* decoder, const Step* step) {
    if (!decoder) return warmstart::kClosed;
    return status_of([&] { return ((Decoder*)decoder)->step(*step); });
}

// Returns a status.
int32_t warmstart_copy_block(void* decoder, int32_t source, int32_t target) {
    if (!decoder) return warmstart::kClosed;
    return status_of([&] { return ((Decoder*)decoder)->copy_block(source, target); });
}

// Returns a status.
int32_t warmstart_read(void* decoder, const void* data, uint64_t bytes, float* sum) {
    if (!decoder) return warmstart::kClosed;
    return status_of([&] {
        *sum = ((Decoder*)decoder)->read(data, bytes);
        return warmstart::kOk;
    });
}

void warmstart_close(void* decoder) { delete (Decoder*)decoder; }
}
