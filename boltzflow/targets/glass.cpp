// Energies, forces and Metropolis trials of many configurations of one liquid, compiled on the user's machine by
// glass_kernel.py.
//
// The pairs are the same in all lanes. The formulas are those of glass.py, which remains the reference. Without
// -ffinite-math-only, so that NaN stays in its own lane.

#include <cmath>
#include <vector>

#include "tile.h"

namespace {

struct Model {
    int64_t n;
    const double *inverse_square, *depth;  // (n, n): 1/sigma^2 and 4 epsilon
    double length, cut, c0, c2, c4;
};

// Half to even, as torch rounds; for numbers far below 2^51.
inline double rounded(double x) {
    constexpr double magic = 6755399441055744.0;
    return (x + magic) - magic;
}

// (r/sigma)^2 up to the cutoff between a particle and its nearest image; NaN stays.
inline double reduced_square(double &dx, double &dy, double length, double inverse_length, double inverse_square, double cut) {
    dx -= length * rounded(dx * inverse_length);
    dy -= length * rounded(dy * inverse_length);
    const double q = (dx * dx + dy * dy) * inverse_square;
    return q > cut ? cut : q;
}

// Adds the energy of the particle in `slot`, put at p, with all others but two slots.
inline void add_energy(const Model &m, const double *x, const double *p, int64_t slot, int64_t a, int64_t b, double *sum) {
    const double inverse_length = 1 / m.length;
    for (int64_t j = 0; j < m.n; ++j) {
        if (j == a || j == b) continue;
        const double s2 = m.inverse_square[slot * m.n + j], depth = m.depth[slot * m.n + j];
        const double *xj = x + 2 * W * j;
        LANES {
            double dx = xj[w] - p[w], dy = xj[W + w] - p[W + w];
            const double q = reduced_square(dx, dy, m.length, inverse_length, s2, m.cut);
            const double inverse = 1 / q, s = inverse * inverse * inverse;
            sum[w] += depth * (s * (s - 1) + m.c0 + q * (m.c2 + m.c4 * q));
        }
    }
}

}  // namespace

extern "C" {

// Energies (batch) and, unless it is null, forces (batch, n, 2) of positions (batch, n, 2).
void liquid_energies(const Model *model, const double *positions, double *energy, double *force, int64_t batch) {
    const Model &m = *model;
    const double inverse_length = 1 / m.length;
    std::vector<double> tile(2 * m.n * W), pull(2 * m.n * W);
    for (int64_t first = 0; first < batch; first += W) {
        load(positions, 2 * m.n, first, batch, tile.data());
        double sum[W] = {};
        for (double &f : pull) f = 0;
        for (int64_t i = 0; i < m.n; ++i) {
            const double *xi = tile.data() + 2 * W * i;
            double *fi = pull.data() + 2 * W * i;
            for (int64_t j = i + 1; j < m.n; ++j) {
                const double *xj = tile.data() + 2 * W * j;
                double *fj = pull.data() + 2 * W * j;
                const double s2 = m.inverse_square[i * m.n + j], depth = m.depth[i * m.n + j];
                LANES {
                    double dx = xj[w] - xi[w], dy = xj[W + w] - xi[W + w];
                    const double q = reduced_square(dx, dy, m.length, inverse_length, s2, m.cut);
                    const double inverse = 1 / q, s = inverse * inverse * inverse;
                    sum[w] += depth * (s * (s - 1) + m.c0 + q * (m.c2 + m.c4 * q));
                    const double slope = 2 * depth * s2 * (3 * s * inverse * (1 - 2 * s) + m.c2 + 2 * m.c4 * q);
                    fi[w] += slope * dx, fi[W + w] += slope * dy;
                    fj[w] -= slope * dx, fj[W + w] -= slope * dy;
                }
            }
        }
        for (int w = 0; w < W && first + w < batch; ++w) energy[first + w] = sum[w];
        if (force) store(force, 2 * m.n, first, batch, pull.data());
    }
}

// Metropolis trials one after the other on rows [0, batch) of positions (., n, 2), in place.
//
// Of trial t either the particle slots[2t] moves by shifts (t, stride, 2), or, without shifts, it exchanges places with
// slots[2t + 1]. log_uniforms is (t, stride), beta (batch). Adds to accepted (batch) and to the acceptance probabilities
// total (batch).
void liquid_trials(const Model *model, double *positions, const int32_t *slots, const double *shifts, const double *log_uniforms,
                   const double *beta, double *accepted, double *total, int64_t n_trials, int64_t batch, int64_t stride) {
    const Model &m = *model;
    std::vector<double> tile(2 * m.n * W);
    for (int64_t first = 0; first < batch; first += W) {
        load(positions, 2 * m.n, first, batch, tile.data());
        double counts[W] = {}, chances[W] = {}, b[W];
        for (int w = 0; w < W; ++w) b[w] = beta[first + w < batch ? first + w : batch - 1];
        for (int64_t t = 0; t < n_trials; ++t) {
            const int64_t i = slots[2 * t], j = shifts ? i : slots[2 * t + 1];
            double *xi = tile.data() + 2 * W * i, *xj = tile.data() + 2 * W * j;
            double place[2 * W], before[W] = {}, after[W] = {}, odds[W];
            if (shifts) {
                for (int w = 0; w < W; ++w) {
                    const int64_t row = first + w < batch ? first + w : batch - 1;
                    const double *shift = shifts + 2 * (t * stride + row);
                    place[w] = xi[w] + shift[0], place[W + w] = xi[W + w] + shift[1];
                }
            } else {
                for (int k = 0; k < 2 * W; ++k) place[k] = xj[k];
                add_energy(m, tile.data(), xj, j, i, j, before);
                add_energy(m, tile.data(), xi, j, i, j, after);
            }
            add_energy(m, tile.data(), xi, i, i, j, before);
            add_energy(m, tile.data(), place, i, i, j, after);
            LANES odds[w] = b[w] * (before[w] - after[w]);
            for (int w = 0; w < W; ++w) {
                const int64_t row = first + w < batch ? first + w : batch - 1;
                if (odds[w] == odds[w]) chances[w] += odds[w] < 0 ? std::exp(odds[w]) : 1;
                if (!(log_uniforms[t * stride + row] < odds[w])) continue;
                counts[w] += 1;
                if (!shifts) xj[w] = xi[w], xj[W + w] = xi[W + w];
                xi[w] = place[w], xi[W + w] = place[W + w];
            }
        }
        store(positions, 2 * m.n, first, batch, tile.data());
        for (int w = 0; w < W && first + w < batch; ++w) accepted[first + w] += counts[w], total[first + w] += chances[w];
    }
}
}
