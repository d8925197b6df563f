"""Nonbonded and generalized-Born interactions of many conformations on a GPU; `triton_kernel` launches them.

A lane is a conformation: positions and forces are (3, n_atoms, stride), so that neighbouring lanes read neighbouring
numbers, and every parameter is a scalar that all lanes share. A program takes one block of lanes and sums, for each
atom i of a group, over all other atoms j. Every pair is thus evaluated twice, at i and at j, and in return nothing is
scattered: no atomics, no shared memory, no barriers, and sums in an order that depends on nothing but n_atoms. The Born
radii and the derivatives by them need sums over all pairs before the next step can begin, hence three kernels.

Compiled for sm_90 in float32, the loops over j with OBC take 91, 110 and 163 instructions (with a cutoff 93, 147 and
166) and at most 48 registers. For 22 atoms, or 462 ordered pairs, that is 1.7e5, and the bonded terms add 0.2e5, where
an H200 issues 3e13 in a second: 1.5e8 conformations would be perfect. Unordered pairs would take little more than half,
but add the forces on j to memory, in one program for the whole molecule. The formulas are those of kernel.cpp.
"""

from __future__ import annotations

from typing import no_type_check

from boltzflow.forcefield.triton_language import jit, tl

__all__ = ["born_radii", "chain_forces", "pair_forces"]

# `numbers` holds prefactor, surface, cutoff, switching, field, shift, born_cutoff and born_shift, in the dtype of the
# positions: numbers given as arguments would be rounded to float32.


