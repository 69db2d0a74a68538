// Products of int8 activations with int8 weights in AMX tiles (Intel 64 and IA-32 Architectures Software Developer's
// Manual, volume 1, chapter 18): the same integers as the other kernels, and their floats summed in the same order.
//
// A group of 64 columns of a panel, [64 / 4][16 rows][4], is the second operand of one tile product as it lies; the first
// is the same group of up to 16 tokens. Included by gemm.h.
#pragma once

#if defined(__AMX_INT8__)

#include <sys/syscall.h>
#include <unistd.h>

namespace warmstart {

constexpr bool kHasTiles = true;
constexpr int kTileTokens = 16;
constexpr int kLeastTileTokens = 8;  // fewer are no faster than with vectors

// Asks the system for the tiles' registers (Linux, Documentation/arch/x86/xstate.rst); whether this process may use them.
inline bool permit_tiles() {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Shapes of the tile registers for products of full and of last groups, with 16 tokens and with the `rest` of them.
class TileShapes {
  public:
    TileShapes(int columns, int tokens) {
        const int tail = columns % kGroup ? columns % kGroup : kGroup;
        const int rest = tokens % kTileTokens ? tokens % kTileTokens : kTileTokens;
        const int shapes[8][2] = {{16, 64},   {16, 64},   {16, 64},     {16, tail},
                                  {tail / 4, 64}, {rest, 64}, {rest, 64}, {rest, tail}};
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } shape;
        for (int i = 0; i < 8; i++) shape.rows[i] = (uint8_t)shapes[i][0], shape.bytes[i] = (uint16_t)shapes[i][1];
        asm volatile("" : : "r"(&shape) : "memory");  // GCC 12 takes only the first eight bytes to be read
        _tile_loadconfig(&shape);
    }
    ~TileShapes() { _tile_release(); }  // else the system saves the tiles at every switch of threads
    TileShapes(const TileShapes&) = delete;
    TileShapes& operator=(const TileShapes&) = delete;
};

// sums[token][row] of one group, without the groups' scales.
template <bool Rest>
inline void tile_sums(const int8_t* activations, int stride, const uint8_t* weights, bool tail, int32_t* sums) {
    constexpr int kRowBytes = 64;
// A macro, because the instructions name their registers.
#define WARMSTART_TILE_PRODUCT(c, a, b)      \
    do {                                     \
        _tile_zero(c);                       \
        _tile_loadd(a, activations, stride); \
        _tile_loadd(b, weights, kRowBytes);  \
        _tile_dpbsud(c, a, b);               \
        _tile_stored(c, sums, kRowBytes);    \
    } while (false)
    if (!Rest && !tail) WARMSTART_TILE_PRODUCT(0, 1, 2);
    if (!Rest && tail) WARMSTART_TILE_PRODUCT(0, 3, 4);
    if (Rest && !tail) WARMSTART_TILE_PRODUCT(5, 6, 2);
    if (Rest && tail) WARMSTART_TILE_PRODUCT(5, 7, 4);
#undef WARMSTART_TILE_PRODUCT
}

// Adds `groups` groups, whose sums are [groups][16 tokens][16 rows], to the totals of `count` tokens.
template <int N>
inline void add_groups(const Activations& a, int token, int count, int group, const float* scales, const int32_t* sums,
                       Floats* total) {
    Floats scale[N];
    for (int i = 0; i < N; i++) scale[i] = load(scales + i * kLanes);
    const float* steps = a.scales + (size_t)token * a.groups + group;
    const uint32_t* offsets = a.offsets + (size_t)token * a.groups + group;
    for (int m = 0; m < count; m++, sums += kLanes, steps += a.groups, offsets += a.groups) {
        Floats value = total[m];
        for (int i = 0; i < N; i++) {
            const uint8_t* from = (const uint8_t*)(sums + i * kTileTokens * kLanes);
            value += __builtin_convertvector(load_as<Ints>(from) + (int32_t)offsets[i], Floats) * scale[i] * steps[i];
        }
        total[m] = value;
    }
}

// `tokens` x one panel: 16 tokens, or the rest of them.
template <bool Rest>
inline void tile_panel(const Activations& a, int token, int tokens, const Matrix& w, int panel, float* out, int stride,
                       float add) {
    // Vectors wait for what a tile stores, so that they work on the groups before those that the tiles are at.
    constexpr int kAhead = 4, kSums = kTileTokens * kLanes;
    const int count = Rest ? tokens : kTileTokens;
    const uint8_t* data = w.data + panel * w.panel_bytes();
    const uintptr_t ahead = (uintptr_t)data + 4096;  // tile loads are not foreseen by the processor; may lie past the end
    const int8_t* rows = a.quantized + (size_t)token * a.stride;
    const float* scales = w.scales + (size_t)panel * a.groups * kLanes;
    alignas(64) int32_t sums[2][kAhead * kSums];
    Floats total[kTileTokens] = {};
    const auto add_from = [&](int first) {
        const int32_t* from = sums[first / kAhead % 2];
        const float* scale = scales + (size_t)first * kLanes;
        switch (std::min(kAhead, a.groups - first)) {
            case 4: add_groups<4>(a, token, count, first, scale, from, total); break;
            case 3: add_groups<3>(a, token, count, first, scale, from, total); break;
            case 2: add_groups<2>(a, token, count, first, scale, from, total); break;
            default: add_groups<1>(a, token, count, first, scale, from, total);
        }
    };
    for (int first = 0; first < a.groups; first += kAhead) {
        for (int g = first; g < std::min(first + kAhead, a.groups); g++) {
            const bool tail = (g + 1) * kGroup > w.columns;
            for (int line = 0; line < kTileTokens; line++)
                _mm_prefetch((const char*)(ahead + ((uintptr_t)g * kGroup + 4 * line) * kLanes), _MM_HINT_T0);
            tile_sums<Rest>(rows + g * kGroup, a.stride, data + (size_t)g * kGroup * kLanes, tail,
                            sums[first / kAhead % 2] + (g - first) * kSums);
        }
        if (first) add_from(first - kAhead);
    }
    add_from((a.groups - 1) / kAhead * kAhead);
    for (int m = 0; m < count; m++) write(w, panel, total[m], out + (size_t)(token + m) * stride, add);
}

// Some tokens x one panel, while TileShapes has the shapes for all tokens.
inline void tile_tokens(const Activations& a, int token, int end, const Matrix& w, int panel, float* out, int stride,
                        float add) {
    for (; token + kTileTokens <= end; token += kTileTokens)
        tile_panel<false>(a, token, kTileTokens, w, panel, out, stride, add);
    if (token < end) tile_panel<true>(a, token, end - token, w, panel, out, stride, add);
}

}  // namespace warmstart

#else

namespace warmstart {

constexpr bool kHasTiles = false;
constexpr int kLeastTileTokens = 0;
inline bool permit_tiles() { return true; }
struct TileShapes {
    TileShapes(int, int) {}
};
inline void tile_tokens(const Activations&, int, int, const Matrix&, int, float*, int, float) {}

}  // namespace warmstart

#endif
