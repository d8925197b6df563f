"""Compiles kernel.cpp on the user's machine and packs force fields for it."""

import ctypes
import functools
from pathlib import Path

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.forcefield.alchemical import AlchemicalGeneralizedBorn, AlchemicalNonbonded
from boltzflow.forcefield.cmap_torsion import CMAPTorsions
from boltzflow.forcefield.custom_bonds import CustomBonds
from boltzflow.forcefield.generalized_born import GeneralizedBorn
from boltzflow.forcefield.harmonic_angle import HarmonicAngles
from boltzflow.forcefield.harmonic_bond import HarmonicBonds
from boltzflow.forcefield.nonbonded import Nonbonded
from boltzflow.forcefield.periodic_torsion import PeriodicTorsions
from boltzflow.forcefield.potential import ForceField
from boltzflow.forcefield.term import Term
from boltzflow.native import build, share

__all__ = ["DTYPES", "Kernel", "library"]

_SOURCES = [
    Path(__file__).with_name(name) for name in ("kernel.cpp", "kernel_bonded.h", "kernel_model.h", "kernel_math.h")
]
_FAR = 1e6  # nm, for a cutoff that there is not
_ALCHEMICAL = {AlchemicalNonbonded: Nonbonded, AlchemicalGeneralizedBorn: GeneralizedBorn}
DTYPES = {torch.float32: "boltzflow_float", torch.float64: "boltzflow_double"}


