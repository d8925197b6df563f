// What the compiled kernel knows of one molecule.

#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernel_math.h"

namespace {

// Mirrors kernel.Model in kernel.py, field by field. Lengths in nm, energies in kJ/mol, angles in rad.
template <class T>
struct Model {
    int64_t n_atoms, n_bonds, n_angles, n_torsions, n_harmonics, n_maps, has_pairs, has_born, has_neck, has_cutoff, has_soft,
        engulfed;
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
    const T *soft;     // [n_atoms (n_atoms - 1) / 2][3], i < j: shift of the soft core, factors of charges and of descreening in
                       // the implicit solvent; where has_soft
    double prefactor, surface;
    double cutoff, switching, field, shift;  // of the pairs: distances, k and c of the reaction field
    double born_cutoff, born_shift;          // distances are huge where there is none
};

constexpr double kTiny = 1e-24;   // nm^2, as TINY_SQUARED in geometry.py
constexpr double kProbe = 0.14;   // nm

#define LANES _Pragma("omp simd") for (int w = 0; w < W; ++w)

}  // namespace
