// Small decoders with random weights, of every number type and feature, for the programs that run the kernels without
// Python: the fuzz target and the comparison of instruction set levels.
#pragma once

#include <cstdio>
#include <memory>

#include "decoder.cpp"

namespace warmstart {

constexpr int kHeads = 2, kVocabulary = 150, kLayers = 2, kVariants = 4, kUniform = 9 * kVariants, kMixed = 4;
constexpr int kRouted = 6, kExperts = 6, kModels = kUniform + kMixed + kRouted;
constexpr int kEncoders = 3, kAllModels = kModels + kEncoders;  // encoders take whole texts only
constexpr int kContext = 28, kStepTokens = 24, kBlocks = 6;

#define REQUIRE(condition)                                       \
    if (!(condition)) {                                          \
        std::fprintf(stderr, "not so: %s\n", #condition);        \
        std::abort();                                            \
    }

// A model and its memory, every array exactly as long as it must be.
struct Model {
    std::vector<std::unique_ptr<uint8_t[]>> memory;
    std::vector<Layer> layers;
    std::vector<Rotation> rotations;
    Config config{};
    uint32_t state = 1;
    int kind = kFloat32;  // of the next matrices; -1 for other ones from matrix to matrix
    int matrices = 0;

    const float* floats(size_t count, float scale) {
        memory.emplace_back(new uint8_t[count * 4]);
        float* values = (float*)memory.back().get();
        for (size_t i = 0; i < count; i++) {
            state = state * 1664525 + 1013904223;
            values[i] = ((int32_t)state >> 8) / 8388608.0f * scale;
        }
        return values;
    }

    Tensor vector(int width, bool biased, int rows = 1) {
        Tensor t{};
        t.data = floats((size_t)rows * padded(width), 1);
        t.data_bytes = (uint64_t)rows * padded(width) * 4;
        if (biased) t.bias = floats(padded(width), 1), t.bias_count = padded(width);
        return t;
    }

    Tensor matrix(int rows, int columns, bool biased) {
        rows = padded(rows), columns = padded(columns);
        const int groups = (columns + kGroup - 1) / kGroup;
        Tensor t{};
        t.kind = kind >= 0 ? kind : (matrices++ * 5 + 4) % kKinds;
        if (is_block(t.kind)) {
            blocks(t, rows, columns);
            if (biased) t.bias = floats(rows, 1), t.bias_count = rows;
            return t;
        }
        t.data_bytes = (uint64_t)rows * columns * (t.kind == kFloat32 ? 4 : t.kind == kInt8 ? 1 : 2);
        const float* values = floats((size_t)rows * columns, 0.3f);
        if (t.kind == kFloat32) {
            t.data = values;
        } else if (t.kind == kFloat16) {
            memory.emplace_back(new uint8_t[t.data_bytes]);
            for (size_t i = 0; i < (size_t)rows * columns; i += kLanes)
                store_half((uint16_t*)memory.back().get() + i, load(values + i));
            t.data = memory.back().get();
        } else {
            memory.emplace_back(new uint8_t[t.data_bytes]);
            uint8_t* bytes = memory.back().get();
            for (size_t i = 0; i < (size_t)rows * columns; i++) {
                if (t.kind == kBfloat16)
                    std::memcpy(bytes + 2 * i, (const uint8_t*)(values + i) + 2, 2);
                else
                    bytes[i] = i % 4093 ? (uint8_t)(128 + values[i] * 400) : 0;  // also the least, which no conversion writes
            }
            t.data = bytes;
        }
        if (t.kind == kInt8) t.scales = floats((size_t)rows * groups, 0.01f), t.scale_count = rows * groups;
        if (biased) t.bias = floats(rows, 1), t.bias_count = rows;
        return t;
    }

    // Random codes and integer scales, with small factors.
    void blocks(Tensor& t, int rows, int columns) {
        const BlockFormat& f = format_of(t.kind);
        const size_t panel = block_panel_bytes(f, columns), piece = scale_piece_bytes(f);
        t.data_bytes = rows / kLanes * panel;
        memory.emplace_back(new uint8_t[t.data_bytes]);
        uint8_t* bytes = memory.back().get();
        for (size_t i = 0; i < t.data_bytes; i++) {
            state = state * 1664525 + 1013904223;
            bytes[i] = (uint8_t)(state >> 24);
        }
        const float largest = f.nested ? 2e-4f : 2e-3f;
        for (size_t at = 0; at < t.data_bytes; at += panel)
            for (size_t i = 0; i < scale_bytes(f, columns); i += piece)
                for (int part = 0; part < (f.minima ? 2 : 1); part++)
                    store_half((uint16_t*)(bytes + at + i) + part * kLanes, load(floats(kLanes, largest)));
        t.data = bytes;
    }

    // Sets the first value of a token's embedding, so that its row fails.
    void poison(int token, float value) {
        const int lane = token % kLanes;
        if (is_block(config.embed.kind)) {
            ((uint16_t*)config.embed.data)[lane] = 0x7e00;  // not a number
        } else if (config.embed.kind == kInt8) {
            ((float*)config.embed.scales)[token] = value;
        } else if (config.embed.kind == kBfloat16) {
            std::memcpy((uint8_t*)config.embed.data + token * 4, (uint8_t*)&value + 2, 2);
        } else {
            ((float*)config.embed.data)[token] = value;
        }
    }

    // Each number type of the weights and of keys and values, with each variant: GPT-2's features; odd widths; Gemma's
    // norms, soft caps and window; a convolution with a parallel layer and ALiBi. Every fourth model has two threads.
    // Then models of all types of GGUF files mixed, in parts, with widths that suit them; and models with experts.
    explicit Model(int index) {
        if (index >= kModels)
            encoder(index - kModels);
        else if (index >= kUniform + kMixed)
            routed(index - kUniform - kMixed);
        else
            generator(index, index >= kUniform);
    }

    // Some of the models before, with experts: in each number type, and mixed in parts. Every second one has two threads.
    void routed(int number) {
        static const int bases[kRouted] = {3, 7, 11, 5, kUniform + 1, kUniform + 2};
        const bool mixed = bases[number] >= kUniform;
        generator(bases[number], mixed);
        Config& c = config;
        c.threads = 1 + number % 2;
        c.experts = kExperts, c.experts_per_token = 1 + number % 3, c.experts_intermediate = mixed ? 256 : 24;
        c.router_scores = number % 2 ? kSigmoid : kSoftmax, c.normalized = number % 4 < 2, c.shared_gate = number % 3 == 2;
        c.experts_scale = number % 2 ? 1.5f : 1;
        for (Layer& l : layers) {
            if (number == 3 && &l == layers.data()) continue;
            const int usual = kind, inner = kExperts * padded(c.experts_intermediate);
            kind = kFloat32;
            l.router = matrix(kExperts + c.shared_gate, c.hidden, false);
            kind = usual;
            if (c.router_scores == kSigmoid) l.router_correction = vector(kExperts, false);
            if (mixed)
                for (Tensor& part : l.experts_up) part = matrix(inner, c.hidden, false);
            else
                l.experts_up[0] = matrix(2 * inner, c.hidden, false);
            l.experts_down = matrix(kExperts * padded(c.hidden), c.experts_intermediate, false);
            if (number % 3) continue;  // with a shared expert; or without one:
            l.intermediate = 0;
            l.up[0] = l.up[1] = l.down = Tensor{};
        }
    }

    // BERT's features, with Jina's ALiBi, or MPNet's relative positions in 8 bits; or Gemma's in both directions.
    void encoder(int number) {
        generator(number == 2 ? 2 * 3 + 1 : number * 2, false);
        Config& c = config;
        c.bidirectional = c.transient = 1, c.blocks = kStepTokens, c.alibi_slopes = nullptr, c.slope_count = 0;
        if (number == 2) return;
        c.norm_after_sum = 1, c.final_norm = Tensor{}, c.embed_norm = vector(c.hidden, true);
        c.token_types = 2, c.types = floats(2 * c.hidden, 0.1f), c.type_count = 2 * c.hidden;
        if (number == 0) c.alibi_slopes = floats(kHeads, 1), c.slope_count = kHeads;
        if (number == 1) {
            c.relative_range = 5, c.relative_count = kHeads * 11;
            c.relative_bias = floats(c.relative_count, 1);
        }
        for (Layer& l : layers) {
            l.attention_norm = l.mlp_norm = Tensor{};
            l.attention_post_norm = vector(c.hidden, true), l.mlp_post_norm = vector(c.hidden, true);
        }
    }

    void generator(int index, bool mixed) {
        Config& c = config;
        const int variant = mixed ? index % kVariants : index / 3 % kVariants;
        const bool gpt2 = variant == 0, odd = variant == 1 && !mixed, gemma = variant == 2, convolves = variant == 3;
        kind = mixed ? -1 : index % 3, matrices = index * 7;
        c.kv_type = mixed ? index % 3 : index / (3 * kVariants), c.activation = index % 5;
        c.norm = gpt2 || convolves ? kLayerNorm : kRms, c.qk_norm = gemma ? kHeadNorm : odd ? kFullNorm : kNoNorm;
        c.gated = !gpt2, c.parallel = c.shared_norm = convolves, c.convolution_width = convolves ? 3 : 0;
        c.layers = kLayers, c.hidden = mixed ? 256 : odd ? 40 : 32, c.heads = kHeads;
        c.kv_heads = gpt2 ? kHeads : 1, c.head_dim = mixed ? 128 : odd ? 24 : 32, c.vocabulary = kVocabulary, c.context = kContext;
        c.threads = index % 4 ? 1 : 2, c.max_tokens = kStepTokens, c.blocks = kBlocks;
        c.epsilon = 1e-5f, c.attention_scale = 0.2f, c.embedding_scale = gemma ? 5 : 1, c.residual_scale = odd ? 0.5f : 1;
        c.logit_scale = odd ? 0.3f : 1, c.attention_softcap = c.logit_softcap = gemma ? 4 : 0;
        if (convolves) c.alibi_slopes = floats(kHeads, 1), c.slope_count = kHeads;
        if (gpt2) c.positions = floats(kContext * c.hidden, 0.1f), c.position_count = kContext * c.hidden;
        if (odd || gemma) {
            rotations.push_back({floats(c.head_dim / 2, 1), floats(c.head_dim / 2, 1), (uint64_t)c.head_dim / 2, 1});
            rotations.push_back({floats(3, 1), nullptr, 3, 1.2f});
        }
        c.rotations = rotations.data(), c.rotation_count = (int)rotations.size();
        c.embed = matrix(kVocabulary, c.hidden, false);
        poison(5, NAN), poison(6, 1e38f);
        if (convolves) c.embed_norm = vector(c.hidden, true);
        c.final_norm = vector(c.hidden, gpt2);
        c.head = matrix(kVocabulary, c.hidden, odd);
        for (int i = 0; i < kLayers; i++) {
            Layer l{};
            const int heads = c.heads * padded(c.head_dim), keys = c.kv_heads * padded(c.head_dim);
            l.kind = convolves && !i ? kConvolution : kAttention, l.intermediate = mixed ? 512 : odd ? 44 : 48;
            l.window = gemma && !i ? 7 : 0, l.rotation = gemma && i ? -1 : std::min(i, c.rotation_count - 1);
            l.attention_norm = vector(c.hidden, gpt2);
            if (!c.shared_norm) l.mlp_norm = vector(c.hidden, gpt2);
            if (gemma) l.attention_post_norm = vector(c.hidden, false), l.mlp_post_norm = vector(c.hidden, false);
            if (c.qk_norm) l.q_norm = vector(heads, gemma), l.k_norm = vector(keys, gemma);
            if (l.kind == kConvolution) {
                l.qkv[0] = matrix(3 * c.hidden, c.hidden, false), l.attention_out = matrix(c.hidden, c.hidden, false);
                l.convolution = vector(c.hidden, true, c.convolution_width);
            } else {
                const int parts[] = {heads, keys, keys};
                if (mixed)
                    for (int n = 0; n < 3; n++) l.qkv[n] = matrix(parts[n], c.hidden, false);
                else
                    l.qkv[0] = matrix(heads + 2 * keys, c.hidden, false);
                if (gpt2) l.qkv[0].bias = floats(heads + 2 * keys, 1), l.qkv[0].bias_count = heads + 2 * keys;
                l.attention_out = matrix(c.hidden, heads, gpt2);
            }
            if (mixed && c.gated)
                for (Tensor& part : l.up) part = matrix(l.intermediate, c.hidden, false);
            else
                l.up[0] = matrix(padded(l.intermediate) * (c.gated ? 2 : 1), c.hidden, gpt2);
            l.down = matrix(c.hidden, l.intermediate, gpt2);
            layers.push_back(l);
        }
        c.layer = layers.data();
    }
};

struct Opened {
    Model model;
    void* decoder = nullptr;
    explicit Opened(int index) : model(index) {
        REQUIRE(warmstart_open(&model.config, &decoder) == kOk);
    }
    ~Opened() { warmstart_close(decoder); }
};

inline Opened& opened(int index) {
    static std::unique_ptr<Opened> all[kAllModels];
    std::unique_ptr<Opened>& one = all[index];
    if (!one) one.reset(new Opened(index));
    return *one;
}

}  // namespace warmstart