class _Model(ctypes.Structure):
    """Mirrors Model in kernel_model.h, field by field."""

    _SIZES = (
        *("n_atoms", "n_bonds", "n_angles", "n_torsions", "n_harmonics", "n_maps"),
        *("has_pairs", "has_born", "has_neck", "has_cutoff", "has_soft", "engulfed"),
    )
    _TENSORS = (
        *("bond_atoms", "bond", "angle_atoms", "angle", "torsion_atoms", "torsion", "map_atoms", "map"),
        *("pair", "born", "neck", "soft"),
    )
    _NUMBERS = ("prefactor", "surface", "cutoff", "switching", "field", "shift", "born_cutoff", "born_shift")
    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _TENSORS),
        *((name, ctypes.c_double) for name in _NUMBERS),
    )


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Return the compiled kernel, compiling it if this machine has not done so yet; None without a C++ compiler."""
    loaded = build(_SOURCES, "the force-field kernel", "force fields run eagerly")
    for name in DTYPES.values() if loaded is not None else ():
        getattr(loaded, name).argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64]
        getattr(loaded, name).restype = None
    return loaded


def _series(term: PeriodicTorsions) -> tuple[Tensor, Tensor]:
    """Return each quadruple of atoms once, with its Fourier series (constant, cos, sin, cos 2, sin 2, ...)."""
    order = int(term.periodicity.abs().max()) if len(term.periodicity) else 0
    atoms, row = term.atoms.unique(dim=0, return_inverse=True)
    series = term.k.new_zeros((len(atoms), 1 + 2 * order), dtype=torch.float64)
    n, k, phase = term.periodicity, term.k.double(), term.phase.double()
    series.index_put_((row, torch.zeros_like(row)), k, accumulate=True)
    cosine = torch.where(n == 0, 0, 2 * n.abs() - 1)
    series.index_put_((row, cosine), k * phase.cos(), accumulate=True)
    sine = (n != 0).nonzero()[:, 0]
    series.index_put_((row[sine], 2 * n.abs()[sine]), (k * phase.sin() * n.sign())[sine], accumulate=True)
    return atoms, series


def _disjoint(terms: list[Nonbonded]) -> bool:
    """Whether the terms are one, or without cutoff and without a pair of atoms that two of them let interact."""
    if len(terms) > 1 and any(term.options["cutoff"] for term in terms):
        return False
    pairs = torch.cat([term.pairs[term.pair_epsilon != 0] for term in terms])
    return len(pairs.unique()) == len(pairs)


def _flat_bottom(term: Term) -> bool:
    """Whether a term is harmonic restraints of distances beyond r0, as they hold molecules together."""
    return (
        type(term) is CustomBonds
        and "".join(term.options["expression"].split()) == "0.5*k*max(0,r-r0)^2"
        and sorted(term.options["parameter_names"]) == ["k", "r0"]
        and term.options["variables"] == {"r": ("distance", 0, 1)}
    )


class Kernel:
    """The terms of a force field that the compiled kernel evaluates, packed for it.

    Holds plain tensors only and pickles; the library is looked up in each process.
    """

    def __init__(self, forcefield: ForceField) -> None:
        """Pack the terms.

        Args:
            forcefield: in float32 or float64 on the CPU. Terms of other kinds, second terms of CMAP or GeneralizedBorn,
                and Nonbonded terms that cannot be merged (two Lennard-Jones interactions of one pair, or a cutoff) are
                left in ``rest``, a force field of their own (None without such terms).
        """
        self.dtype = forcefield.dtype
        self.n_atoms = forcefield.n_atoms
        rest: list[Term] = []
        taken: dict[type, list[Term]] = {}
        for term in forcefield.terms:
            kind = _ALCHEMICAL.get(type(term), type(term))
            single = kind in (CMAPTorsions, GeneralizedBorn)
            if term.periodic or forcefield.sites is not None:
                rest.append(term)
            elif (
                kind in (HarmonicBonds, HarmonicAngles, PeriodicTorsions)
                or (single and kind not in taken)
                or (kind is Nonbonded and _disjoint([*taken.get(kind, []), term]))
            ):
                taken.setdefault(kind, []).append(term)
            elif _flat_bottom(term):
                taken.setdefault(CustomBonds, []).append(term)
            elif kind is not CustomBonds or len(term.atoms):
                rest.append(term)
        shared = {"dtype": self.dtype, "box": forcefield.box, "sites": forcefield.sites}
        self.rest = ForceField(rest, n_atoms=self.n_atoms, **shared) if rest else None

        def joined(kind: type, names: tuple[str, ...]) -> list[Tensor]:
            return [torch.cat([getattr(term, name) for term in taken[kind]]) for name in names]

        numbers = {"cutoff": _FAR, "switching": _FAR, "born_cutoff": _FAR}
        tensors = dict.fromkeys(_Model._TENSORS, torch.zeros(0))
        bonds = [(term.atoms, term.r0, term.k, -_FAR) for term in taken.get(HarmonicBonds, [])]
        for term in taken.get(CustomBonds, []):
            column = dict(zip(term.options["parameter_names"], term.parameter_values.T, strict=True))
            bonds.append((term.atoms, column["r0"], column["k"], 0.0))
        soft = torch.tensor([0.0, 1.0, 1.0], dtype=self.dtype, device=forcefield.device)
        soft = soft.repeat(self.n_atoms * (self.n_atoms - 1) // 2, 1)
        if bonds:
            tensors["bond_atoms"] = torch.cat([atoms for atoms, *_ in bonds])
            rows = [torch.stack([r0, k, torch.full_like(r0, least)], 1) for _, r0, k, least in bonds]
            tensors["bond"] = torch.cat(rows)
        if HarmonicAngles in taken:
            tensors["angle_atoms"], theta0, k = joined(HarmonicAngles, ("atoms", "theta0", "k"))
            tensors["angle"] = torch.stack([theta0, k], 1)
        if PeriodicTorsions in taken:
            names = ("atoms", "periodicity", "phase", "k")
            merged = PeriodicTorsions(**dict(zip(names, joined(PeriodicTorsions, names), strict=True)))
            tensors["torsion_atoms"], tensors["torsion"] = _series(merged)
        if CMAPTorsions in taken:
            (term,) = taken[CMAPTorsions]
            tensors["map_atoms"] = torch.cat([term.atoms, term.first_cell, term.size], 1)
            tensors["map"] = term.coefficients
        if Nonbonded in taken:
            pairs, qq, sigma, epsilon, exempt = joined(
                Nonbonded, ("pairs", "qq", "pair_sigma", "pair_epsilon", "exempt")
            )
            # At most one of the terms has a Lennard-Jones interaction for a pair, so that sums are its parameters.
            sigma = torch.where(epsilon != 0, sigma, 0)
            rows = torch.stack([qq, sigma, 4 * epsilon, (~exempt).to(qq)], 1)
            pair = qq.new_zeros((self.n_atoms * (self.n_atoms - 1) // 2, 4))
            tensors["pair"] = pair.index_add(0, pairs, rows)
            for term in taken[Nonbonded]:
                if type(term) is AlchemicalNonbonded:
                    counts = term.crossing & (term.pair_epsilon != 0)
                    soft[:, 0].index_add_(0, term.pairs, torch.where(counts, term.softening, 0.0).to(soft))
            term = taken[Nonbonded][0]
            if cutoff := term.options["cutoff"]:
                numbers |= {"cutoff": cutoff, "switching": term.options["switch"] or _FAR}
                numbers["field"], numbers["shift"] = (float(value) for value in term.reaction_field())
        if GeneralizedBorn in taken:
            (term,) = taken[GeneralizedBorn]
            atoms = torch.stack([term.charge, term.offset_radius, term.radius, term.scaled_radius], 1)
            tensors["born"] = torch.cat([atoms, term.coefficients], 1)
            numbers |= {name: float(getattr(term, name)) for name in ("prefactor", "surface")}
            numbers["engulfed"] = term.options["engulfed"]
            if cutoff := term.options["cutoff"]:
                numbers |= {"born_cutoff": cutoff, "born_shift": 1 / cutoff}
            if len(term.neck):
                i, j = term.ij
                tensors["neck"] = torch.cat([term.necks(i, j), term.necks(j, i)[1:]]).T
            if type(term) is AlchemicalGeneralizedBorn:
                soft[:, 1], soft[:, 2] = term.charges, term.descreening
        is_soft = any(type(term) in _ALCHEMICAL for terms in taken.values() for term in terms)
        if is_soft:
            tensors["soft"] = soft
        self._tensors = {
            name: value.to(torch.int32 if name.endswith("atoms") else self.dtype).contiguous()
            for name, value in tensors.items()
        }
        self._scalars = {
            "n_atoms": self.n_atoms,
            "n_bonds": len(tensors["bond"]),
            "n_angles": len(tensors["angle"]),
            "n_torsions": len(tensors["torsion"]),
            "n_harmonics": (tensors["torsion"].shape[1] - 1) // 2 if len(tensors["torsion"]) else 0,
            "n_maps": len(tensors["map_atoms"]),
            "has_pairs": Nonbonded in taken,
            "has_born": GeneralizedBorn in taken,
            "has_neck": len(tensors["neck"]) > 0,
            "has_soft": is_soft,
            "has_cutoff": is_soft or min(numbers["cutoff"], numbers["born_cutoff"]) < _FAR,
            **numbers,
        }

    def __call__(
        self, positions: Float[Tensor, "batch n_atoms 3"]
    ) -> tuple[Float64[Tensor, "batch"], Float[Tensor, "batch n_atoms 3"]]:
        """Return energies (kJ/mol, float64) and forces (kJ/mol/nm); runs on `torch.get_num_threads` threads."""
        run = getattr(library(), DTYPES[self.dtype])
        pointers = {name: tensor.data_ptr() for name, tensor in self._tensors.items()}
        model = ctypes.byref(_Model(**self._scalars, **pointers))
        x = positions.detach().to(self.dtype).contiguous()
        energy, force = torch.empty(len(x), dtype=torch.float64), torch.empty_like(x)

        def part(start: int, end: int) -> None:
            run(model, x[start:].data_ptr(), energy[start:].data_ptr(), force[start:].data_ptr(), end - start)

        share(part, len(x))
        return energy, force
