// The structures that Python fills (library.py declares them with the same fields), and a table of their layout by which
// library.py refuses a library that lays them out in another way.
//
// Each pointer to an array has a count beside it, or one that check.h derives from the configuration or from the step.
#pragma once

#include <cstddef>
#include <cstdint>

namespace warmstart {

enum Family { kGpt2 = 0, kLlama = 1 };
enum Activation { kSilu = 0, kGeluTanh = 1, kGelu = 2, kRelu = 3 };
enum Kind { kFloat32 = 0, kBfloat16 = 1, kInt8 = 2 };

constexpr int kMostLogprobs = 32;

struct Tensor {
    const void* data;     // a packed matrix, or a vector of floats
    const float* scales;  // of an int8 matrix
    const float* bias;    // or null
    uint64_t data_bytes, scale_count, bias_count;
};

struct Layer {
    Tensor attention_norm, qkv, attention_out, mlp_norm, up, down;  // up: gate and up by turns of 16 rows for Llama
};

struct Config {
    int32_t family, activation, kind, half_kv;
    int32_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, context;  // context: positions, GPT-2
    int32_t threads, max_tokens, blocks;
    float epsilon, rope_factor;
    const float* inverse_frequencies;  // [head_dim / 2], Llama
    uint64_t frequency_count;
    const float* positions;  // [context, hidden], GPT-2
    uint64_t position_count;
    Tensor embed, final_norm, head;
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
    float temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k, logprobs;  // logprobs: -1 for none
    int32_t biases, seen, counted, bans;
};

struct Chosen {
    int32_t id;
    int32_t failed;  // the logits are not numbers
    int32_t tops;
    float logprob;
    int32_t top_ids[kMostLogprobs];
    float top_logprobs[kMostLogprobs];
};

struct Step {
    int32_t sequences, tokens, outputs, block_count;
    const int32_t* ids;            // [tokens]
    const int32_t* starts;         // [sequences + 1] first token of each sequence
    const int32_t* at;             // [sequences] position of its first token
    const int32_t* tables;         // [sequences + 1] where its blocks begin in `blocks`
    const int32_t* blocks;         // [block_count]
    const int32_t* output_tokens;  // [outputs] tokens behind which to choose, ascending
    const Choice* choices;         // [outputs]
    Chosen* chosen;                // [outputs]
    float* logits;                 // [outputs, vocabulary] copy of the raw logits, or null
};

// Of each structure: its size, then where each field begins.
constexpr int32_t kLayout[] = {
    sizeof(Tensor), offsetof(Tensor, data), offsetof(Tensor, scales), offsetof(Tensor, bias),
    offsetof(Tensor, data_bytes), offsetof(Tensor, scale_count), offsetof(Tensor, bias_count),

    sizeof(Layer), offsetof(Layer, attention_norm), offsetof(Layer, qkv), offsetof(Layer, attention_out),
    offsetof(Layer, mlp_norm), offsetof(Layer, up), offsetof(Layer, down),

    sizeof(Config), offsetof(Config, family), offsetof(Config, activation), offsetof(Config, kind),
    offsetof(Config, half_kv), offsetof(Config, layers), offsetof(Config, hidden), offsetof(Config, intermediate),
    offsetof(Config, heads), offsetof(Config, kv_heads), offsetof(Config, head_dim), offsetof(Config, vocabulary),
    offsetof(Config, context), offsetof(Config, threads), offsetof(Config, max_tokens), offsetof(Config, blocks),
    offsetof(Config, epsilon), offsetof(Config, rope_factor), offsetof(Config, inverse_frequencies),
    offsetof(Config, frequency_count), offsetof(Config, positions), offsetof(Config, position_count),
    offsetof(Config, embed), offsetof(Config, final_norm), offsetof(Config, head), offsetof(Config, layer),

    sizeof(Choice), offsetof(Choice, u), offsetof(Choice, bias_ids), offsetof(Choice, bias), offsetof(Choice, seen_ids),
    offsetof(Choice, counted_ids), offsetof(Choice, counts), offsetof(Choice, banned), offsetof(Choice, temperature),
    offsetof(Choice, top_p), offsetof(Choice, min_p), offsetof(Choice, repetition_penalty),
    offsetof(Choice, presence_penalty), offsetof(Choice, frequency_penalty), offsetof(Choice, top_k),
    offsetof(Choice, logprobs), offsetof(Choice, biases), offsetof(Choice, seen), offsetof(Choice, counted),
    offsetof(Choice, bans),

    sizeof(Chosen), offsetof(Chosen, id), offsetof(Chosen, failed), offsetof(Chosen, tops), offsetof(Chosen, logprob),
    offsetof(Chosen, top_ids), offsetof(Chosen, top_logprobs),

    sizeof(Step), offsetof(Step, sequences), offsetof(Step, tokens), offsetof(Step, outputs),
    offsetof(Step, block_count), offsetof(Step, ids), offsetof(Step, starts), offsetof(Step, at),
    offsetof(Step, tables), offsetof(Step, blocks), offsetof(Step, output_tokens), offsetof(Step, choices),
    offsetof(Step, chosen), offsetof(Step, logits),
};

}  // namespace warmstart
