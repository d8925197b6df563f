// Energies and forces of many conformations of one molecule, hand-derived, compiled on the user's machine by kernel.py.
//
// W conformations form a tile whose lanes are the vector lanes: every array below is [..., W], every inner loop runs over
// the W lanes, and one tile (positions, forces, and a few numbers for each pair) stays in cache from beginning to end.
// The formulas are those of the torch terms in this folder, which remain the reference. Without -ffinite-math-only, so that
// a NaN position gives a NaN energy in its own lane and nothing else.

#include "kernel_bonded.h"
#include "kernel_model.h"

namespace {

// The integral of one atom (offset radius rho) descreened by the sphere s of another, and its slope. The ends U = r + s and,
// outside the sphere, L = |r - s| are stationary points, so only the explicit r is differentiated; inside it (L = s - r)
// the slope misses 1/L^2, unless the extra 1/rho - 1/L is there to cancel it.
template <class T>
inline T descreening(T r, T inverse_r, T rho, T s, bool engulfed, T &slope) {
    const T upper = r + s, distance = std::abs(r - s);
    const T lower = distance > rho ? distance : rho;
    const T inverse = 1 / (lower * upper);
    const T il = upper * inverse, iu = lower * inverse;
    const T squares = T(0.125) * (iu * iu - il * il), ratio = s * s * inverse_r;
    const T logarithm = T(0.25) * boltzflow::log(lower * iu) * inverse_r;
    // Masks are numbers: a choice between computed values would be a branch, which does not vectorise.
    const T inside = rho < s - r ? T(1) : T(0), near = upper > rho ? T(1) : T(0);
    T value = T(0.5) * (il - iu) + (r - ratio) * squares + logarithm;
    T d = (1 + ratio * inverse_r) * squares - logarithm * inverse_r;
    if (engulfed)
        value += inside * (1 / rho - il);
    else
        d += inside * il * il;
    slope = near * d;
    return near * value;
}

// The neck between two atoms, of a given centre and height, and its slope; beyond its reach there is none.
template <class T>
inline T necking(T r, T reach, T centre, T height, T &slope) {
    const T d = r - centre, d2 = d * d, d5 = d2 * d2 * d;
    const T near = r <= reach ? T(1) : T(0);
    const T inverse = 1 / (1 + 100 * d2 + T(3e5) * d5 * d), value = near * height * inverse;
    slope -= value * inverse * (200 * d + T(1.8e6) * d5);
    return value;
}

template <class T, int W>
struct Scratch {
    std::vector<T> memory;
    T *x, *f, *radial, *slope_i, *slope_j, *born, *rate, *chain;
    explicit Scratch(int64_t n, bool pairs, bool born_radii) {
        const int64_t p = n * (n - 1) / 2;
        memory.resize(W * (9 * n + (pairs ? p : 0) + (born_radii ? 2 * p : 0)) + 64 / sizeof(T));
        T *next = memory.data();
        while (reinterpret_cast<uintptr_t>(next) % 64) ++next;
        auto take = [&](int64_t rows) { T *here = next; next += rows * W; return here; };
        x = take(3 * n), f = take(3 * n), born = take(n), rate = take(n), chain = take(n);
        radial = take(pairs ? p : 0), slope_i = take(born_radii ? p : 0), slope_j = take(born_radii ? p : 0);
    }
};

// 1. Born radii, and the slopes of the descreening integrals for step 3.
template <class T, int W, bool engulfed, bool has_neck, bool has_cutoff, bool has_soft>
void born_radii(const Model<T> &m, Scratch<T, W> &t, double *energy) {
    const int64_t n = m.n_atoms;
    const T cutoff = m.born_cutoff;
    for (int64_t k = 0; k < n * W; ++k) t.born[k] = 0;
    int64_t p = 0;
    for (int64_t i = 0; i < n; ++i) {
        const T *xi = t.x + 3 * W * i;
        const T rho_i = m.born[7 * i + 1], s_i = m.born[7 * i + 3];
        T sum[W] = {};
        for (int64_t j = i + 1; j < n; ++j, ++p) {
            const T *xj = t.x + 3 * W * j;
            const T rho_j = m.born[7 * j + 1], s_j = m.born[7 * j + 3];
            const T *neck = m.neck + 5 * p;
            const T share = has_soft ? m.soft[3 * p + 2] : T(1);
            T *sum_j = t.born + W * j, *slope_i = t.slope_i + W * p, *slope_j = t.slope_j + W * p;
            LANES {
                const T dx = xi[w] - xj[w], dy = xi[W + w] - xj[W + w], dz = xi[2 * W + w] - xj[2 * W + w];
                const T squared = dx * dx + dy * dy + dz * dz + T(kTiny);
                const T inverse_r = 1 / std::sqrt(squared), r = squared * inverse_r;
                T di, dj;
                T by_j = descreening<T>(r, inverse_r, rho_i, s_j, engulfed, di);
                T by_i = descreening<T>(r, inverse_r, rho_j, s_i, engulfed, dj);
                if (has_neck) {
                    by_j += necking<T>(r, neck[0], neck[1], neck[2], di);
                    by_i += necking<T>(r, neck[0], neck[3], neck[4], dj);
                }
                if (has_cutoff) {
                    const T near = r < cutoff ? T(1) : T(0);
                    by_j *= near, by_i *= near, di *= near, dj *= near;
                }
                if (has_soft) by_j *= share, by_i *= share, di *= share, dj *= share;
                sum[w] += by_j;
                sum_j[w] += by_i;
                slope_i[w] = di, slope_j[w] = dj;
            }
        }
        LANES t.born[W * i + w] += sum[w];
    }
    const T prefactor = m.prefactor, surface = m.surface;
    for (int64_t i = 0; i < n; ++i) {
        const T charge = m.born[7 * i], rho = m.born[7 * i + 1], radius = m.born[7 * i + 2];
        const T alpha = m.born[7 * i + 4], beta = m.born[7 * i + 5], gamma = m.born[7 * i + 6];
        const T area = surface * (radius + T(kProbe)) * (radius + T(kProbe));
        T *born = t.born + W * i, *chain = t.chain + W * i;
        LANES {
            const T psi = born[w] * rho;
            const T argument = psi * (alpha - psi * (beta - psi * gamma));
            const T tanh = 1 - 2 / (boltzflow::exp(2 * argument) + 1);
            const T b = 1 / (1 / rho - tanh / radius);
            // rate = dB/dI
            t.rate[W * i + w] = b * b * rho / radius * (1 - tanh) * (1 + tanh) * (alpha - psi * (2 * beta - psi * 3 * gamma));
            const T ratio = radius / b, r2 = ratio * ratio, ace = area * r2 * r2 * r2;
            const T own = T(-0.5) * prefactor * charge * charge / b;
            energy[w] += own + ace;
            chain[w] = -(own + 6 * ace) / b;  // dE/dB, to which the pairs add
            born[w] = b;
        }
    }
}

// 2. All pairs: energies, their slopes dE/dr / r at fixed Born radii, and dE/dB.
template <class T, int W, bool has_pairs, bool has_born, bool has_cutoff, bool has_soft>
void pairs(const Model<T> &m, Scratch<T, W> &t, double *energy) {
    const int64_t n = m.n_atoms;
    const T prefactor = m.prefactor;
    const T cutoff = m.cutoff, switching = m.switching, field = m.field, shift = m.shift, born_cutoff = m.born_cutoff;
    const T scale = switching < cutoff ? 1 / (cutoff - switching) : T(0), born_shift = m.born_shift;
    int64_t p = 0;
    for (int64_t i = 0; i < n; ++i) {
        const T *xi = t.x + 3 * W * i;
        const T charge_i = has_born ? prefactor * m.born[7 * i] : T(0);
        T sum[W] = {}, chain_i[W] = {};
        for (int64_t j = i + 1; j < n; ++j, ++p) {
            const T *xj = t.x + 3 * W * j;
            const T *pair = m.pair + 4 * p;
            const T charges = has_born ? charge_i * m.born[7 * j] * (has_soft ? m.soft[3 * p + 1] : T(1)) : T(0);
            const T soft = has_soft ? m.soft[3 * p] : T(0);
            const T *born_i = t.born + W * i, *born_j = t.born + W * j;
            T *chain_j = t.chain + W * j, *radial = t.radial + W * p;
            LANES {
                const T dx = xi[w] - xj[w], dy = xi[W + w] - xj[W + w], dz = xi[2 * W + w] - xj[2 * W + w];
                const T squared = dx * dx + dy * dy + dz * dz + T(kTiny);
                T e = 0, g = 0, r = 0;
                if (has_cutoff) r = std::sqrt(squared);
                if (has_pairs) {
                    const T inverse_r = 1 / std::sqrt(squared), inverse_squared = inverse_r * inverse_r;
                    const T s2 = pair[1] * pair[1] * inverse_squared;
                    T s6 = s2 * s2 * s2, core = 1;
                    if (has_soft) {  // 1 / (shift + (r/sigma)^6); the limit keeps single precision from inf / inf
                        s6 = s6 > T(1e36) ? T(1e36) : s6;
                        core = 1 / (1 + soft * s6);
                        s6 *= core;
                    }
                    T lj = pair[2] * (s6 * (s6 - 1)), lj_slope = core * pair[2] * (s6 * (6 - 12 * s6)) * inverse_squared;
                    T charge = pair[0] * inverse_r, charge_slope = -charge * inverse_squared;
                    if (has_cutoff) {
                        const T counts = pair[3], near = r < cutoff ? T(1) : 1 - counts;
                        T x = (r - switching) * scale * counts;
                        x = x > 0 ? x : T(0), x = x < 1 ? x : T(1);
                        const T factor = 1 + x * x * x * (-10 + x * (15 - 6 * x));
                        lj_slope = factor * lj_slope - lj * inverse_r * scale * x * x * (30 + x * (30 * x - 60));
                        lj *= factor;
                        charge += counts * pair[0] * (field * squared - shift);
                        charge_slope += counts * pair[0] * 2 * field;
                        lj *= near, charge *= near, lj_slope *= near, charge_slope *= near;
                    }
                    e += lj + charge;
                    g += lj_slope + charge_slope;
                }
                if (has_born) {
                    const T product = born_i[w] * born_j[w], x = T(0.25) * squared / product, exponential = boltzflow::exp(-x);
                    const T inverse_f = 1 / std::sqrt(squared + product * exponential);
                    const T near = has_cutoff && !(r < born_cutoff) ? T(0) : T(1);
                    const T screened = near * charges * inverse_f;
                    const T slope = T(0.5) * screened * inverse_f * inverse_f;  // dE/d(f^2)
                    e -= has_cutoff ? screened - near * charges * born_shift : screened;
                    g += slope * (2 - T(0.5) * exponential);
                    const T common = slope * exponential * (1 + x);
                    chain_i[w] += common * born_j[w];
                    chain_j[w] += common * born_i[w];
                }
                sum[w] += e;
                radial[w] = g;
            }
        }
        LANES energy[w] += sum[w];
        if (has_born) LANES t.chain[W * i + w] += chain_i[w];
    }
}

// 3. The forces along all pairs, with the change of the Born radii.
template <class T, int W, bool has_born>
void pair_forces(const Model<T> &m, Scratch<T, W> &t) {
    const int64_t n = m.n_atoms;
    if (has_born)
        for (int64_t k = 0; k < n * W; ++k) t.chain[k] *= t.rate[k];
    int64_t p = 0;
    for (int64_t i = 0; i < n; ++i) {
        const T *xi = t.x + 3 * W * i;
        T fx[W] = {}, fy[W] = {}, fz[W] = {};
        for (int64_t j = i + 1; j < n; ++j, ++p) {
            const T *xj = t.x + 3 * W * j, *radial = t.radial + W * p;
            const T *chain_i = t.chain + W * i, *chain_j = t.chain + W * j;
            const T *slope_i = t.slope_i + W * p, *slope_j = t.slope_j + W * p;
            T *fj = t.f + 3 * W * j;
            LANES {
                const T dx = xi[w] - xj[w], dy = xi[W + w] - xj[W + w], dz = xi[2 * W + w] - xj[2 * W + w];
                T g = radial[w];
                if (has_born) {
                    const T inverse_r = 1 / std::sqrt(dx * dx + dy * dy + dz * dz + T(kTiny));
                    g += (chain_i[w] * slope_i[w] + chain_j[w] * slope_j[w]) * inverse_r;
                }
                fx[w] -= g * dx, fy[w] -= g * dy, fz[w] -= g * dz;
                fj[w] += g * dx, fj[W + w] += g * dy, fj[2 * W + w] += g * dz;
            }
        }
        T *fi = t.f + 3 * W * i;
        LANES fi[w] += fx[w], fi[W + w] += fy[w], fi[2 * W + w] += fz[w];
    }
}

template <class T, int W, bool has_pairs, bool has_born, bool has_cutoff, bool has_soft>
void all_pairs(const Model<T> &m, Scratch<T, W> &t, double *energy) {
    if (has_born) {
        if (m.has_neck)
            born_radii<T, W, false, true, has_cutoff, has_soft>(m, t, energy);
        else if (m.engulfed)
            born_radii<T, W, true, false, has_cutoff, has_soft>(m, t, energy);
        else
            born_radii<T, W, false, false, has_cutoff, has_soft>(m, t, energy);
    }
    pairs<T, W, has_pairs, has_born, has_cutoff, has_soft>(m, t, energy);
    pair_forces<T, W, has_born>(m, t);
}

template <class T, int W, bool has_cutoff, bool has_soft>
void all_pairs(const Model<T> &m, Scratch<T, W> &t, double *energy) {
    if (m.has_pairs && m.has_born)
        all_pairs<T, W, true, true, has_cutoff, has_soft>(m, t, energy);
    else if (m.has_born)
        all_pairs<T, W, false, true, has_cutoff, has_soft>(m, t, energy);
    else if (m.has_pairs)
        all_pairs<T, W, true, false, has_cutoff, has_soft>(m, t, energy);
}

template <class T, int W>
void evaluate(const Model<T> &m, const T *positions, double *energies, T *forces, int64_t batch) {
    const int64_t n = m.n_atoms, row = 3 * n;
    const bool pairs = m.has_pairs, born = m.has_born;
    Scratch<T, W> t(n, pairs || born, born);
    for (int64_t start = 0; start < batch; start += W) {
        const int filled = batch - start < W ? int(batch - start) : W;
        for (int w = 0; w < W; ++w) {  // the last tile repeats the last conformation in its empty lanes
            const T *from = positions + (start + (w < filled ? w : filled - 1)) * row;
            for (int64_t k = 0; k < row; ++k) t.x[k * W + w] = from[k];
        }
        for (int64_t k = 0; k < row * W; ++k) t.f[k] = 0;
        double energy[W] = {};
        bonds<T, W>(m, t.x, t.f, energy);
        angles<T, W>(m, t.x, t.f, energy);
        torsions<T, W>(m, t.x, t.f, energy);
        correction_maps<T, W>(m, t.x, t.f, energy);
        if (m.has_soft)  // its cutoffs may be huge
            all_pairs<T, W, true, true>(m, t, energy);
        else if (m.has_cutoff)
            all_pairs<T, W, true, false>(m, t, energy);
        else
            all_pairs<T, W, false, false>(m, t, energy);
        for (int w = 0; w < filled; ++w) {
            T *to = forces + (start + w) * row;
            for (int64_t k = 0; k < row; ++k) to[k] = t.f[k * W + w];
            energies[start + w] = energy[w];
        }
    }
}

}  // namespace

extern "C" void boltzflow_float(const void *model, const float *x, double *energy, float *force, int64_t batch) {
    evaluate<float, 16>(*static_cast<const Model<float> *>(model), x, energy, force, batch);
}

extern "C" void boltzflow_double(const void *model, const double *x, double *energy, double *force, int64_t batch) {
    evaluate<double, 8>(*static_cast<const Model<double> *>(model), x, energy, force, batch);
}