@jit
@no_type_check
def _place(n, group, BLOCK: tl.constexpr):
    """Return the lanes of this program, and the first and the last atom of its group."""
    program = tl.program_id(0)
    n_groups = tl.cdiv(n, group)
    # Programs of the same conformations are neighbours, and find the positions in the cache.
    lane = (program // n_groups) * BLOCK + tl.arange(0, BLOCK)
    first = (program % n_groups) * group
    return lane, first, tl.minimum(first + group, n)


@jit
@no_type_check
def _separation(x, i, j, n, stride, lane):
    """Return the vector from atom j to atom i, and its squared length plus the square of 1e-12 nm."""
    size = n * stride
    a = x + i * stride + lane
    b = x + j * stride + lane
    dx = tl.load(a) - tl.load(b)
    dy = tl.load(a + size) - tl.load(b + size)
    dz = tl.load(a + 2 * size) - tl.load(b + 2 * size)
    return dx, dy, dz, dx * dx + dy * dy + dz * dz + 1e-24


@jit
@no_type_check
def _row(i, j, n):
    """Return the row of a pair in the tables, which hold i < j."""
    low = tl.minimum(i, j)
    high = tl.maximum(i, j)
    return low * n - low * (low + 1) // 2 + high - low - 1


@jit
@no_type_check
def _descreening(r, inverse_r, rho, s, ENGULFED: tl.constexpr):
    """Return the integral of an atom (offset radius rho) descreened by the sphere s of another, and its slope."""
    upper = r + s
    distance = tl.abs(r - s)
    lower = tl.where(distance > rho, distance, rho)
    inverse = 1 / (lower * upper)
    il = upper * inverse
    iu = lower * inverse
    squares = 0.125 * (iu * iu - il * il)
    ratio = s * s * inverse_r
    logarithm = 0.25 * tl.log(lower * iu) * inverse_r
    # Masks are factors: a choice would lose the NaN of a bad position.
    inside = (rho < s - r).to(r.dtype)
    near = (upper > rho).to(r.dtype)
    value = 0.5 * (il - iu) + (r - ratio) * squares + logarithm
    slope = (1 + ratio * inverse_r) * squares - logarithm * inverse_r
    if ENGULFED:
        value += inside * (1 / rho - il)
    else:
        slope += inside * il * il
    return near * value, near * slope


@jit
@no_type_check
def _integral(
    r,
    inverse_r,
    born,
    neck,
    soft,
    target,
    source,
    n,
    cutoff,
    HAS_NECK: tl.constexpr,
    HAS_SOFT: tl.constexpr,
    HAS_CUTOFF: tl.constexpr,
    ENGULFED: tl.constexpr,
):
    """Return what the atom ``source`` adds to the integral of the atom ``target``, and its slope."""
    value, slope = _descreening(r, inverse_r, tl.load(born + 7 * target + 1), tl.load(born + 7 * source + 3), ENGULFED)
    if HAS_NECK:
        row = neck + 5 * _row(target, source, n)
        side = row + tl.where(target < source, 1, 3)
        d = r - tl.load(side)
        d2 = d * d
        d5 = d2 * d2 * d
        inverse = 1 / (1 + 100 * d2 + 3e5 * d5 * d)
        bridge = (r <= tl.load(row)).to(r.dtype) * tl.load(side + 1) * inverse
        value += bridge
        slope -= bridge * inverse * (200 * d + 1.8e6 * d5)
    if HAS_CUTOFF:
        near = (r < cutoff).to(r.dtype)
        value *= near
        slope *= near
    if HAS_SOFT:
        share = tl.load(soft + 3 * _row(target, source, n) + 2)
        value *= share
        slope *= share
    return value, slope


@jit
@no_type_check
def born_radii(
    x,
    radii,
    chain,
    born,
    neck,
    soft,
    numbers,
    n,
    stride,
    group,
    HAS_NECK: tl.constexpr,
    HAS_SOFT: tl.constexpr,
    HAS_CUTOFF: tl.constexpr,
    ENGULFED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the Born radii into ``radii``, and their derivatives by the integrals into ``chain``."""
    lane, first, last = _place(n, group, BLOCK)
    stride = tl.cast(stride, tl.int64)
    cutoff = tl.load(numbers + 6)
    for i in range(first, last):
        total = tl.zeros([BLOCK], dtype=x.dtype.element_ty)
        for k in range(n - 1):
            j = k + tl.where(k >= i, 1, 0)
            _, _, _, squared = _separation(x, i, j, n, stride, lane)
            inverse_r = tl.rsqrt(squared)
            value, _ = _integral(
                squared * inverse_r,
                inverse_r,
                born,
                neck,
                soft,
                i,
                j,
                n,
                cutoff,
                HAS_NECK,
                HAS_SOFT,
                HAS_CUTOFF,
                ENGULFED,
            )
            total += value
        rho = tl.load(born + 7 * i + 1)
        radius = tl.load(born + 7 * i + 2)
        alpha = tl.load(born + 7 * i + 4)
        beta = tl.load(born + 7 * i + 5)
        gamma = tl.load(born + 7 * i + 6)
        psi = total * rho
        argument = psi * (alpha - psi * (beta - psi * gamma))
        tanh = 1 - 2 / (tl.exp(2 * argument) + 1)
        b = 1 / (1 / rho - tanh / radius)
        polynomial = alpha - psi * (2 * beta - psi * 3 * gamma)
        tl.store(radii + i * stride + lane, b)
        tl.store(chain + i * stride + lane, b * b * rho / radius * (1 - tanh) * (1 + tanh) * polynomial)


@jit
@no_type_check
def pair_forces(
    x,
    f,
    rows,
    radii,
    chain,
    pair,
    born,
    soft,
    numbers,
    n,
    stride,
    group,
    HAS_PAIRS: tl.constexpr,
    HAS_BORN: tl.constexpr,
    HAS_SOFT: tl.constexpr,
    HAS_CUTOFF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the forces at fixed Born radii, each atom's share of the energy, and dE/dB dB/dI into ``chain``."""
    lane, first, last = _place(n, group, BLOCK)
    stride = tl.cast(stride, tl.int64)
    prefactor = tl.load(numbers)
    cutoff = tl.load(numbers + 2)
    switching = tl.load(numbers + 3)
    field = tl.load(numbers + 4)
    shift = tl.load(numbers + 5)
    born_cutoff = tl.load(numbers + 6)
    born_shift = tl.load(numbers + 7)
    scale = tl.where(switching < cutoff, 1 / (cutoff - switching), 0.0)
    for i in range(first, last):
        energy = tl.zeros([BLOCK], dtype=x.dtype.element_ty)
        fx = tl.zeros([BLOCK], dtype=x.dtype.element_ty)
        fy = tl.zeros([BLOCK], dtype=x.dtype.element_ty)
        fz = tl.zeros([BLOCK], dtype=x.dtype.element_ty)
        slopes = tl.zeros([BLOCK], dtype=x.dtype.element_ty)
        for k in range(n - 1):
            j = k + tl.where(k >= i, 1, 0)
            dx, dy, dz, squared = _separation(x, i, j, n, stride, lane)
            inverse_r = tl.rsqrt(squared)
            r = squared * inverse_r
            g = tl.zeros([BLOCK], dtype=x.dtype.element_ty)
            index = _row(i, j, n)
            if HAS_PAIRS:
                row = pair + 4 * index
                qq = tl.load(row)
                sigma = tl.load(row + 1)
                epsilon = tl.load(row + 2)
                inverse_squared = inverse_r * inverse_r
                s2 = sigma * sigma * inverse_squared
                s6 = s2 * s2 * s2
                factor = inverse_squared
                if HAS_SOFT:  # 1 / (shift + (r/sigma)^6); the limit keeps single precision from inf / inf
                    s6 = tl.where(s6 > 1e36, 1e36, s6)
                    core = 1 / (1 + tl.load(soft + 3 * index) * s6)
                    s6 *= core
                    factor *= core
                lj = epsilon * (s6 * (s6 - 1))
                lj_slope = epsilon * (s6 * (6 - 12 * s6)) * factor
                charge = qq * inverse_r
                charge_slope = -charge * inverse_squared
                if HAS_CUTOFF:
                    counts = tl.load(row + 3)
                    t = (r - switching) * scale * counts
                    t = tl.where(t > 0, t, 0.0)
                    t = tl.where(t < 1, t, 1.0)
                    factor = 1 + t * t * t * (-10 + t * (15 - 6 * t))
                    lj_slope = factor * lj_slope - lj * inverse_r * scale * t * t * (30 + t * (30 * t - 60))
                    lj *= factor
                    charge += counts * qq * (field * squared - shift)
                    charge_slope += counts * qq * 2 * field
                    near = 1 - counts * (1 - (r < cutoff).to(r.dtype))
                    lj *= near
                    charge *= near
                    lj_slope *= near
                    charge_slope *= near
                energy += lj + charge
                g += lj_slope + charge_slope
            if HAS_BORN:
                other = tl.load(radii + j * stride + lane)
                product = tl.load(radii + i * stride + lane) * other
                t = 0.25 * squared / product
                exponential = tl.exp(-t)
                inverse_f = tl.rsqrt(squared + product * exponential)
                charges = prefactor * tl.load(born + 7 * i) * tl.load(born + 7 * j)
                if HAS_SOFT:
                    charges *= tl.load(soft + 3 * index + 1)
                screened = charges * inverse_f
                shifted = screened
                if HAS_CUTOFF:
                    near = (r < born_cutoff).to(r.dtype)
                    screened *= near
                    shifted = screened - near * charges * born_shift
                slope = 0.5 * screened * inverse_f * inverse_f  # dE/d(f^2)
                energy -= shifted
                g += slope * (2 - 0.5 * exponential)
                slopes += slope * exponential * (1 + t) * other
            fx -= g * dx
            fy -= g * dy
            fz -= g * dz
        energy *= 0.5  # each pair is met twice
        if HAS_BORN:
            b = tl.load(radii + i * stride + lane)
            charge_i = tl.load(born + 7 * i)
            radius = tl.load(born + 7 * i + 2)
            reach = radius + 0.14  # with a probe of 0.14 nm
            ratio = radius / b
            r2 = ratio * ratio
            area = tl.load(numbers + 1) * reach * reach * (r2 * r2 * r2)
            own = -0.5 * prefactor * charge_i * charge_i / b
            energy += own + area
            rate = tl.load(chain + i * stride + lane)
            tl.store(chain + i * stride + lane, (slopes - (own + 6 * area) / b) * rate)
        here = i * stride + lane
        tl.store(rows + here, energy)
        tl.store(f + here, fx)
        tl.store(f + n * stride + here, fy)
        tl.store(f + 2 * n * stride + here, fz)


@jit
@no_type_check
def chain_forces(
    x,
    f,
    chain,
    born,
    neck,
    soft,
    numbers,
    n,
    stride,
    group,
    HAS_NECK: tl.constexpr,
    HAS_SOFT: tl.constexpr,
    HAS_CUTOFF: tl.constexpr,
    ENGULFED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the forces by the change of the Born radii."""
    lane, first, last = _place(n, group, BLOCK)
    stride = tl.cast(stride, tl.int64)
    cutoff = tl.load(numbers + 6)
    for i in range(first, last):
        fx = tl.zeros([BLOCK], dtype=x.dtype.element_ty)
        fy = tl.zeros([BLOCK], dtype=x.dtype.element_ty)
        fz = tl.zeros([BLOCK], dtype=x.dtype.element_ty)
        chain_i = tl.load(chain + i * stride + lane)
        for k in range(n - 1):
            j = k + tl.where(k >= i, 1, 0)
            dx, dy, dz, squared = _separation(x, i, j, n, stride, lane)
            inverse_r = tl.rsqrt(squared)
            r = squared * inverse_r
            _, slope_i = _integral(
                r, inverse_r, born, neck, soft, i, j, n, cutoff, HAS_NECK, HAS_SOFT, HAS_CUTOFF, ENGULFED
            )
            _, slope_j = _integral(
                r, inverse_r, born, neck, soft, j, i, n, cutoff, HAS_NECK, HAS_SOFT, HAS_CUTOFF, ENGULFED
            )
            g = (chain_i * slope_i + tl.load(chain + j * stride + lane) * slope_j) * inverse_r
            fx -= g * dx
            fy -= g * dy
            fz -= g * dz
        here = f + i * stride + lane
        tl.store(here, tl.load(here) + fx)
        tl.store(here + n * stride, tl.load(here + n * stride) + fy)
        tl.store(here + 2 * n * stride, tl.load(here + 2 * n * stride) + fz)
