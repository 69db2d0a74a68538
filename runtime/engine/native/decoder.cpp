// A step of a decoder on the CPU, from token ids to chosen tokens, in one call without Python.
//
// All sequences' tokens of a step pass through the linear layers together, packed [tokens, columns]. layout.h has the
// structures that describe the model and the step.

#include <sys/mman.h>

#include <cstdlib>
#include <new>
#include <system_error>
#include <vector>

#include "attention.h"
#include "attention_int8.h"
#include "check.h"
#include "gemm.h"
#include "layout.h"
#include "norm.h"
#include "pool.h"
#include "sample.h"
#include "tile_blocks.h"

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
    void swap(Buffer& other) {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
    }

  private:
    T* data_ = nullptr;
    size_t size_ = 0;
};

// Memory for keys and values: the system provides a page when it is first written, so an idle service uses none.
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

class Decoder {
  public:
    explicit Decoder(const Config& config)
        : c_(config), layer_(config.layer, config.layer + config.layers),
          rotation_(config.rotations, config.rotations + config.rotation_count), pool_(config.threads),
          hidden_(padded(c_.hidden)), head_dim_(padded(c_.head_dim)), intermediate_(padded(c_.intermediate)),
          heads_width_(c_.heads * head_dim_), qkv_width_((c_.heads + 2 * c_.kv_heads) * head_dim_),
          up_width_(c_.gated ? 2 * intermediate_ : intermediate_), vocabulary_width_(padded(c_.vocabulary)),
          layer_start_(cache_layout(c_)), cache_(layer_start_.back()), found_(pool_.threads()),
          scores_(pool_.threads()), queries_(pool_.threads()) {
        for (int i = 0; i < c_.layers; i++) block_bytes_.push_back(block_bytes(c_, i));
        for (const Rotation& rotation : rotation_) {
            rotation_start_.push_back(angles_width_);
            angles_width_ += 2 * (int)rotation.count;
        }
        const bool convolutions = c_.convolution_width > 0;
        const size_t m = c_.max_tokens;
        const int widest = std::max({hidden_, heads_width_, intermediate_});
        x_.reserve(m * hidden_);
        if (!c_.transient) kept_.reserve(m * hidden_);
        if (c_.parallel || branches()) branch_.reserve(m * hidden_);
        normed_.reserve(m * widest);
        wide_.reserve(m * std::max({qkv_width_, up_width_, convolutions ? 3 * hidden_ : 0}));
        angles_.reserve(m * angles_width_);
        const int groups = (widest + kGroup - 1) / kGroup;
        quantized_.reserve(m * widest);
        scale_.reserve(m * groups);
        offset_.reserve(m * groups);
        sum16_.reserve(m * (widest / 16));
        sum32_.reserve(m * (widest / 32));
        scaled16_.reserve(m * scaled_stride(widest, 16));
        scaled32_.reserve(m * scaled_stride(widest, 32));
        relative_.reserve(m * groups);
        unit_.reserve(m);
    }

