// Products of activations with matrices, shared out to the threads: one loop for all that a step multiplies with parts of
// a matrix, or with several experts.
#pragma once

#include <algorithm>
#include <climits>

#include "gemm.h"
#include "pool.h"
#include "tile_blocks.h"

namespace warmstart {

// The rows begin ... end - 1 of the activations, times a matrix. Its tasks are groups of panels x blocks of rows.
struct Job {
    Matrix w;
    int begin, end;
    int wide = 0, groups = 0, first_task = 0;  // set by multiply: panels of a group, groups, the number of its first task

    int rows() const { return end - begin; }
};

// Long prompts are cut into blocks of rows: their activations then stay in the second cache.
constexpr int kBlockRows = kBlockTokensAtOnce;

inline bool uses_tiles(const Job& job) {
    return kHasTiles && job.w.kind == kInt8 && job.rows() >= kLeastTileTokens;
}

// Panels of a matrix that are multiplied at once.
inline int panels_at_once(const Job& job) {
    if (uses_tiles(job)) return 1;
    if (job.rows() == 1) return kSinglePanels;
    if (!is_block(job.w.kind)) return kTilePanels;
    return job.rows() >= kTallTileRows && is_tall(format_of(job.w.kind)) ? 1 : kBlockPanels;
}

// A group of panels, fewer at the end of the matrix, x the rows begin ... end - 1.
template <int K>
inline void multiply_group(const Job& job, const Activations& a, int begin, int end, int panel, float* out, int stride,
                           float add) {
    const Matrix& w = job.w;
    const int last = std::min(panel + job.wide, w.rows / kLanes);
    const bool whole = last == panel + job.wide;
    if (whole && job.rows() == 1)
        tile<1, kSinglePanels, K>(a, begin, w, panel, out, stride, add);
    else if (whole)
        panels<kTilePanels, K>(a, begin, end, w, panel, out, stride, add);
    else
        for (; panel < last; panel++) panels<1, K>(a, begin, end, w, panel, out, stride, add);
}

// The same with a matrix in a block format.
inline void multiply_blocks(const Job& job, const Activations& a, int begin, int end, int panel, float* out, int stride,
                            float add) {
    const Matrix& w = job.w;
    const int last = std::min(panel + job.wide, w.rows / kLanes);
    if (job.wide == 1 || last < panel + job.wide)
        for (; panel < last; panel++) panels_blocks<1>(a, begin, end, w, panel, out, stride, add);
    else if (job.rows() == 1)
        panels_blocks<kSinglePanels>(a, begin, end, w, panel, out, stride, add);
    else
        panels_blocks<kBlockPanels>(a, begin, end, w, panel, out, stride, add);
}

// The tasks first ... last - 1 of a job.
inline void run_tasks(const Job& job, const Activations& a, int first, int last, float* out, int stride, float add) {
    const auto each = [&](auto group) {
        for (int task = first; task < last; task++) {
            const int begin = job.begin + task / job.groups * kBlockRows, end = std::min(begin + kBlockRows, job.end);
            group(begin, end, task % job.groups * job.wide);
        }
    };
    if (uses_tiles(job)) {
        const TileShapes shapes(job.w.columns, job.rows());
        return each([&](int begin, int end, int panel) { tile_tokens(a, begin, end, job.w, panel, out, stride, add); });
    }
    each([&](int begin, int end, int panel) {
        switch (job.w.kind) {
            case kFloat32: return multiply_group<kFloat32>(job, a, begin, end, panel, out, stride, add);
            case kBfloat16: return multiply_group<kBfloat16>(job, a, begin, end, panel, out, stride, add);
            case kFloat16: return multiply_group<kFloat16>(job, a, begin, end, panel, out, stride, add);
            case kInt8: return multiply_group<kInt8>(job, a, begin, end, panel, out, stride, add);
            default: return multiply_blocks(job, a, begin, end, panel, out, stride, add);
        }
    });
}

// out[row][output] = sum over columns of activations x weights, plus the bias, for each job's rows and outputs; with
// `add`, out += add x that.
inline void multiply(Pool& pool, const Activations& a, Job* jobs, int count, float* out, int stride, float add = 0) {
    int tasks = 0, least = INT_MAX, most = 0;
    bool tiles = false;
    for (Job* job = jobs; job < jobs + count; job++) {
        job->wide = panels_at_once(*job);
        job->groups = (job->w.rows / kLanes + job->wide - 1) / job->wide;
        job->first_task = tasks;
        tasks += job->groups * ((job->rows() + kBlockRows - 1) / kBlockRows);
        least = std::min(least, job->rows()), most = std::max(most, job->rows());
        tiles |= uses_tiles(*job);
    }
    // Tasks of many rows are long, and those of different jobs not alike: such are shared out in smaller portions.
    const int limit = most >= 32 ? (tiles ? 4 : 1) : tiles ? 16 : INT_MAX;
    const int grain = std::max(1, std::min(limit, tasks / (pool.threads() * (least == most ? 4 : 16))));
    pool.run(tasks, grain, [&](int first, int last, int) {
        const Job* job = std::upper_bound(jobs, jobs + count, first,
                                          [](int task, const Job& other) { return task < other.first_task; }) - 1;
        while (first < last) {
            const int end = job + 1 < jobs + count ? std::min(last, job[1].first_task) : last;
            run_tasks(*job, a, first - job->first_task, end - job->first_task, out, stride, add);
            first = end, job++;
        }
    });
}

}  // namespace warmstart
