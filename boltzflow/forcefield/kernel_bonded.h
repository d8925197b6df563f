// Energies and forces of bonds, angles, torsions and correction maps, for W conformations at a time.

#pragma once

#include "kernel_model.h"

namespace {

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

}  // namespace
