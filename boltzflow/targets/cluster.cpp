// Energies and forces of many Lennard-Jones clusters, compiled on the user's machine by cluster_kernel.py. The formulas
// are those of particles.py, which remains the reference. Without -ffinite-math-only, so that NaN stays in its own lane.

#include <vector>

#include "tile.h"

namespace {

// u = depth sum_{i<j} s (s - 2) + spring/2 sum_{i<j} r^2, s = (square/r^2)^3; the springs are those of the centre of mass.
template <int D>
void energies(int64_t n, double depth, double square, double spring, const double *positions, double *energy, double *force,
              int64_t batch) {
    const int64_t size = n * D;
    std::vector<double> tile(size * W), pull(size * W);
    for (int64_t first = 0; first < batch; first += W) {
        load(positions, size, first, batch, tile.data());
        double sum[W] = {};
        for (double &f : pull) f = 0;
        for (int64_t i = 0; i < n; ++i) {
            const double *xi = tile.data() + D * W * i;
            double *fi = pull.data() + D * W * i;
            for (int64_t j = i + 1; j < n; ++j) {
                const double *xj = tile.data() + D * W * j;
                double *fj = pull.data() + D * W * j;
                LANES {
                    double d[D], q = 0;
                    for (int k = 0; k < D; ++k) d[k] = xj[W * k + w] - xi[W * k + w], q += d[k] * d[k];
                    const double inverse = 1 / q, ratio = square * inverse, s = ratio * ratio * ratio;
                    sum[w] += depth * s * (s - 2) + 0.5 * spring * q;
                    const double slope = 12 * depth * (1 - s) * s * inverse + spring;
                    for (int k = 0; k < D; ++k) fi[W * k + w] += slope * d[k], fj[W * k + w] -= slope * d[k];
                }
            }
        }
        for (int w = 0; w < W && first + w < batch; ++w) energy[first + w] = sum[w];
        if (force) store(force, size, first, batch, pull.data());
    }
}

}  // namespace

// Energies (batch) and, unless it is null, forces (batch, n, dim) of positions (batch, n, dim), dim from 1 to 3.
extern "C" void cluster_energies(int64_t n, int64_t dim, double depth, double square, double spring, const double *positions,
                                 double *energy, double *force, int64_t batch) {
    const auto run = dim == 1 ? energies<1> : dim == 2 ? energies<2> : energies<3>;
    run(n, depth, square, spring, positions, energy, force, batch);
}
