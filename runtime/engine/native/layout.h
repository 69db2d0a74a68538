// The structures that Python fills (library.py declares them with the same fields), and a table of their layout by which
// library.py refuses a library that lays them out in another way.
//
// Each pointer to an array has a count beside it, or one that check.h derives from the configuration or from the step.
#pragma once

#include <cstddef>
#include <cstdint>

namespace warmstart {

enum Norm { kRms = 0, kLayerNorm = 1 };
enum QKNorm { kNoNorm = 0, kHeadNorm = 1, kFullNorm = 2 };
enum Activation { kSilu = 0, kGeluTanh = 1, kGelu = 2, kRelu = 3, kSquaredRelu = 4 };
// Number types of matrices; from kFirstBlock on those of block_formats.h.
enum Kind {
    kFloat32 = 0, kBfloat16 = 1, kInt8 = 2, kFloat16 = 3,
    kQ4_0 = 4, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K, kIq4Nl, kIq4Xs,
    kKinds, kFirstBlock = kQ4_0
};
// Number types of keys and values.
enum KVType { kFloat32KV = 0, kFloat16KV = 1, kInt8KV = 2 };
enum LayerKind { kAttention = 0, kConvolution = 1 };
enum RouterScores { kSoftmax = 0, kSigmoid = 1 };

constexpr int kMaxLogprobs = 32;
constexpr int kMaxParts = 3;  // of a matrix

// Widths of matrices and vectors are padded to a multiple of 16 with zeros.
struct Tensor {
    const void* data;     // a packed matrix, or a vector of floats; null where the model has none
    const float* scales;  // of an int8 matrix
    const float* bias;    // or null
    uint64_t data_bytes, scale_count, bias_count;
    int32_t kind;         // of a matrix
};

struct Rotation {
    const float* frequencies;  // [count] radians per position
    const float* long_frequencies;  // [count] the same in long texts, or null
    uint64_t count;            // pairs of values that are rotated
    float factor;              // of the cosines and sines
};

// A matrix in parts of different types has them in consecutive places: queries, keys and values, or gate and up, each
// padded to whole panels. Otherwise the first place has the whole matrix, and the others no data. A bias, in the first
// place, is that of the whole matrix.
struct Layer {
    int32_t kind, window, rotation;  // window: 0 for all positions; rotation: index, -1 for none
    Tensor attention_norm, attention_post_norm, mlp_norm, mlp_post_norm;
    Tensor qkv[3], q_norm, k_norm, attention_out;  // of a convolution: its input and output projections
    Tensor convolution;                         // [convolution_width, hidden], oldest position first
    // Of the MLP, or of the shared expert. up: gate and up alternate in panels of 16 rows if gated.
    int32_t intermediate;  // the width inside; 0 for none, which only a layer with experts may have
    Tensor up[2], down;
    // A layer with experts has a router: a float32 matrix with a row for each expert, and behind them one for the gate of
    // the shared expert if there is a gate. The experts' matrices follow one another in one matrix, each padded to whole panels.
    Tensor router, router_correction, experts_up[2], experts_down;
};

// hidden, head_dim and the widths called intermediate are the model's own, which the tensors pad.
struct Config {
    int32_t norm, qk_norm, activation;
    int32_t kv_type, gated, parallel, shared_norm;  // the last three are booleans
    // Booleans: a token attends to the positions behind it, too; each step has whole texts, whose keys and values are kept
    // for one layer only; the norms behind attention and MLP are those of the sum.
    int32_t bidirectional, transient, norm_after_sum;
    int32_t layers, hidden, heads, kv_heads, head_dim, vocabulary, context, convolution_width;
    int32_t token_types, relative_range;
    // Of the layers with experts: experts of a layer, or 0 if none has any; those of a token; and booleans: whether the
    // weights of a token's experts are divided by their sum, and whether the shared expert has a gate.
    int32_t experts, experts_per_token, experts_intermediate, router_scores, normalized, shared_gate;
    int32_t threads, max_tokens, blocks, rotation_count;
    float epsilon, attention_scale, attention_softcap, embedding_scale, residual_scale, logit_scale, logit_softcap, experts_scale;
    const float* alibi_slopes;  // [heads], or null
    uint64_t slope_count;
    const float* positions;  // [context, padded hidden], or null
    uint64_t position_count;
    const float* types;  // [token_types, padded hidden], or null
    uint64_t type_count;
    const float* relative_bias;  // [heads, 2 * relative_range + 1] by the key's distance, limited to the range; or null
    uint64_t relative_count;
    const Rotation* rotations;  // [rotation_count]
    Tensor embed, embed_norm, final_norm, head;
    const Layer* layer;  // [layers]
};

// How one token is chosen.
struct Choice {
    double u;  // random number in [0, 1)
    const int32_t* bias_ids;
    const float* bias;
    const int32_t* seen_ids;  // distinct, of prompt and generated tokens
    const int32_t* counted_ids;
    const int32_t* counts;  // times generated
    const int32_t* banned;
    const uint32_t* mask;  // [mask_words] a bit for each id that may be chosen, or null
    float temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k, logprobs;  // logprobs: -1 for none
    int32_t biases, seen, counted, bans, mask_words;
};

struct Chosen {
    int32_t id;
    int32_t failed;  // the logits are not numbers
    int32_t tops;
    float logprob;
    int32_t top_ids[kMaxLogprobs];
    float top_logprobs[kMaxLogprobs];
};

struct Step {
    int32_t sequences, tokens, outputs, block_count;
    const int32_t* ids;            // [tokens]
    const int32_t* starts;         // [sequences + 1] first token of each sequence
    const int32_t* at;             // [sequences] position of its first token
    const int32_t* long_texts;     // [sequences] whether its tokens use long_frequencies
    const int32_t* tables;         // [sequences + 1] where its blocks begin in `blocks`
    const int32_t* blocks;         // [block_count]
    const int32_t* output_tokens;  // [outputs] tokens behind which to choose, ascending
    const Choice* choices;         // [outputs]
    Chosen* chosen;                // [outputs]
    float* logits;                 // [outputs, vocabulary] copy of the raw logits, or null
    const int32_t* types;          // [tokens] token types, or null if all are 0
    float* states;                 // [outputs, hidden] the final states; with it, nothing is chosen. Or null
    const int32_t* interrupt;      // another thread sets it to 1 to interrupt the step before its next layer; or null
    int32_t first_layer, last_layer;  // a step in parts: layers first_layer ... last_layer - 1; 0 and 0 for all
    int32_t resume;  // boolean: this is the step that was interrupted last, which goes on where it was
};

// The size of each structure, then the offsets of its fields.
constexpr int32_t kLayout[] = {
    sizeof(Tensor), offsetof(Tensor, data), offsetof(Tensor, scales), offsetof(Tensor, bias), offsetof(Tensor,
    data_bytes), offsetof(Tensor, scale_count), offsetof(Tensor, bias_count), offsetof(Tensor,
    kind),

    sizeof(Rotation), offsetof(Rotation, frequencies), offsetof(Rotation, long_frequencies),
    offsetof(Rotation, count), offsetof(Rotation, factor),

    sizeof(Layer), offsetof(Layer, kind), offsetof(Layer, window), offsetof(Layer, rotation), offsetof(Layer,
    attention_norm), offsetof(Layer, attention_post_norm), offsetof(Layer, mlp_norm), offsetof(Layer,
    mlp_post_norm), offsetof(Layer, qkv), offsetof(Layer, q_norm), offsetof(Layer, k_norm), offsetof(Layer,
    attention_out), offsetof(Layer, convolution), offsetof(Layer, intermediate), offsetof(Layer, up), offsetof(Layer,
    down), offsetof(Layer, router), offsetof(Layer, router_correction), offsetof(Layer, experts_up), offsetof(Layer,
    experts_down),

    sizeof(Config), offsetof(Config, norm), offsetof(Config, qk_norm), offsetof(Config, activation),
    offsetof(Config, kv_type), offsetof(Config, gated), offsetof(Config, parallel),
    offsetof(Config, shared_norm), offsetof(Config, bidirectional), offsetof(Config, transient),
    offsetof(Config, norm_after_sum), offsetof(Config, layers), offsetof(Config, hidden), offsetof(Config, heads), offsetof(Config, kv_heads), offsetof(Config, head_dim), offsetof(Config,
    vocabulary), offsetof(Config, context), offsetof(Config, convolution_width), offsetof(Config, token_types),
    offsetof(Config, relative_range), offsetof(Config, experts), offsetof(Config, experts_per_token), offsetof(Config,
    experts_intermediate), offsetof(Config, router_scores), offsetof(Config, normalized), offsetof(Config, shared_gate),
    offsetof(Config, threads),
    offsetof(Config, max_tokens), offsetof(Config, blocks), offsetof(Config, rotation_count), offsetof(Config,
    epsilon), offsetof(Config, attention_scale), offsetof(Config, attention_softcap), offsetof(Config,
    embedding_scale), offsetof(Config, residual_scale), offsetof(Config, logit_scale), offsetof(Config,
    logit_softcap), offsetof(Config, experts_scale), offsetof(Config, alibi_slopes), offsetof(Config, slope_count), offsetof(Config, positions),
    offsetof(Config, position_count), offsetof(Config, types), offsetof(Config, type_count),
    offsetof(Config, relative_bias), offsetof(Config, relative_count), offsetof(Config, rotations), offsetof(Config, embed), offsetof(Config,
    embed_norm), offsetof(Config, final_norm), offsetof(Config, head), offsetof(Config, layer),

    sizeof(Choice), offsetof(Choice, u), offsetof(Choice, bias_ids), offsetof(Choice, bias), offsetof(Choice, seen_ids),
    offsetof(Choice, counted_ids), offsetof(Choice, counts), offsetof(Choice, banned), offsetof(Choice, mask),
    offsetof(Choice, temperature),
    offsetof(Choice, top_p), offsetof(Choice, min_p), offsetof(Choice, repetition_penalty),
    offsetof(Choice, presence_penalty), offsetof(Choice, frequency_penalty), offsetof(Choice, top_k),
    offsetof(Choice, logprobs), offsetof(Choice, biases), offsetof(Choice, seen), offsetof(Choice, counted),
    offsetof(Choice, bans), offsetof(Choice, mask_words),

    sizeof(Chosen), offsetof(Chosen, id), offsetof(Chosen, failed), offsetof(Chosen, tops), offsetof(Chosen, logprob),
    offsetof(Chosen, top_ids), offsetof(Chosen, top_logprobs),

    sizeof(Step), offsetof(Step, sequences), offsetof(Step, tokens), offsetof(Step, outputs),
    offsetof(Step, block_count), offsetof(Step, ids), offsetof(Step, starts), offsetof(Step, at),
    offsetof(Step, long_texts),    offsetof(Step, tables), offsetof(Step, blocks), offsetof(Step, output_tokens), offsetof(Step, choices),
    offsetof(Step, chosen), offsetof(Step, logits), offsetof(Step, types), offsetof(Step, states),
    offsetof(Step, interrupt),
    offsetof(Step, first_layer), offsetof(Step, last_layer), offsetof(Step, resume),
};

}  // namespace warmstart
