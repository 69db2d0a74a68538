// A libFuzzer target over everything that Python passes to the kernels: the configuration at open, steps, copies of
// blocks. Some counts, indices and pointers are hostile; an array is as long as its count says, or empty where the check
// must refuse the count before it reads anything. Build and run it with `make sanitize`.
#include <fuzzer/FuzzedDataProvider.h>

#include "random_models.h"

using namespace warmstart;

namespace {

constexpr int kMaxHonest = 4096;  // an array with a larger count is never allocated

class Input {
  public:
    Input(const uint8_t* data, size_t size) : data_(data, size) {}

    bool more() { return data_.remaining_bytes() > 0; }
    bool rarely() { return data_.ConsumeIntegral<uint8_t>() >= 252; }

    int32_t hostile() {
        static const int32_t extremes[] = {-1,      INT32_MIN, INT32_MAX, 0,           1 << 16,        1 << 20,
                                           1 << 24, 1 << 26,   1 << 30,   kVocabulary, kVocabulary + 8, kStepTokens + 1};
        const uint8_t which = data_.ConsumeIntegral<uint8_t>();
        return which < 128 ? extremes[which % 12] : data_.ConsumeIntegral<int32_t>();
    }

    int32_t number(int32_t least, int32_t most) {
        const uint8_t byte = data_.ConsumeIntegral<uint8_t>();
        return byte >= 252 ? hostile() : most < least ? least : (int32_t)(least + byte % ((int64_t)most - least + 1));
    }

    float real(float usual) {
        const uint8_t byte = data_.ConsumeIntegral<uint8_t>();
        if (byte < 128) return usual;
        if (byte < 192) return byte / 160.0f - 1.0f;
        const uint32_t bits = data_.ConsumeIntegral<uint32_t>();
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }

    // As many numbers as the count says, or none.
    std::vector<int32_t> numbers(int64_t count, int32_t least, int32_t most) {
        std::vector<int32_t> values(within(count, 0, kMaxHonest) ? count : 0);
        for (int32_t& value : values) value = number(least, most);
        return values;
    }

    template <class T>
    const T* address(const std::vector<T>& values) {
        return rarely() ? nullptr : values.data();
    }

  private:
    FuzzedDataProvider data_;
};

struct Arrays {
    std::vector<std::vector<int32_t>> whole;
    std::vector<std::vector<float>> real;

