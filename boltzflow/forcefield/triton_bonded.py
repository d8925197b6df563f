"""Bonds, angles, torsions and correction maps of many conformations on a GPU; `triton_kernel` launches them.

A lane is a conformation, as in triton_pairs.py, and here it goes through all terms of the molecule. It alone adds to
the forces of its conformation, one term after the other: no atomics, and sums in the order of the terms. A sum over the
terms of each atom instead would evaluate every torsion four times. Three kernels, because the time that Triton takes to
compile one grows with the square of its length.
"""

from __future__ import annotations

from typing import no_type_check

from boltzflow.forcefield.triton_language import jit, tl

__all__ = ["bond_and_angle_forces", "map_forces", "torsion_forces"]


@jit
@no_type_check
def _difference(x, a, b, n, stride, lane):
    """Return the vector from atom a to atom b."""
    size = n * stride
    tail = x + a * stride + lane
    head = x + b * stride + lane
    dx = tl.load(head) - tl.load(tail)
    dy = tl.load(head + size) - tl.load(tail + size)
    dz = tl.load(head + 2 * size) - tl.load(tail + 2 * size)
    return dx, dy, dz


@jit
@no_type_check
def _push(f, atom, n, stride, lane, fx, fy, fz):
    """Add a force to an atom."""
    size = n * stride
    here = f + atom * stride + lane
    tl.store(here, tl.load(here) + fx)
    tl.store(here + size, tl.load(here + size) + fy)
    tl.store(here + 2 * size, tl.load(here + 2 * size) + fz)


@jit
@no_type_check
def _cross(ax, ay, az, bx, by, bz):
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


@jit
@no_type_check
def _angle(y, x):
    """Return the angle (0 to pi) of the point (x, y), y >= 0: there is no atan2 that the interpreter knows."""
    ax = tl.abs(x)
    steep = y > ax
    t = tl.where(steep, ax, y) / tl.where(steep, y, ax)
    t = t / (1 + tl.sqrt(1 + t * t))  # half the angle, twice: t < 0.199
    t = t / (1 + tl.sqrt(1 + t * t))
    t2 = t * t
    order: tl.constexpr = 12 if x.dtype == tl.float64 else 5
    total = 0 * t2
    for k in tl.static_range(order + 1):
        total = 1.0 / (2 * (order - k) + 1) - total * t2
    angle = 4 * t * total
    angle = tl.where(steep, 1.5707963267948966 - angle, angle)
    return tl.where(x < 0, 3.141592653589793 - angle, angle)


@jit
@no_type_check
def _dihedral(x, a, b, c, d, n, stride, lane):
    """Return cosine and sine of a dihedral angle."""
    ux, uy, uz = _difference(x, a, b, n, stride, lane)
    vx, vy, vz = _difference(x, b, c, n, stride, lane)
    tx, ty, tz = _difference(x, c, d, n, stride, lane)
    mx, my, mz = _cross(ux, uy, uz, vx, vy, vz)
    nx, ny, nz = _cross(vx, vy, vz, tx, ty, tz)
    sine = tl.sqrt(vx * vx + vy * vy + vz * vz) * (ux * nx + uy * ny + uz * nz)
    cosine = mx * nx + my * ny + mz * nz
    # (cosine, sine) has length |m| |n|: normalising by its own length keeps cos^2 + sin^2 = 1 to rounding.
    scale = 1 / tl.sqrt(cosine * cosine + sine * sine + 1e-36)
    return cosine * scale, sine * scale


