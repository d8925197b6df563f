// W configurations form a tile whose lanes are the vector lanes: arrays are [..., W], inner loops run over the lanes.

#pragma once

#include <cstdint>

#define LANES _Pragma("omp simd") for (int w = 0; w < W; ++w)

constexpr int W = 16;

// Rows [first, first + W) of (batch, size) as a tile [size, W]; lanes beyond the batch repeat its last row.
inline void load(const double *rows, int64_t size, int64_t first, int64_t batch, double *tile) {
    for (int w = 0; w < W; ++w) {
        const double *row = rows + size * (first + w < batch ? first + w : batch - 1);
        for (int64_t k = 0; k < size; ++k) tile[W * k + w] = row[k];
    }
}

inline void store(double *rows, int64_t size, int64_t first, int64_t batch, const double *tile) {
    for (int w = 0; w < W && first + w < batch; ++w)
        for (int64_t k = 0; k < size; ++k) rows[size * (first + w) + k] = tile[W * k + w];
}
