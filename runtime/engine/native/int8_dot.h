// Sixteen sums of products of int8 codes, the same integers on every instruction set level.
//
// `Sums` multiplies codes [16][4], stored as the code plus 128, with the same four signed bytes of -127 ... 127 in every
// lane; `PairSums` codes [16][2], stored as they are, with the same two 16-bit numbers.
#pragma once

#include <array>
#include <utility>

#include "vec.h"

#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace warmstart {

#if defined(__AVX512VNNI__)

// The instruction multiplies unsigned codes, which adds 128 x the sum of the signed bytes: the sums begin at minus that.
struct Sums {
    __m512i lanes;

    explicit Sums(uint32_t offset) : lanes(_mm512_set1_epi32((int)offset)) {}
    struct Codes {
        __m512i bytes;
        explicit Codes(const uint8_t* from) : bytes(_mm512_loadu_si512(from)) {}
    };
    void add(const Codes& codes, int32_t four) {
        lanes = _mm512_dpbusd_epi32(lanes, codes.bytes, _mm512_set1_epi32(four));
    }
    Ints integers() const { return (Ints)lanes; }
};

struct PairSums {
    __m512i lanes = _mm512_setzero_si512();

    struct Codes {
        __m512i words;
        explicit Codes(const int8_t* from) : words(_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)from))) {}
    };
    void add(const Codes& codes, int32_t two) {
        lanes = _mm512_dpwssd_epi32(lanes, codes.words, _mm512_set1_epi32(two));
    }
    Ints integers() const { return (Ints)lanes; }
};

#elif defined(__AVX2__)

struct Sums {
    __m256i lanes[2];

    explicit Sums(uint32_t) : lanes{_mm256_setzero_si256(), _mm256_setzero_si256()} {}
    struct Codes {
        __m256i bytes[2];
        explicit Codes(const uint8_t* from) {
            for (int i = 0; i < 2; i++)
                bytes[i] = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)from + i), _mm256_set1_epi8((char)128));
        }
    };
    // |x| x (code with the sign of x): a pair of products fits 16 bits, as both factors are within +-127 or x is 0.
    void add(const Codes& codes, int32_t four) {
        const __m256i x = _mm256_set1_epi32(four), magnitude = _mm256_abs_epi8(x), ones = _mm256_set1_epi16(1);
        for (int i = 0; i < 2; i++) {
            const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(codes.bytes[i], x));
            lanes[i] = _mm256_add_epi32(lanes[i], _mm256_madd_epi16(pairs, ones));
        }
    }
    Ints integers() const {
        Ints all;
        std::memcpy(&all, lanes, sizeof all);
        return all;
    }
};

struct PairSums {
    __m256i lanes[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};

    struct Codes {
        __m256i words[2];
        explicit Codes(const int8_t* from) {
            for (int i = 0; i < 2; i++) words[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)from + i));
        }
    };
    void add(const Codes& codes, int32_t two) {
        for (int i = 0; i < 2; i++)
            lanes[i] = _mm256_add_epi32(lanes[i], _mm256_madd_epi16(codes.words[i], _mm256_set1_epi32(two)));
    }
    Ints integers() const {
        Ints all;
        std::memcpy(&all, lanes, sizeof all);
        return all;
    }
};

#elif defined(__ARM_FEATURE_DOTPROD)

struct Sums {
    int32x4_t lanes[4];

    explicit Sums(uint32_t) : lanes{vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)} {}
    struct Codes {
        int8x16_t bytes[4];
        explicit Codes(const uint8_t* from) {
            for (int i = 0; i < 4; i++)
                bytes[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(from + 16 * i), vdupq_n_u8(128)));
        }
    };
    void add(const Codes& codes, int32_t four) {
        const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
        for (int i = 0; i < 4; i++) lanes[i] = vdotq_s32(lanes[i], codes.bytes[i], x);
    }
    Ints integers() const {
        Ints all;
        std::memcpy(&all, lanes, sizeof all);
        return all;
    }
};

struct PairSums {
    int32x4_t lanes[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};

    struct Codes {
        int16x4_t first[4], second[4];
        explicit Codes(const int8_t* from) {
            const int8x16x2_t pairs = vld2q_s8(from);
            const int16x8_t a = vmovl_s8(vget_low_s8(pairs.val[0])), b = vmovl_high_s8(pairs.val[0]);
            const int16x8_t c = vmovl_s8(vget_low_s8(pairs.val[1])), d = vmovl_high_s8(pairs.val[1]);
            first[0] = vget_low_s16(a), first[1] = vget_high_s16(a), first[2] = vget_low_s16(b), first[3] = vget_high_s16(b);
            second[0] = vget_low_s16(c), second[1] = vget_high_s16(c);
            second[2] = vget_low_s16(d), second[3] = vget_high_s16(d);
        }
    };
    void add(const Codes& codes, int32_t two) {
        for (int i = 0; i < 4; i++) {
            lanes[i] = vmlal_n_s16(lanes[i], codes.first[i], (int16_t)(two & 0xffff));
            lanes[i] = vmlal_n_s16(lanes[i], codes.second[i], (int16_t)(two >> 16));
        }
    }
    Ints integers() const {
        Ints all;
        std::memcpy(&all, lanes, sizeof all);
        return all;
    }
};

#else

struct Sums {
    Ints lanes = {};

    explicit Sums(uint32_t) {}
    struct Codes {
        const uint8_t* bytes;
        explicit Codes(const uint8_t* from) : bytes(from) {}
    };
    void add(const Codes& codes, int32_t four) {
        const int8_t* x = (const int8_t*)&four;
        for (int i = 0; i < kLanes; i++)
            for (int j = 0; j < 4; j++) lanes[i] += ((int)codes.bytes[4 * i + j] - 128) * x[j];
    }
    Ints integers() const { return lanes; }
};

struct PairSums {
    Ints lanes = {};

    struct Codes {
        const int8_t* bytes;
        explicit Codes(const int8_t* from) : bytes(from) {}
    };
    void add(const Codes& codes, int32_t two) {
        int16_t x[2];
        std::memcpy(x, &two, sizeof x);
        for (int i = 0; i < kLanes; i++) lanes[i] += codes.bytes[2 * i] * x[0] + codes.bytes[2 * i + 1] * x[1];
    }
    Ints integers() const { return lanes; }
};

#endif

template <int... I, class Offset>
inline std::array<Sums, sizeof...(I)> sums_of(std::integer_sequence<int, I...>, const Offset& offset) {
    return {Sums(offset(I))...};
}

// N sums that begin at offset(0), offset(1) ...
template <int N, class Offset>
inline std::array<Sums, N> sums_of(const Offset& offset) {
    return sums_of(std::make_integer_sequence<int, N>{}, offset);
}

// Four signed bytes, or two 16-bit numbers, that all lanes are multiplied with.
template <class T>
inline int32_t load_word(const T* from) {
    int32_t word;
    std::memcpy(&word, from, 4);
    return word;
}

}  // namespace warmstart