    // Nothing is written before all of the step is checked. A step that is interrupted has chosen nothing; it is kept
    // until another one is interrupted, and other steps may run before it goes on.
    Status step(const Step& s) {
        if (const Status status = check(c_, s)) return status;
        if (s.resume && s.tokens != kept_tokens_) return kBadRows;
        const Pool::Awake awake(pool_);
        const int last = s.last_layer ? s.last_layer : c_.layers;
        locate(s);
        plan(s);
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
        for (int i = 0; i < c_.layers; i++) std::memcpy(block(i, target), block(i, source), block_bytes_[i]);
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

    // Where each layer's blocks begin in the cache, and the cache's size, in bytes. What is kept for one layer only is
    // in the same place for all.
    static std::vector<size_t> cache_layout(const Config& c) {
        std::vector<size_t> starts{0};
        size_t most = 0;
        for (int i = 0; i < c.layers; i++) {
            const size_t bytes = block_bytes(c, i) * c.blocks;
            most = std::max(most, bytes);
            starts.push_back(c.transient ? 0 : starts.back() + bytes);
        }
        if (c.transient) starts.back() = most;
        return starts;
    }

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

    // A block of a layer: keys and values of 16 positions, or what a convolution reads of them.
    static size_t block_bytes(const Config& c, int layer) {
        const int head_dim = padded(c.head_dim);
        if (c.layer[layer].kind == kConvolution)
            return (size_t)padded(c.hidden) * kBlockTokens * (c.kv_type == kFloat32KV ? 4 : 2);
        if (c.kv_type == kInt8KV) return c.kv_heads * int8_head_bytes(head_dim);
        return (size_t)2 * c.kv_heads * head_dim * kBlockTokens * (c.kv_type == kFloat32KV ? 4 : 2);
    }

    uint8_t* block(int layer, int block) const {
        return cache_.get() + layer_start_[layer] + block * block_bytes_[layer];
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

    Weights weights(const Tensor& t, int rows, int columns) const {
        Weights found;
        found.add(matrix(t, rows, columns));
        return found;
    }

    Weights mixer_weights(const Layer& l) const {
        if (l.kind == kConvolution) return weights(l.qkv[0], 3 * hidden_, hidden_);
        if (!l.qkv[1].data) return weights(l.qkv[0], qkv_width_, hidden_);
        const int keys = c_.kv_heads * head_dim_, rows[] = {heads_width_, keys, keys};
        Weights found;
        for (int i = 0, first = 0; i < 3; first += rows[i++] / kLanes) {
            Matrix w = matrix(l.qkv[i], rows[i], hidden_);
            w.first = first, w.bias = l.qkv[0].bias;
            found.add(w);
        }
        return found;
    }

    Weights up_weights(const Layer& l) const {
        if (!c_.gated || !l.up[1].data) return weights(l.up[0], up_width_, hidden_);
        Weights found;
        for (int i = 0; i < 2; i++) {
            Matrix w = matrix(l.up[i], intermediate_, hidden_);
            w.first = i, w.step = 2, w.bias = l.up[0].bias;
            found.add(w);
        }
        return found;
    }

    void multiply_all(int tokens, const Weights& w, int columns, float* out, int stride, float add = 0) {
        multiply_parts(pool_, activations(columns), tokens, w.part, w.count, out, stride, add);
    }

    Matrix matrix(const Tensor& t, int rows, int columns) const {
        Matrix w;
        w.data = (const uint8_t*)t.data;
        w.scales = t.scales;
        w.bias = t.bias;
        w.rows = padded(rows);
        w.columns = padded(columns);
        w.kind = t.kind;
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

    // Prepares a row of activations for the next product, quantized if the weights are.
    void ready(int token, const float* row, int columns, const Weights& next) {
        if (next.steps) {
            const size_t t = token, groups = (columns + kGroup - 1) / kGroup;
            int8_t* quantized = quantized_.get() + t * columns;
            float* scales = scale_.get() + t * groups;
            quantize(row, columns, quantized, scales, offset_.get() + t * groups);
            if (next.sums)
                sum_groups(quantized, scales, columns, sum16_.get() + t * (columns / 16), sum32_.get() + t * (columns / 32),
                           scaled16_.get() + t * scaled_stride(columns, 16),
                           scaled32_.get() + t * scaled_stride(columns, 32), relative_.get() + t * groups, unit_.get() + t);
        }
        if (next.floats && row != normed_.get() + (size_t)token * columns)
            std::memcpy(normed_.get() + (size_t)token * columns, row, columns * sizeof(float));
    }

    Activations activations(int columns) const {
        Activations a;
        a.values = normed_.get();
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

    // Normalizes a row of the residual stream's width.
    void norm(const float* x, const Tensor& weight, float* out) const {
        normalize(c_.norm, x, hidden_, c_.hidden, (const float*)weight.data, weight.bias, c_.epsilon, out);
    }

    // Prepares the residual stream for a product, normalized if the layer has that norm. Before, with `sum_norm`, it is
    // itself normalized in its place.
    void prepare(int tokens, const Tensor& weight, const Weights& next, const Tensor* sum_norm = nullptr) {
        each(tokens, [&](int t, int) {
            float* x = x_.get() + (size_t)t * hidden_;
            if (sum_norm) norm(x, *sum_norm, x);
            float* out = normed_.get() + (size_t)t * hidden_;
            if (weight.data) {
                norm(x, weight, out);
                x = out;
            }
            ready(t, x, hidden_, next);
        });
    }

    // Adds what a layer has computed in branch_ to the residual stream, normalized if the layer has that norm.
    void add_branch(int tokens, const Tensor& weight, float factor) {
        each(tokens, [&](int t, int) {
            float *x = x_.get() + (size_t)t * hidden_, *branch = branch_.get() + (size_t)t * hidden_;
            if (weight.data) norm(branch, weight, branch);
            for (int i = 0; i < hidden_; i += kLanes) store(x + i, load(x + i) + load(branch + i) * factor);
        });
    }

    // Normalizes the residual stream in its place.
    void normalize_sum(int tokens, const Tensor& weight) {
        each(tokens, [&](int t, int) {
            float* x = x_.get() + (size_t)t * hidden_;
            norm(x, weight, x);
        });
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

    void embed(const Step& s) {
        const Matrix table = matrix(c_.embed, c_.vocabulary, c_.hidden);
        each(s.tokens, [&](int t, int) {
            float* x = x_.get() + (size_t)t * hidden_;
            embedding(table, s.ids[t], x);
            if (c_.embedding_scale != 1)
                for (int k = 0; k < hidden_; k++) x[k] *= c_.embedding_scale;
            if (c_.positions) {
                const float* p = c_.positions + (size_t)position_[t] * hidden_;
                for (int k = 0; k < hidden_; k++) x[k] += p[k];
            }
            if (c_.types) {
                const float* type = c_.types + (size_t)(s.types ? s.types[t] : 0) * hidden_;
                for (int k = 0; k < hidden_; k++) x[k] += type[k];
            }
            if (c_.embed_norm.data) norm(x, c_.embed_norm, x);
            for (size_t r = 0; r < rotation_.size(); r++) {  // cosines, then sines, of this position's angles
                const Rotation& rotation = rotation_[r];
                const bool long_text = s.long_texts[sequence_[t]] && rotation.long_frequencies;
                const float* frequencies = long_text ? rotation.long_frequencies : rotation.frequencies;
                float* angles = angles_.get() + (size_t)t * angles_width_ + rotation_start_[r];
                for (uint64_t i = 0; i < rotation.count; i++) {
                    const double angle = (float)position_[t] * frequencies[i];
                    angles[i] = (float)std::cos(angle) * rotation.factor;
                    angles[rotation.count + i] = (float)std::sin(angle) * rotation.factor;
                }
            }
        });
    }

    // Copies a row of the embedding, which is packed as a matrix of weights.
    void embedding(const Matrix& table, int id, float* x) const {
        const int lane = id % kLanes;
        const uint8_t* panel = table.data + id / kLanes * table.panel_bytes();
        if (is_block(table.kind)) {
            unpack_row(table, id, x);
        } else if (table.kind == kInt8) {
            const int groups = (hidden_ + kGroup - 1) / kGroup;
            const float* scales = table.scales + (size_t)(id / kLanes) * groups * kLanes + lane;
            for (int k = 0; k < hidden_; k++)
                x[k] = ((int)panel[(size_t)(k / 4) * 64 + lane * 4 + k % 4] - 128) * scales[k / kGroup * kLanes];
        } else if (table.kind == kBfloat16) {
            for (int k = 0; k < hidden_; k++) {
                const uint32_t bits = (uint32_t)((const uint16_t*)panel)[(size_t)(k / 2) * 32 + lane * 2 + k % 2] << 16;
                std::memcpy(x + k, &bits, 4);
            }
        } else if (table.kind == kFloat16) {
            for (int k = 0; k < hidden_; k++) x[k] = load_half((const uint16_t*)panel + (size_t)k * kLanes)[lane];
        } else {
            for (int k = 0; k < hidden_; k++) x[k] = ((const float*)panel)[(size_t)k * kLanes + lane];
        }
    }

    // Rotates the first 2 x count values of a head.
    static void rotate(float* x, const float* angles, int count) {
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

    // Normalizes the queries or keys of a token: each head alone, or all at once.
    void norm_heads(float* x, int heads, const Tensor& weight) const {
        const float* w = (const float*)weight.data;
        if (c_.qk_norm == kFullNorm) {
            normalize(c_.norm, x, heads * head_dim_, heads * c_.head_dim, w, weight.bias, c_.epsilon, x);
        } else if (c_.qk_norm == kHeadNorm) {
            for (int at = 0; at < heads * head_dim_; at += head_dim_)
                normalize(c_.norm, x + at, head_dim_, c_.head_dim, w + at, weight.bias ? weight.bias + at : nullptr,
                          c_.epsilon, x + at);
        }
    }

    // The block that holds a token's position in a layer.
    template <class T>
    T* block_of(const Step& s, int layer_index, int sequence, int position) const {
        return (T*)block(layer_index, s.blocks[s.tables[sequence] + position / kBlockTokens]);
    }

    // Normalizes, rotates and scales a token's queries, and normalizes and rotates its keys.
    void prepare_queries(const Layer& l, int t) {
        float* q = wide_.get() + (size_t)t * qkv_width_;
        float* k = q + heads_width_;
        norm_heads(q, c_.heads, l.q_norm);
        norm_heads(k, c_.kv_heads, l.k_norm);
        if (l.rotation >= 0) {
            const float* angles = angles_.get() + (size_t)t * angles_width_ + rotation_start_[l.rotation];
            const int count = (int)rotation_[l.rotation].count;
            for (int at = 0; at < heads_width_; at += head_dim_) rotate(q + at, angles, count);
            for (int at = 0; at < c_.kv_heads * head_dim_; at += head_dim_) rotate(k + at, angles, count);
        }
        for (int i = 0; i < heads_width_; i++) q[i] *= c_.attention_scale;
    }

    // Stores a token's keys and values.
    template <class T>
    void store_keys(const Step& s, int layer_index, int t, int thread) {
        const float* k = wide_.get() + (size_t)t * qkv_width_ + heads_width_;
        const float* v = k + (size_t)c_.kv_heads * head_dim_;
        const int position = position_[t], offset = position % kBlockTokens;
        T* base = block_of<T>(s, layer_index, sequence_[t], position);
        for (int h = 0; h < c_.kv_heads; h++) {
            const float *key = k + (size_t)h * head_dim_, *value = v + (size_t)h * head_dim_;
            if constexpr (std::is_same_v<T, uint8_t>) {
                queries_[thread].reserve(int8_scratch(head_dim_));
                store_int8(Int8Head(base + h * int8_head_bytes(head_dim_), head_dim_), offset, key, value, head_dim_,
                           (int8_t*)queries_[thread].get());
            } else {
                T* keys = base + (size_t)h * 2 * head_dim_ * kBlockTokens;
                T* values = keys + (size_t)head_dim_ * kBlockTokens + (size_t)offset * head_dim_;
                for (int d = 0; d < head_dim_; d += kLanes) {
                    T sixteen[kLanes];
                    store_kv(sixteen, load(key + d));
                    for (int i = 0; i < kLanes; i++) keys[(size_t)(d + i) * kBlockTokens + offset] = sixteen[i];
                    store_kv(values + d, load(value + d));
                }
            }
        }
    }

    // A gated short convolution (LFM2): y = C x conv(B x X) for the projections B, C and X of the input. The products of
    // all positions are in the cache, where attention layers have keys and values.
    template <class T>
    void convolution(const Step& s, int layer_index) {
        const Tensor& weight = layer_[layer_index].convolution;
        each(s.tokens, [&](int t, int) {
            const float *b = wide_.get() + (size_t)t * 3 * hidden_, *x = b + 2 * hidden_;
            const int position = position_[t];
            T* cached = block_of<T>(s, layer_index, sequence_[t], position) + (size_t)position % kBlockTokens * hidden_;
            for (int i = 0; i < hidden_; i += kLanes) store_kv(cached + i, load(b + i) * load(x + i));
        });
        each(s.tokens, [&](int t, int) {
            const float* gate = wide_.get() + (size_t)t * 3 * hidden_ + hidden_;
            float* out = normed_.get() + (size_t)t * hidden_;
            for (int i = 0; i < hidden_; i += kLanes)
                store(out + i, weight.bias ? load(weight.bias + i) : Floats{});
            for (int w = std::max(0, c_.convolution_width - 1 - position_[t]); w < c_.convolution_width; w++) {
                const int position = position_[t] - (c_.convolution_width - 1) + w;
                const T* cached = block_of<T>(s, layer_index, sequence_[t], position) +
                                  (size_t)position % kBlockTokens * hidden_;
                const float* taps = (const float*)weight.data + (size_t)w * hidden_;
                for (int i = 0; i < hidden_; i += kLanes)
                    store(out + i, load(out + i) + load_kv<T>(cached + i) * load(taps + i));
            }
            for (int i = 0; i < hidden_; i += kLanes) store(out + i, load(out + i) * load(gate + i));
        });
    }

    // Queries that are computed together: a few tokens of one sequence, for one key-value head.
    struct Task {
        int sequence, kv_head, first, count;  // tokens
    };

    template <class T>
    void attention(const Step& s, int layer_index) {
        each(s.tokens, [&](int t, int thread) {
            prepare_queries(layer_[layer_index], t);
            store_keys<T>(s, layer_index, t, thread);
        });
        const int group = c_.heads / c_.kv_heads, window = layer_[layer_index].window;
        const size_t stride = block_bytes_[layer_index] / sizeof(T), head_stride = stride / c_.kv_heads;
        pool_.run((int)task_.size(), 1, [&](int first, int last, int thread) {
            for (int i = first; i < last; i++) {
                const Task& task = task_[i];
                T* base = (T*)block(layer_index, 0) + task.kv_head * head_stride;
                const int32_t* blocks = s.blocks + s.tables[task.sequence];
                Query queries[kQueries];
                int count = 0;
                auto flush = [&] {
                    const BlockRange range(queries, count);
                    scores_[thread].reserve((size_t)kQueries * range.positions());
                    if constexpr (std::is_same_v<T, uint8_t>) {
                        queries_[thread].reserve(int8_scratch(head_dim_));
                        attend_int8(queries, count, range, base, stride, blocks, head_dim_, c_.attention_softcap,
                                    scores_[thread].get(), queries_[thread].get());
                    } else {
                        attend<T>(queries, count, range, base, stride, blocks, head_dim_, c_.attention_softcap,
                                  scores_[thread].get());
                    }
                    count = 0;
                };
                for (int t = task.first; t < task.first + task.count; t++)
                    for (int g = 0; g < group; g++) {
                        const int head = task.kv_head * group + g, position = position_[t];
                        const size_t at = (size_t)head * head_dim_, distances = 2 * (size_t)c_.relative_range + 1;
                        int length = position + 1;
                        if (c_.bidirectional) {
                            const int end = s.starts[task.sequence + 1] - s.starts[task.sequence];
                            length = window ? (int)std::min((int64_t)end, (int64_t)position + window) : end;
                        }
                        queries[count++] = {wide_.get() + (size_t)t * qkv_width_ + at,
                                            normed_.get() + (size_t)t * heads_width_ + at,
                                            window ? std::max(0, position - window + 1) : 0, length,
                                            c_.alibi_slopes ? c_.alibi_slopes[head] : 0,
                                            c_.relative_bias ? c_.relative_bias + head * distances : nullptr,
                                            c_.relative_range, position};
                        if (count == kQueries) flush();
                    }
                if (count) flush();
            }
        });
    }

    void plan(const Step& s) {
        task_.clear();
        const int group = c_.heads / c_.kv_heads, together = std::max(1, kQueries / group);
        for (int i = 0; i < s.sequences; i++) {
            for (int t = s.starts[i]; t < s.starts[i + 1]; t += together)
                for (int h = 0; h < c_.kv_heads; h++)
                    task_.push_back({i, h, t, std::min(together, s.starts[i + 1] - t)});
        }
    }

    // After the last layer's attention only the tokens with outputs are needed: moves their rows to the front.
    int keep_outputs(const Step& s, int width) {
        for (int i = 0; i < s.outputs; i++) {
            const int t = s.output_tokens[i];  // ascending, so nothing is overwritten before it is moved
            if (t == i) continue;
            float *mixed = normed_.get(), *x = x_.get();
            std::memcpy(mixed + (size_t)i * width, mixed + (size_t)t * width, width * sizeof(float));
            std::memcpy(x + (size_t)i * hidden_, x + (size_t)t * hidden_, hidden_ * sizeof(float));
        }
        return s.outputs;
    }

    // Multiplies the prepared activations, and adds the result to the residual stream, or leaves it in branch_.
    void project(int tokens, const Weights& weights, int columns, bool separate) {
        multiply_all(tokens, weights, columns, separate ? branch_.get() : x_.get(), hidden_,
                     separate ? 0 : c_.residual_scale);
    }

    void layer(const Step& s, int index) {
        const Layer& l = layer_[index];
        const bool convolves = l.kind == kConvolution, attention_apart = c_.parallel || branches();
        const int in_width = convolves ? 3 * hidden_ : qkv_width_, mixed_width = convolves ? hidden_ : heads_width_;
        int m = s.tokens;
        const Weights in = mixer_weights(l), mixed = weights(l.attention_out, c_.hidden, mixed_width);
        const Weights up = up_weights(l), down = weights(l.down, c_.hidden, intermediate_);
        prepare(m, l.attention_norm, in);
        multiply_all(m, in, hidden_, wide_.get(), in_width);
        if (convolves)
            c_.kv_type == kFloat32KV ? convolution<float>(s, index) : convolution<uint16_t>(s, index);
        else if (c_.kv_type == kFloat32KV)
            attention<float>(s, index);
        else
            c_.kv_type == kFloat16KV ? attention<uint16_t>(s, index) : attention<uint8_t>(s, index);
        if (index == c_.layers - 1) m = keep_outputs(s, mixed_width);
        if (!m) return;
        if (mixed.steps)
            each(m, [&](int t, int) { ready(t, normed_.get() + (size_t)t * mixed_width, mixed_width, mixed); });
        project(m, mixed, mixed_width, attention_apart);
        if (attention_apart && !c_.parallel) add_branch(m, l.attention_post_norm, c_.residual_scale);

        const Tensor& mlp_norm = c_.shared_norm ? l.attention_norm : l.mlp_norm;
        prepare(m, mlp_norm, up, c_.norm_after_sum ? &l.attention_post_norm : nullptr);
        multiply_all(m, up, hidden_, wide_.get(), up_width_);
        each(m, [&](int t, int) {
            const float* values = wide_.get() + (size_t)t * up_width_;
            float* out = normed_.get() + (size_t)t * intermediate_;
            for (int i = 0; i < intermediate_; i += kLanes) {
                if (c_.gated)
                    store(out + i, activate(load(values + 2 * i), c_.activation) * load(values + 2 * i + kLanes));
                else
                    store(out + i, activate(load(values + i), c_.activation));
            }
            ready(t, out, intermediate_, down);
        });
        if (c_.parallel) add_branch(m, l.attention_post_norm, c_.residual_scale);  // now that the MLP has read its input
        project(m, down, intermediate_, branches());
        if (branches()) add_branch(m, l.mlp_post_norm, c_.residual_scale);
        if (c_.norm_after_sum) normalize_sum(m, l.mlp_post_norm);
    }

    void output(const Step& s) {
        if (!s.outputs) return;
        if (s.states) {
            each(s.outputs, [&](int i, int) {
                float* x = x_.get() + (size_t)i * hidden_;
                if (c_.final_norm.data) norm(x, c_.final_norm, x);
                std::memcpy(s.states + (size_t)i * c_.hidden, x, c_.hidden * sizeof(float));
            });
            return;
        }
        const Weights head = weights(c_.head, c_.vocabulary, hidden_);
        each(s.outputs, [&](int i, int) {
            float* out = normed_.get() + (size_t)i * hidden_;
            const float* x = x_.get() + (size_t)i * hidden_;
            if (c_.final_norm.data) {
                norm(x, c_.final_norm, out);
                x = out;
            }
            ready(i, x, hidden_, head);
        });
        logits_.reserve((size_t)s.outputs * vocabulary_width_);
        multiply_all(s.outputs, head, hidden_, logits_.get(), vocabulary_width_);
        pool_.run(s.outputs, 1, [&](int first, int last, int thread) {
            for (int i = first; i < last; i++) {
                float* row = logits_.get() + (size_t)i * vocabulary_width_;
                if (c_.logit_scale != 1)
                    for (int j = 0; j < vocabulary_width_; j += kLanes) store(row + j, load(row + j) * c_.logit_scale);
                if (c_.logit_softcap != 0)
                    for (int j = 0; j < vocabulary_width_; j += kLanes)
                        store(row + j, hyperbolic_tangent(load(row + j) * (1.0f / c_.logit_softcap)) * c_.logit_softcap);
                if (s.logits)
                    std::memcpy(s.logits + (size_t)i * c_.vocabulary, row, c_.vocabulary * sizeof(float));
                choose(row, c_.vocabulary, s.choices[i], s.chosen[i], found_[thread]);
            }
        });
    }

    Config c_;
    std::vector<Layer> layer_;
    std::vector<Rotation> rotation_;
    Pool pool_;
    // Padded widths.
    int hidden_, head_dim_, intermediate_, heads_width_, qkv_width_, up_width_, vocabulary_width_;
    std::vector<size_t> layer_start_, block_bytes_;  // of each layer in the cache
    Pages cache_;  // blocks of keys and values
    std::vector<int> rotation_start_;
    int angles_width_ = 0;
    int kept_layer_ = 0, kept_tokens_ = 0;  // of the step that was interrupted last; 0 tokens if there is none
    Buffer<float> x_, kept_, branch_, normed_, wide_, angles_, scale_, logits_;
    Buffer<int8_t> quantized_;
    Buffer<uint32_t> offset_;
    Buffer<int32_t> sum16_, sum32_;
    Buffer<int16_t> scaled16_, scaled32_;
    Buffer<float> relative_, unit_;
    std::vector<int32_t> position_, sequence_;
    std::vector<Task> task_;
    std::vector<std::vector<Candidate>> found_;  // scratch of each thread
    std::vector<Buffer<float>> scores_;
    std::vector<Buffer<uint8_t>> queries_;  // in 8 bits
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

// Whether this process may use the registers that the library needs; asks the system for them. Called before others.
int32_t warmstart_permitted() { return warmstart::permit_tiles(); }

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