    const int32_t* keep(Input& in, std::vector<int32_t> values) {
        whole.push_back(std::move(values));
        return in.address(whole.back());
    }
};

Choice choice(Input& in, Arrays& arrays) {
    Choice c{};
    c.u = in.real(0.5f);
    c.temperature = in.real(0), c.top_p = in.real(1), c.min_p = in.real(0);
    c.repetition_penalty = in.real(1), c.presence_penalty = in.real(0), c.frequency_penalty = in.real(0);
    c.top_k = in.number(0, 50), c.logprobs = in.number(-1, kMaxLogprobs);
    c.biases = in.number(0, 3), c.seen = in.number(0, 5), c.counted = in.number(0, 3), c.bans = in.number(0, 2);
    c.bias_ids = arrays.keep(in, in.numbers(c.biases, 0, kVocabulary - 1));
    arrays.real.emplace_back(within(c.biases, 0, kMaxHonest) ? c.biases : 0);
    for (float& value : arrays.real.back()) value = in.real(2);
    c.bias = in.address(arrays.real.back());
    c.seen_ids = arrays.keep(in, in.numbers(c.seen, 0, kVocabulary - 1));
    c.counted_ids = arrays.keep(in, in.numbers(c.counted, 0, kVocabulary - 1));
    c.counts = arrays.keep(in, in.numbers(c.counted, 1, 9));
    c.banned = arrays.keep(in, in.numbers(c.bans, 0, kVocabulary - 1));
    if (in.number(0, 1) || in.rarely()) {
        c.mask_words = in.rarely() ? in.hostile() : (kVocabulary + 31) / 32;
        c.mask = (const uint32_t*)arrays.keep(in, in.numbers(c.mask_words, -(1 << 29), 1 << 29));
    }
    return c;
}

void step(Input& in, Opened& target) {
    Arrays arrays;
    arrays.whole.reserve(1024), arrays.real.reserve(1024);
    std::vector<int32_t> starts{0}, tables{0}, at, long_texts, blocks, outputs;
    const int rows = 1 + in.number(0, 3) % 4;
    for (int i = 0; i < rows; i++) {
        const bool whole = target.model.config.transient && !in.rarely();
        const int tokens = std::max(1, in.number(1, 6) % 8), first = whole ? 0 : in.number(0, 30);
        starts.push_back(starts.back() + tokens);
        at.push_back(first);
        long_texts.push_back(in.number(0, 1));
        const int needed = within(first, 0, 1000) ? (first + tokens + kBlockTokens - 1) / kBlockTokens : 1;
        for (int b = in.rarely() ? 2 : 0; b < needed; b++) blocks.push_back(in.number(0, kBlocks - 1));
        tables.push_back((int32_t)blocks.size());
        if (in.number(0, 3)) outputs.push_back(in.rarely() ? in.hostile() : starts.back() - 1);
    }
    Step s{};
    s.sequences = rows, s.tokens = starts.back(), s.outputs = (int32_t)outputs.size();
    s.block_count = (int32_t)blocks.size();
    if (in.rarely()) starts[in.number(0, rows) % starts.size()] = in.hostile();
    if (in.rarely()) tables[in.number(0, rows) % tables.size()] = in.hostile();
    for (int32_t* count : {&s.sequences, &s.tokens, &s.outputs, &s.block_count})
        if (in.rarely()) *count = in.hostile();
    const auto honest = [](int64_t count) -> size_t { return within(count, 0, kMaxHonest) ? count : 0; };
    starts.resize(honest((int64_t)s.sequences + 1)), tables.resize(honest((int64_t)s.sequences + 1));
    at.resize(honest(s.sequences)), long_texts.resize(honest(s.sequences)), blocks.resize(honest(s.block_count)), outputs.resize(honest(s.outputs));
    for (std::vector<int32_t>* array : {&starts, &tables, &at, &long_texts, &blocks, &outputs}) array->shrink_to_fit();
    const std::vector<int32_t> ids = in.numbers(s.tokens, 0, kVocabulary - 1);
    std::vector<Choice> choices;
    choices.reserve(outputs.size());
    for (size_t i = 0; i < outputs.size(); i++) choices.push_back(i < 8 ? choice(in, arrays) : Choice{});
    std::vector<Chosen> chosen(outputs.size());
    std::vector<float> logits(in.rarely() ? outputs.size() * kVocabulary : 0);
    std::vector<int32_t> types;
    if (target.model.config.token_types || in.rarely()) types = in.numbers(in.number(0, 1) ? s.tokens : 0, 0, 1);
    s.types = types.empty() ? nullptr : types.data();
    const int width = target.model.config.hidden, layers = target.model.config.layers;
    std::vector<float> states(in.number(0, 1) || in.rarely() ? outputs.size() * width : 0);
    s.states = states.empty() ? nullptr : states.data();
    if (target.model.config.transient || in.rarely()) {
        s.first_layer = in.number(0, layers - 1);
        s.last_layer = in.number(0, 1) ? in.number(s.first_layer, layers) : 0;
        if (!s.last_layer && !in.rarely()) s.first_layer = 0;
    }
    s.ids = in.address(ids), s.starts = in.address(starts), s.at = in.address(at), s.tables = in.address(tables);
    s.long_texts = in.address(long_texts);
    s.blocks = in.address(blocks), s.output_tokens = in.address(outputs), s.choices = in.address(choices);
    s.chosen = (Chosen*)in.address(chosen), s.logits = logits.empty() ? nullptr : logits.data();
    const int32_t interrupt = in.number(0, 3) == 3;
    s.interrupt = &interrupt;
    s.resume = in.number(0, 3) == 3 ? in.number(0, 1) : 0;
    const int32_t status = warmstart_step(target.decoder, &s);
    REQUIRE(within(status, kOk, kStatuses - 1) && *warmstart_describe(status));
    if (status != kOk || s.states) return;
    if (s.last_layer && s.last_layer < layers) return;
    for (const Chosen& one : chosen) {
        REQUIRE(within(one.failed, 0, 1) && within(one.id, 0, kVocabulary - 1) && within(one.tops, 0, kMaxLogprobs));
        for (int i = 0; i < one.tops; i++) REQUIRE(within(one.top_ids[i], 0, kVocabulary - 1));
    }
}

void open(Input& in, int index) {
    Model model(index);
    Config& c = model.config;
    int32_t* const sizes = &c.norm;
    const int count = &c.rotation_count - &c.norm + 1;
    for (int i = in.number(0, 2); i > 0 && in.more(); i--) sizes[(uint32_t)in.number(0, count - 1) % count] = in.hostile();
    if (within(c.threads, 9, kMaxThreads)) c.threads = 2;  // as good, and quick
    Layer& layer = model.layers[(uint32_t)in.number(0, kLayers - 1) % kLayers];
    for (int32_t* field : {&layer.kind, &layer.window, &layer.rotation, &layer.intermediate})
        if (in.rarely()) *field = in.hostile();
    for (Tensor* t : {&c.embed, &c.embed_norm, &c.final_norm, &c.head, &layer.attention_norm, &layer.attention_post_norm,
                      &layer.mlp_norm, &layer.mlp_post_norm, &layer.qkv[0], &layer.qkv[1], &layer.qkv[2], &layer.q_norm, &layer.k_norm,
                      &layer.attention_out, &layer.convolution, &layer.up[0], &layer.up[1], &layer.down,
                      &layer.router, &layer.router_correction, &layer.experts_up[0], &layer.experts_up[1], &layer.experts_down}) {
        if (in.rarely()) t->kind = in.rarely() ? in.hostile() : in.number(0, kKinds - 1);
        if (in.rarely()) t->data = nullptr;
        if (in.rarely()) t->scales = nullptr;
        if (in.rarely()) t->data = (const void*)((uintptr_t)t->data + 1);
        for (uint64_t* size : {&t->data_bytes, &t->scale_count, &t->bias_count})
            if (in.rarely()) *size = (uint64_t)(int64_t)in.hostile();
    }
    for (Rotation& rotation : model.rotations) {
        if (in.rarely()) rotation.frequencies = nullptr;
        if (in.rarely()) rotation.count = (uint64_t)(int64_t)in.hostile();
    }
    for (uint64_t* size : {&c.slope_count, &c.position_count, &c.type_count, &c.relative_count})
        if (in.rarely()) *size = (uint64_t)(int64_t)in.hostile();
    // `rotations` has as many as it says.
    if (within(c.rotation_count, (int64_t)model.rotations.size() + 1, INT32_MAX)) c.rotation_count = INT32_MAX;
    if (in.rarely()) c.rotations = nullptr;
    if (within(c.layers, kLayers + 1, INT32_MAX)) c.layers = in.rarely() ? INT32_MAX : 1;  // `layer` has as many as it says
    if (in.rarely()) c.layer = nullptr;
    void* decoder = nullptr;
    const int32_t status = warmstart_open(&c, &decoder);
    REQUIRE((status == kOk) == (decoder != nullptr));
    warmstart_close(decoder);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    REQUIRE(warmstart_permitted());
    Input in(data, size);
    const int index = (uint32_t)in.number(0, kAllModels - 1) % kAllModels;
    if (in.number(0, 15) == 15) {
        open(in, index);
        return 0;
    }
    Opened& target = opened(index);
    for (int i = 0; i < 3 && in.more(); i++) {
        if (in.number(0, 7) == 7) warmstart_copy_block(target.decoder, in.number(0, kBlocks - 1), in.number(0, kBlocks - 1));
        step(in, target);
    }
    if (in.rarely()) {
        const std::vector<float> values(1 << 15, 1.0f);
        float sum = 0;
        REQUIRE(warmstart_read(target.decoder, values.data(), values.size() * 4, &sum) == kOk && sum == 1 << 15);
    }
    return 0;
}
