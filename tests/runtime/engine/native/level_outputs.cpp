// Writes the logits of the small random decoders to standard output, as floats: of one text computed whole, then again in
// pieces, beside a second text. A program for each instruction set level, also of another architecture under an emulator;
// test_levels.py compares what they write.
#include "random_models.h"

using namespace warmstart;

namespace {

constexpr int kTokens = 20;

// Some tokens of one text; it has three blocks from `block` on.
struct Piece {
    int first, count, block;
};

std::vector<float> run(void* decoder, const std::vector<Piece>& pieces) {
    std::vector<int32_t> ids, starts{0}, tables{0}, at, long_texts, blocks, outputs;
    for (const Piece& piece : pieces) {
        for (int i = piece.first; i < piece.first + piece.count; i++) {
            outputs.push_back((int32_t)ids.size());
            ids.push_back(16 + (i * 37 + piece.block * 11) % (kVocabulary - 16));  // 5 and 6 have no finite logits
        }
        starts.push_back((int32_t)ids.size());
        at.push_back(piece.first), long_texts.push_back(0);
        for (int i = 0; i * kBlockTokens < piece.first + piece.count; i++) blocks.push_back(piece.block + i);
        tables.push_back((int32_t)blocks.size());
    }
    Step s{};
    s.sequences = (int32_t)pieces.size(), s.tokens = s.outputs = (int32_t)ids.size();
    s.block_count = (int32_t)blocks.size();
    std::vector<Choice> choices(ids.size());
    std::vector<Chosen> chosen(ids.size());
    std::vector<float> logits(ids.size() * kVocabulary);
    for (Choice& choice : choices) choice.top_p = choice.repetition_penalty = 1, choice.logprobs = -1;
    s.ids = ids.data(), s.starts = starts.data(), s.at = at.data(), s.tables = tables.data();
    s.long_texts = long_texts.data(), s.blocks = blocks.data(), s.output_tokens = outputs.data();
    s.choices = choices.data(), s.chosen = chosen.data(), s.logits = logits.data();
    REQUIRE(warmstart_step(decoder, &s) == kOk);
    logits.resize((size_t)pieces[0].count * kVocabulary);
    return logits;
}

}  // namespace

int main() {
    REQUIRE(warmstart_permitted());
    for (int index = 0; index < kModels; index++) {
        void* decoder = opened(index).decoder;
        const std::vector<float> whole = run(decoder, {{0, kTokens, 0}});
        std::vector<float> pieces;
        int at = 0;
        for (int count : {1, 7, 2, 4, 3, 3}) {
            const std::vector<float> part = run(decoder, {{at, count, 2}, {0, 5, 4}});
            pieces.insert(pieces.end(), part.begin(), part.end());
            at += count;
        }
        std::vector<float> same_text = run(decoder, {{0, kTokens, 2}});
        REQUIRE(at == kTokens && !std::memcmp(pieces.data(), same_text.data(), pieces.size() * 4));
        std::fwrite(whole.data(), 4, whole.size(), stdout);
    }
}