@jit
@no_type_check
def _twist(x, f, a, b, c, d, n, stride, lane, slope):
    """Add the forces of a dihedral angle whose energy has the given slope (Blondel, Karplus, 1996)."""
    ux, uy, uz = _difference(x, a, b, n, stride, lane)
    vx, vy, vz = _difference(x, b, c, n, stride, lane)
    tx, ty, tz = _difference(x, c, d, n, stride, lane)
    mx, my, mz = _cross(ux, uy, uz, vx, vy, vz)
    nx, ny, nz = _cross(vx, vy, vz, tx, ty, tz)
    vv = vx * vx + vy * vy + vz * vz
    v = tl.sqrt(vv)
    ga = -slope * v / (mx * mx + my * my + mz * mz + 1e-36)
    gd = slope * v / (nx * nx + ny * ny + nz * nz + 1e-36)
    p = (ux * vx + uy * vy + uz * vz) / vv
    q = (tx * vx + ty * vy + tz * vz) / vv
    ax = ga * mx
    ay = ga * my
    az = ga * mz
    dx = gd * nx
    dy = gd * ny
    dz = gd * nz
    _push(f, a, n, stride, lane, -ax, -ay, -az)
    _push(f, d, n, stride, lane, -dx, -dy, -dz)
    _push(f, b, n, stride, lane, (1 + p) * ax - q * dx, (1 + p) * ay - q * dy, (1 + p) * az - q * dz)
    _push(f, c, n, stride, lane, (1 + q) * dx - p * ax, (1 + q) * dy - p * ay, (1 + q) * dz - p * az)


@jit
@no_type_check
def _locate(cosine, sine, size):
    """Return the cell of a periodic grid that an angle falls into, 0 for NaN, and the coordinate in it, 0 to 1."""
    angle = _angle(tl.abs(sine), cosine)
    scale = tl.cast(size, cosine.dtype) * 0.15915494309189535
    position = tl.where(sine < 0, 6.283185307179586 - angle, angle) * scale
    lower = tl.where(position >= 0, position, 0.0).to(tl.int32)
    return tl.where(lower < size, lower, 0), position - lower.to(position.dtype)


