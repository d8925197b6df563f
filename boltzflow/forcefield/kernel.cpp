// Energies and forces of many conformations of one molecule, hand-derived, compiled on the user's machine by kernel.py.
//
// W conformations form a tile whose lanes are the vector lanes: every array below is [..., W], every inner loop runs over
// the W lanes, and one tile (positions, forces, and a few numbers for each pair) stays in cache from beginning to end.
// The formulas are those of the torch terms in this folder, which remain the reference. Without -ffinite-math-only, so that
// a NaN position gives a NaN energy in its own lane and nothing else.

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernel_math.h"

namespace {

// Mirrors kernel.Model in kernel.py, field by field. Lengths in nm, energies in kJ/mol, angles in rad.
template <class T>
struct Model {
    int64_t n_atoms, n_bonds, n_angles, n_torsions, n_harmonics, n_maps, has_pairs, has_born, has_neck, has_cutoff, engulfed;
    const int32_t *bond_atoms;   // [n_bonds][2]
    const T *bond;               // [n_bonds][3]: r0, k, and the least r - r0 that counts
    const int32_t *angle_atoms;  // [n_angles][3]
    const T *angle;              // [n_angles][2]: theta0, k
    const int32_t *torsion_atoms;  // [n_torsions][4], each quadruple once
    const T *torsion;  // [n_torsions][1 + 2 n_harmonics]: constant, then the factors of cos(n phi) and sin(n phi), n = 1, 2, ...
    const int32_t *map_atoms;  // [n_maps][10]: two dihedral angles, the first cell of the map, its size along an angle
    const T *map;      // [cells][16]: the bicubic polynomial of each cell, powers of the second angle fastest
    const T *pair;     // [n_atoms (n_atoms - 1) / 2][4], i < j: qq, sigma, 4 epsilon, 1 where the cutoff counts
    const T *born;     // [n_atoms][7]: charge, offset radius, radius, scaled radius, alpha, beta, gamma
    const T *neck;     // [n_atoms (n_atoms - 1) / 2][5], i < j: reach, then centre and height for i by j and for j by i
    double prefactor, surface;
    double cutoff, switching, field, shift;  // of the pairs: distances, k and c of the reaction field
    double born_cutoff, born_shift;          // distances are huge where there is none
};

constexpr double kTiny = 1e-24;   // nm^2, as TINY_SQUARED in geometry.py
constexpr double kProbe = 0.14;   // nm

#define LANES _Pragma("omp simd") for (int w = 0; w < W; ++w)

template <class T, int W>
void bonds(const Model<T> &m, const T *x, T *f, double *energy) {
    for (int64_t k = 0; k < m.n_bonds; ++k) {
        const int64_t ia = 3 * W * m.bond_atoms[2 * k], ib = 3 * W * m.bond_atoms[2 * k + 1];
        const T r0 = m.bond[3 * k], stiffness = m.bond[3 * k + 1], least = m.bond[3 * k + 2];
        LANES {
            const T dx = x[ia + w] - x[ib + w];
            const T dy = x[ia + W + w] - x[ib + W + w];
            const T dz = x[ia + 2 * W + w] - x[ib + 2 * W + w];
            const T r = std::sqrt(dx * dx + dy * dy + dz * dz + T(kTiny));
            const T excess = r - r0 < least ? least : r - r0;
            const T g = stiffness * excess / r;
            energy[w] += T(0.5) * stiffness * excess * excess;
            f[ia + w] -= g * dx, f[ia + W + w] -= g * dy, f[ia + 2 * W + w] -= g * dz;
            f[ib + w] += g * dx, f[ib + W + w] += g * dy, f[ib + 2 * W + w] += g * dz;
        }
    }
}

template <class T, int W>
void angles(const Model<T> &m, const T *x, T *f, double *energy) {
    for (int64_t k = 0; k < m.n_angles; ++k) {
        const int64_t ia = 3 * W * m.angle_atoms[3 * k], ib = 3 * W * m.angle_atoms[3 * k + 1],
                      ic = 3 * W * m.angle_atoms[3 * k + 2];
        const T theta0 = m.angle[2 * k], stiffness = m.angle[2 * k + 1];
        LANES {
            const T bx = x[ib + w], by = x[ib + W + w], bz = x[ib + 2 * W + w];
            const T vx = x[ia + w] - bx, vy = x[ia + W + w] - by, vz = x[ia + 2 * W + w] - bz;
            const T ux = x[ic + w] - bx, uy = x[ic + W + w] - by, uz = x[ic + 2 * W + w] - bz;
            const T px = vy * uz - vz * uy, py = vz * ux - vx * uz, pz = vx * uy - vy * ux;
            const T sine = std::sqrt(px * px + py * py + pz * pz + T(kTiny));
            const T theta = boltzflow::atan2_upper(sine, vx * ux + vy * uy + vz * uz);
            const T slope = stiffness * (theta - theta0);
            energy[w] += T(0.5) * slope * (theta - theta0);
            // dtheta/da = v x p / (|v|^2 |p|), dtheta/dc = p x u / (|u|^2 |p|)
            const T ga = slope / ((vx * vx + vy * vy + vz * vz) * sine), gc = slope / ((ux * ux + uy * uy + uz * uz) * sine);
            const T ax = ga * (vy * pz - vz * py), ay = ga * (vz * px - vx * pz), az = ga * (vx * py - vy * px);
            const T cx = gc * (py * uz - pz * uy), cy = gc * (pz * ux - px * uz), cz = gc * (px * uy - py * ux);
            f[ia + w] -= ax, f[ia + W + w] -= ay, f[ia + 2 * W + w] -= az;
            f[ic + w] -= cx, f[ic + W + w] -= cy, f[ic + 2 * W + w] -= cz;
            f[ib + w] += ax + cx, f[ib + W + w] += ay + cy, f[ib + 2 * W + w] += az + cz;
        }
    }
}

// Cosine and sine of a dihedral angle.
template <class T, int W>
inline void dihedral(const T *x, int64_t ia, int64_t ib, int64_t ic, int64_t id, T *c, T *s) {
    LANES {
        const T ux = x[ib + w] - x[ia + w], uy = x[ib + W + w] - x[ia + W + w], uz = x[ib + 2 * W + w] - x[ia + 2 * W + w];
        const T vx = x[ic + w] - x[ib + w], vy = x[ic + W + w] - x[ib + W + w], vz = x[ic + 2 * W + w] - x[ib + 2 * W + w];
        const T tx = x[id + w] - x[ic + w], ty = x[id + W + w] - x[ic + W + w], tz = x[id + 2 * W + w] - x[ic + 2 * W + w];
        const T mx = uy * vz - uz * vy, my = uz * vx - ux * vz, mz = ux * vy - uy * vx;
        const T nx = vy * tz - vz * ty, ny = vz * tx - vx * tz, nz = vx * ty - vy * tx;
        const T sine = std::sqrt(vx * vx + vy * vy + vz * vz) * (ux * nx + uy * ny + uz * nz);
        const T cosine = mx * nx + my * ny + mz * nz;
        // (cosine, sine) has length |m| |n|: normalising by its own length keeps cos^2 + sin^2 = 1 to rounding.
        const T scale = 1 / std::sqrt(cosine * cosine + sine * sine + T(1e-36));
        c[w] = cosine * scale, s[w] = sine * scale;
    }
}

// The forces of a dihedral angle whose energy has the given slope.
template <class T, int W>
inline void twist(const T *x, T *f, int64_t ia, int64_t ib, int64_t ic, int64_t id, const T *slope) {
    LANES {
        const T ux = x[ib + w] - x[ia + w], uy = x[ib + W + w] - x[ia + W + w], uz = x[ib + 2 * W + w] - x[ia + 2 * W + w];
        const T vx = x[ic + w] - x[ib + w], vy = x[ic + W + w] - x[ib + W + w], vz = x[ic + 2 * W + w] - x[ib + 2 * W + w];
        const T tx = x[id + w] - x[ic + w], ty = x[id + W + w] - x[ic + W + w], tz = x[id + 2 * W + w] - x[ic + 2 * W + w];
        const T mx = uy * vz - uz * vy, my = uz * vx - ux * vz, mz = ux * vy - uy * vx;
        const T nx = vy * tz - vz * ty, ny = vz * tx - vx * tz, nz = vx * ty - vy * tx;
        const T vv = vx * vx + vy * vy + vz * vz, v = std::sqrt(vv);
        // dphi/da = -|v| m / |m|^2, dphi/dd = |v| n / |n|^2; b and c take the rest (Blondel, Karplus, 1996).
        const T ga = -slope[w] * v / (mx * mx + my * my + mz * mz + T(1e-36));
        const T gd = slope[w] * v / (nx * nx + ny * ny + nz * nz + T(1e-36));
        const T p = (ux * vx + uy * vy + uz * vz) / vv, q = (tx * vx + ty * vy + tz * vz) / vv;
        const T ax = ga * mx, ay = ga * my, az = ga * mz, dx = gd * nx, dy = gd * ny, dz = gd * nz;
        f[ia + w] -= ax, f[ia + W + w] -= ay, f[ia + 2 * W + w] -= az;
        f[id + w] -= dx, f[id + W + w] -= dy, f[id + 2 * W + w] -= dz;
        f[ib + w] += (1 + p) * ax - q * dx, f[ib + W + w] += (1 + p) * ay - q * dy;
        f[ib + 2 * W + w] += (1 + p) * az - q * dz;
        f[ic + w] += (1 + q) * dx - p * ax, f[ic + W + w] += (1 + q) * dy - p * ay;
        f[ic + 2 * W + w] += (1 + q) * dz - p * az;
    }
}

template <class T, int W>
void torsions(const Model<T> &m, const T *x, T *f, double *energy) {
    for (int64_t k = 0; k < m.n_torsions; ++k) {
        const int64_t ia = 3 * W * m.torsion_atoms[4 * k], ib = 3 * W * m.torsion_atoms[4 * k + 1],
                      ic = 3 * W * m.torsion_atoms[4 * k + 2], id = 3 * W * m.torsion_atoms[4 * k + 3];
        const T *series = m.torsion + k * (1 + 2 * m.n_harmonics);
        T c1[W], s1[W], cn[W], sn[W], e[W], slope[W];
        dihedral<T, W>(x, ia, ib, ic, id, c1, s1);
        LANES {
            cn[w] = c1[w], sn[w] = s1[w];
            e[w] = series[0], slope[w] = 0;
        }
        for (int64_t n = 1; n <= m.n_harmonics; ++n) {
            const T a = series[2 * n - 1], b = series[2 * n];
            LANES {
                e[w] += a * cn[w] + b * sn[w];
                slope[w] += n * (b * cn[w] - a * sn[w]);
                const T next = cn[w] * c1[w] - sn[w] * s1[w];
                sn[w] = sn[w] * c1[w] + cn[w] * s1[w];
                cn[w] = next;
            }
        }
        LANES energy[w] += e[w];
        twist<T, W>(x, f, ia, ib, ic, id, slope);
    }
}

// The cell of a periodic grid that an angle falls into, and the coordinate in it, 0 to 1. NaN falls into cell 0.
template <class T, int W>
inline void locate(const T *c, const T *s, int size, int *cell, T *fraction) {
    T position[W];
    LANES {
        const T angle = boltzflow::atan2_upper(s[w] < 0 ? -s[w] : s[w], c[w]);
        position[w] = (s[w] < 0 ? T(6.283185307179586) - angle : angle) * (size / T(6.283185307179586));
    }
    for (int w = 0; w < W; ++w) {
        const int lower = position[w] >= 0 ? int(position[w]) : 0;
        cell[w] = lower < size ? lower : 0;
        fraction[w] = position[w] - lower;
    }
}

template <class T, int W>
void correction_maps(const Model<T> &m, const T *x, T *f, double *energy) {
    for (int64_t k = 0; k < m.n_maps; ++k) {
        int64_t atom[8];
        for (int n = 0; n < 8; ++n) atom[n] = 3 * W * m.map_atoms[10 * k + n];
        const int first = m.map_atoms[10 * k + 8], size = m.map_atoms[10 * k + 9];
        T c[W], s[W], u[W], v[W], du[W], dv[W];
        int row[W], column[W];
        dihedral<T, W>(x, atom[0], atom[1], atom[2], atom[3], c, s);
        locate<T, W>(c, s, size, row, u);
        dihedral<T, W>(x, atom[4], atom[5], atom[6], atom[7], c, s);
        locate<T, W>(c, s, size, column, v);
        const T per_radian = size / T(6.283185307179586);
        for (int w = 0; w < W; ++w) {
            const T *a = m.map + 16 * (first + int64_t(row[w]) * size + column[w]);
            T e = 0, eu = 0, ev = 0;
            for (int n = 3; n >= 0; --n) {  // Horner's scheme in u of the polynomials in v, with both derivatives
                const T *b = a + 4 * n;
                const T value = b[0] + v[w] * (b[1] + v[w] * (b[2] + v[w] * b[3]));
                eu = e + u[w] * eu;
                e = value + u[w] * e;
                ev = b[1] + v[w] * (2 * b[2] + v[w] * 3 * b[3]) + u[w] * ev;
            }
            energy[w] += e;
            du[w] = eu * per_radian, dv[w] = ev * per_radian;
        }
        twist<T, W>(x, f, atom[0], atom[1], atom[2], atom[3], du);
        twist<T, W>(x, f, atom[4], atom[5], atom[6], atom[7], dv);
    }
}

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
template <class T, int W, bool engulfed, bool has_neck, bool has_cutoff>
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
template <class T, int W, bool has_pairs, bool has_born, bool has_cutoff>
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
            const T charges = has_born ? charge_i * m.born[7 * j] : T(0);
            const T *born_i = t.born + W * i, *born_j = t.born + W * j;
            T *chain_j = t.chain + W * j, *radial = t.radial + W * p;
            LANES {
                const T dx = xi[w] - xj[w], dy = xi[W + w] - xj[W + w], dz = xi[2 * W + w] - xj[2 * W + w];
                const T squared = dx * dx + dy * dy + dz * dz + T(kTiny);
                T e = 0, g = 0, r = 0;
                if (has_cutoff) r = std::sqrt(squared);
                if (has_pairs) {
                    const T inverse_r = 1 / std::sqrt(squared), inverse_squared = inverse_r * inverse_r;
                    const T s2 = pair[1] * pair[1] * inverse_squared, s6 = s2 * s2 * s2;
                    T lj = pair[2] * (s6 * (s6 - 1)), lj_slope = pair[2] * (s6 * (6 - 12 * s6)) * inverse_squared;
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

template <class T, int W, bool has_pairs, bool has_born, bool has_cutoff>
void all_pairs(const Model<T> &m, Scratch<T, W> &t, double *energy) {
    if (has_born) {
        if (m.has_neck)
            born_radii<T, W, false, true, has_cutoff>(m, t, energy);
        else if (m.engulfed)
            born_radii<T, W, true, false, has_cutoff>(m, t, energy);
        else
            born_radii<T, W, false, false, has_cutoff>(m, t, energy);
    }
    pairs<T, W, has_pairs, has_born, has_cutoff>(m, t, energy);
    pair_forces<T, W, has_born>(m, t);
}

template <class T, int W, bool has_cutoff>
void all_pairs(const Model<T> &m, Scratch<T, W> &t, double *energy) {
    if (m.has_pairs && m.has_born)
        all_pairs<T, W, true, true, has_cutoff>(m, t, energy);
    else if (m.has_born)
        all_pairs<T, W, false, true, has_cutoff>(m, t, energy);
    else if (m.has_pairs)
        all_pairs<T, W, true, false, has_cutoff>(m, t, energy);
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
        if (m.has_cutoff)
            all_pairs<T, W, true>(m, t, energy);
        else
            all_pairs<T, W, false>(m, t, energy);
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
