// Sums of int8 products with the instructions sdot and smmla (Arm Architecture Reference Manual, DDI 0487, C7.2), the same
// integers as the other kernels. Included by gemm.h.
#pragma once

namespace warmstart {

// Sixteen bytes of weights as signed numbers.
inline int8x16_t signed_weights(const uint8_t* from) {
    return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(from), vdupq_n_u8(128)));
}

// Four sums of a group, with the scales of the group, to four totals.
inline void add_scaled(float* total, int32x4_t sums, const float* scales, float step) {
    const float32x4_t value = vmulq_f32(vcvtq_f32_s32(sums), vld1q_f32(scales));
    vst1q_f32(total, vfmaq_n_f32(vld1q_f32(total), value, step));
}

#if defined(__ARM_FEATURE_MATMUL_INT8)

// An even number of tokens: smmla multiplies eight columns of two tokens with those of two rows.
template <int M, int P>
inline void group_int8_pairs(const int8_t* rows, int stride, const uint8_t* data, size_t panel_bytes, int columns,
                             int32x4_t (&sums)[M][P][4]) {
    int32x4_t acc[M / 2][P][8];
    for (auto& pair : acc)
        for (auto& panel : pair)
            for (auto& four : panel) four = vdupq_n_s32(0);
    for (int k = 0; k < columns; k += 8) {
        int8x16_t two[M / 2];
        for (int m = 0; m < M / 2; m++)
            two[m] = vcombine_s8(vld1_s8(rows + (size_t)(2 * m) * stride + k),
                                 vld1_s8(rows + (size_t)(2 * m + 1) * stride + k));
        for (int p = 0; p < P; p++)
            for (int q = 0; q < 4; q++) {
                const uint8_t* from = data + p * panel_bytes + (size_t)k * kLanes + 16 * q;
                const int32x4_t even = vreinterpretq_s32_s8(signed_weights(from));
                const int32x4_t odd = vreinterpretq_s32_s8(signed_weights(from + 4 * kLanes));
                const int8x16_t first = vreinterpretq_s8_s32(vzip1q_s32(even, odd));
                const int8x16_t second = vreinterpretq_s8_s32(vzip2q_s32(even, odd));
                for (int m = 0; m < M / 2; m++) {
                    acc[m][p][2 * q] = vmmlaq_s32(acc[m][p][2 * q], two[m], first);
                    acc[m][p][2 * q + 1] = vmmlaq_s32(acc[m][p][2 * q + 1], two[m], second);
                }
            }
    }
    for (int m = 0; m < M / 2; m++)
        for (int p = 0; p < P; p++)
            for (int q = 0; q < 4; q++) {
                const int32x4_t first = acc[m][p][2 * q], second = acc[m][p][2 * q + 1];
                sums[2 * m][p][q] = vcombine_s32(vget_low_s32(first), vget_low_s32(second));
                sums[2 * m + 1][p][q] = vcombine_s32(vget_high_s32(first), vget_high_s32(second));
            }
}

#endif

template <int Lane, int M, int P>
inline void four_columns(const int8x16_t (&tokens)[M], const uint8_t* data, size_t panel_bytes,
                         int32x4_t (&sums)[M][P][4]) {
    for (int p = 0; p < P; p++)
        for (int q = 0; q < 4; q++) {
            const int8x16_t weights = signed_weights(data + p * panel_bytes + Lane * 4 * kLanes + 16 * q);
            for (int m = 0; m < M; m++) sums[m][p][q] = vdotq_laneq_s32(sums[m][p][q], weights, tokens[m], Lane);
        }
}

template <int M, int P>
inline void group_int8(const int8_t* rows, int stride, const uint8_t* data, size_t panel_bytes, int columns,
                       int32x4_t (&sums)[M][P][4]) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
    if constexpr (M % 2 == 0) return group_int8_pairs<M, P>(rows, stride, data, panel_bytes, columns, sums);
#endif
    for (auto& token : sums)
        for (auto& panel : token)
            for (auto& four : panel) four = vdupq_n_s32(0);
    for (int k = 0; k < columns; k += 16) {
        int8x16_t tokens[M];
        for (int m = 0; m < M; m++) tokens[m] = vld1q_s8(rows + (size_t)m * stride + k);
        const uint8_t* from = data + (size_t)k * kLanes;
        four_columns<0>(tokens, from, panel_bytes, sums);
        four_columns<1>(tokens, from, panel_bytes, sums);
        four_columns<2>(tokens, from, panel_bytes, sums);
        four_columns<3>(tokens, from, panel_bytes, sums);
    }
}

// The sums of M tokens x P panels with int8 weights.
template <int M, int P>
inline void tile_int8(const Activations& a, int token, const Matrix& w, int panel, Floats (&total)[M][P]) {
    const size_t panel_bytes = w.panel_bytes();
    const uint8_t* data = w.data + panel * panel_bytes;
    const int8_t* rows = a.quantized + (size_t)token * a.stride;
    for (int g = 0; g < a.groups; g++) {
        const int first = g * kGroup, columns = std::min(kGroup, w.columns - first);
        int32x4_t sums[M][P][4];
        group_int8<M, P>(rows + first, a.stride, data + (size_t)first * kLanes, panel_bytes, columns, sums);
        for (int p = 0; p < P; p++) {
            const float* scales = w.scales + ((size_t)(panel + p) * a.groups + g) * kLanes;
            for (int m = 0; m < M; m++)
                for (int q = 0; q < 4; q++)
                    add_scaled((float*)&total[m][p] + 4 * q, sums[m][p][q], scales + 4 * q,
                               a.scales[(size_t)(token + m) * a.groups + g]);
        }
    }
}

}  // namespace warmstart