@jit
@no_type_check
def bond_and_angle_forces(
    x,
    f,
    rows,
    energies,
    bond_atoms,
    bond,
    angle_atoms,
    angle,
    n,
    n_rows,
    n_bonds,
    n_angles,
    stride,
    BLOCK: tl.constexpr,
):
    """Add the forces of bonds and angles, and write their energies, with the shares of the atoms in ``rows``."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stride = tl.cast(stride, tl.int64)
    energy = tl.zeros([BLOCK], dtype=tl.float64)
    for i in range(n_rows):
        energy += tl.load(rows + i * stride + lane).to(tl.float64)
    for k in range(n_bonds):
        a = tl.load(bond_atoms + 2 * k)
        b = tl.load(bond_atoms + 2 * k + 1)
        stiffness = tl.load(bond + 3 * k + 1)
        least = tl.load(bond + 3 * k + 2)
        dx, dy, dz = _difference(x, b, a, n, stride, lane)
        r = tl.sqrt(dx * dx + dy * dy + dz * dz + 1e-24)
        excess = r - tl.load(bond + 3 * k)
        excess = tl.where(excess < least, least, excess)
        g = stiffness * excess / r
        energy += (0.5 * stiffness * excess * excess).to(tl.float64)
        _push(f, a, n, stride, lane, -g * dx, -g * dy, -g * dz)
        _push(f, b, n, stride, lane, g * dx, g * dy, g * dz)
    for k in range(n_angles):
        a = tl.load(angle_atoms + 3 * k)
        b = tl.load(angle_atoms + 3 * k + 1)
        c = tl.load(angle_atoms + 3 * k + 2)
        vx, vy, vz = _difference(x, b, a, n, stride, lane)
        ux, uy, uz = _difference(x, b, c, n, stride, lane)
        px, py, pz = _cross(vx, vy, vz, ux, uy, uz)
        sine = tl.sqrt(px * px + py * py + pz * pz + 1e-24)
        excess = _angle(sine, vx * ux + vy * uy + vz * uz) - tl.load(angle + 2 * k)
        slope = tl.load(angle + 2 * k + 1) * excess
        energy += (0.5 * slope * excess).to(tl.float64)
        # dtheta/da = v x p / (|v|^2 |p|), dtheta/dc = p x u / (|u|^2 |p|)
        ga = slope / ((vx * vx + vy * vy + vz * vz) * sine)
        gc = slope / ((ux * ux + uy * uy + uz * uz) * sine)
        ax, ay, az = _cross(vx, vy, vz, px, py, pz)
        cx, cy, cz = _cross(px, py, pz, ux, uy, uz)
        _push(f, a, n, stride, lane, -ga * ax, -ga * ay, -ga * az)
        _push(f, c, n, stride, lane, -gc * cx, -gc * cy, -gc * cz)
        _push(f, b, n, stride, lane, ga * ax + gc * cx, ga * ay + gc * cy, ga * az + gc * cz)
    tl.store(energies + lane, energy)


@jit
@no_type_check
def torsion_forces(x, f, energies, torsion_atoms, torsion, n, n_torsions, n_harmonics, stride, BLOCK: tl.constexpr):
    """Add the forces and the energies of torsions."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stride = tl.cast(stride, tl.int64)
    energy = tl.load(energies + lane)
    for k in range(n_torsions):
        a = tl.load(torsion_atoms + 4 * k)
        b = tl.load(torsion_atoms + 4 * k + 1)
        c = tl.load(torsion_atoms + 4 * k + 2)
        d = tl.load(torsion_atoms + 4 * k + 3)
        series = torsion + k * (1 + 2 * n_harmonics)
        c1, s1 = _dihedral(x, a, b, c, d, n, stride, lane)
        cn = c1
        sn = s1
        slope = 0 * c1
        e = slope + tl.load(series)
        for m in range(1, n_harmonics + 1):
            even = tl.load(series + 2 * m - 1)
            odd = tl.load(series + 2 * m)
            e += even * cn + odd * sn
            slope += m * (odd * cn - even * sn)
            following = cn * c1 - sn * s1
            sn = sn * c1 + cn * s1
            cn = following
        energy += e.to(tl.float64)
        _twist(x, f, a, b, c, d, n, stride, lane, slope)
    tl.store(energies + lane, energy)


@jit
@no_type_check
def map_forces(x, f, energies, map_atoms, map, n, n_maps, stride, BLOCK: tl.constexpr):
    """Add the forces and the energies of correction maps."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stride = tl.cast(stride, tl.int64)
    energy = tl.load(energies + lane)
    for k in range(n_maps):
        row = map_atoms + 10 * k
        size = tl.load(row + 9)
        a, b, c, d = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
        p, q, s, t = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
        cosine, sine = _dihedral(x, a, b, c, d, n, stride, lane)
        first, u = _locate(cosine, sine, size)
        cosine, sine = _dihedral(x, p, q, s, t, n, stride, lane)
        second, v = _locate(cosine, sine, size)
        table = map + 16 * (tl.load(row + 8) + first * size + second)
        # Horner's scheme in u of the polynomials in v, with both derivatives.
        e = 0 * u
        eu = 0 * u
        ev = 0 * u
        for m in tl.static_range(4):
            b0 = tl.load(table + 4 * (3 - m))
            b1 = tl.load(table + 4 * (3 - m) + 1)
            b2 = tl.load(table + 4 * (3 - m) + 2)
            b3 = tl.load(table + 4 * (3 - m) + 3)
            eu = e + u * eu
            e = b0 + v * (b1 + v * (b2 + v * b3)) + u * e
            ev = b1 + v * (2 * b2 + v * 3 * b3) + u * ev
        energy += e.to(tl.float64)
        per_radian = tl.cast(size, u.dtype) * 0.15915494309189535
        _twist(x, f, a, b, c, d, n, stride, lane, eu * per_radian)
        _twist(x, f, p, q, s, t, n, stride, lane, ev * per_radian)
    tl.store(energies + lane, energy)
