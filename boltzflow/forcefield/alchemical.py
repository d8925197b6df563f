"""Alchemical force fields: a set of atoms whose interactions with the rest are switched by λ, with a soft core."""

from collections.abc import Sequence
from typing import Any

import torch

from boltzflow._typing import Bool, Float, Int, Tensor
from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield.cmap_torsion import CMAPTorsions
from boltzflow.forcefield.custom_bonds import CustomBonds
from boltzflow.forcefield.generalized_born import GeneralizedBorn
from boltzflow.forcefield.harmonic_angle import HarmonicAngles
from boltzflow.forcefield.harmonic_bond import HarmonicBonds
from boltzflow.forcefield.nonbonded import Nonbonded
from boltzflow.forcefield.periodic_torsion import PeriodicTorsions
from boltzflow.forcefield.potential import ForceField
from boltzflow.forcefield.registry import from_openmm
from boltzflow.forcefield.term import Term, all_pairs

__all__ = ["AlchemicalGeneralizedBorn", "AlchemicalNonbonded", "alchemical", "lambda_schedule"]

_BONDED = (CMAPTorsions, CustomBonds, HarmonicAngles, HarmonicBonds, PeriodicTorsions)
_LAMBDAS = frozenset({"lambda_sterics", "lambda_electrostatics"})


class AlchemicalNonbonded(Nonbonded):
    """`Nonbonded` with λ between a set of atoms and the rest, exceptions included.

    Such a pair has the charges times λ_electrostatics, and the Lennard-Jones interaction 4 epsilon λ (b^2 - b),
    b = 1 / (softness (1 - λ) + (r/sigma)^6), with λ = λ_sterics. Pairs within the set and within the rest stay.

    References:
        Beutler, Mark, van Schaik, Gerber, van Gunsteren, Chem. Phys. Lett. 222, 529 (1994).
    """

    shared_parameters = _LAMBDAS

    def __init__(
        self,
        *,
        alchemical: Bool[Tensor, "n_atoms"],
        lambda_sterics: Float[Tensor, ""],
        lambda_electrostatics: Float[Tensor, ""],
        softness: float,
        **parameters: Any,
    ) -> None:
        """Keep the parameters.

        Args:
            alchemical: which atoms are in the set.
            lambda_sterics: 1 is the interaction as it is, 0 is none.
            lambda_electrostatics: likewise.
            softness: of the core, without unit; 0.5 is usual.
            **parameters: those of `Nonbonded`.
        """
        super().__init__(**parameters)
        _keep(self, alchemical, lambda_sterics, lambda_electrostatics)
        self.options["softness"] = softness
        i, j = all_pairs(len(alchemical)).to(alchemical.device)[:, self.pairs]
        crossing = alchemical[i] != alchemical[j]
        self.qq = torch.where(crossing, lambda_electrostatics * self.qq, self.qq)
        self.pair_epsilon = torch.where(crossing, lambda_sterics * self.pair_epsilon, self.pair_epsilon)
        self.register_buffer("crossing", crossing, persistent=False)
        shift = torch.where(crossing, softness * (1 - lambda_sterics), 1.0)
        self.register_buffer("softening", shift, persistent=False)

    def _sixth_power(self, r: Float[Tensor, "n batch"], inverse: Float[Tensor, "n batch"]) -> Float[Tensor, "n batch"]:
        crossing = self.crossing[:, None]
        hard = (torch.where(self.crossing, 0.0, self.pair_sigma)[:, None] * inverse).pow(6)
        sigma = torch.where(self.crossing & (self.pair_sigma > 0), self.pair_sigma, 1.0)
        soft = (self.softening[:, None] + (r / sigma[:, None]).pow(6)).reciprocal()
        return torch.where(crossing, soft, hard)


class AlchemicalGeneralizedBorn(GeneralizedBorn):
    """`GeneralizedBorn` with λ between a set of atoms and the rest.

    The products of charges of such pairs are times λ_electrostatics, as in `AlchemicalNonbonded`. What one side adds
    to the descreening integrals of the other is times λ_sterics: it is the volume that atoms take from the solvent,
    which belongs to their size. At λ = 0 the set and the rest are each solvated alone.
    """

    shared_parameters = _LAMBDAS

    def __init__(
        self,
        *,
        alchemical: Bool[Tensor, "n_atoms"],
        lambda_sterics: Float[Tensor, ""],
        lambda_electrostatics: Float[Tensor, ""],
        **parameters: Any,
    ) -> None:
        """Keep the parameters.

        Args:
            alchemical: which atoms are in the set.
            lambda_sterics: 1 is the descreening as it is, 0 is none.
            lambda_electrostatics: 1 is the interaction of charges as it is, 0 is none.
            **parameters: those of `GeneralizedBorn`.
        """
        super().__init__(**parameters)
        _keep(self, alchemical, lambda_sterics, lambda_electrostatics)
        i, j = self.ij
        crossing = alchemical[i] != alchemical[j]
        self.pair_charge = torch.where(crossing, lambda_electrostatics * self.pair_charge, self.pair_charge)
        self.register_buffer("charges", torch.where(crossing, lambda_electrostatics, 1.0), persistent=False)
        self.register_buffer("descreening", torch.where(crossing, lambda_sterics, 1.0), persistent=False)

    def _scaled(self, integral: Float[Tensor, "n batch"]) -> Float[Tensor, "n batch"]:
        return integral * self.descreening.repeat(2)[:, None]


def lambda_schedule(value: float) -> tuple[float, float]:
    """Return λ_sterics and λ_electrostatics of one λ that switches charges first, from 1 to 1/2, and then the cores.

    Example:
        >>> [lambda_schedule(value) for value in (1.0, 0.75, 0.5, 0.25, 0.0)]
        [(1.0, 1.0), (1.0, 0.5), (1.0, 0.0), (0.5, 0.0), (0.0, 0.0)]
    """
    return min(1.0, 2 * value), max(0.0, 2 * value - 1)


def _keep(term: Term, alchemical: Tensor, lambda_sterics: Tensor, lambda_electrostatics: Tensor) -> None:
    term.register_buffer("alchemical", alchemical.clone())
    term.register_buffer("lambda_sterics", lambda_sterics.clone())
    term.register_buffer("lambda_electrostatics", lambda_electrostatics.clone())


def alchemical(
    forcefield: Any,
    atoms: Sequence[int] | Int[Tensor, "n"],
    *,
    lambda_sterics: float | Float[Tensor, ""] = 1.0,
    lambda_electrostatics: float | Float[Tensor, ""] = 1.0,
    softness: float = 0.5,
) -> ForceField:
    """Return a force field in which λ switches the interactions between a set of atoms and the rest.

    The set is decoupled: at λ = 0 the energy is that of the rest plus that of the set alone, each in the implicit
    solvent if there is one, and bonded terms, which stay as they are. At λ = 1 it is the original energy. The numbers
    are the parameters ``"lambda_sterics"`` and ``"lambda_electrostatics"`` of `ForceField.parameter_tensors`, to be
    replaced, differentiated or given for many states. Switch electrostatics off before sterics: opposite charges
    without a core would fall into each other.

    Args:
        forcefield: a `ForceField` or an ``openmm.System``.
        atoms: indices of the set.
        lambda_sterics: of Lennard-Jones, and of descreening in implicit solvent.
        lambda_electrostatics: of the charges.
        softness: alpha of the soft core.

    Raises:
        UnsupportedForceError: a term that couples pairs of atoms in a way that λ is not defined for.
        ValueError: no atoms, all atoms, or numbers that are no atoms; a λ outside [0, 1].

    References:
        Beutler, Mark, van Schaik, Gerber, van Gunsteren, Chem. Phys. Lett. 222, 529 (1994), for the soft core.

    Example:
        >>> from boltzflow import load_system
        >>> system = load_system("alanine_dipeptide")
        >>> soft = alchemical(system.openmm_system, range(6), lambda_electrostatics=0.0)
        >>> states = {"lambda_sterics": torch.linspace(1, 0, 5, dtype=torch.float64)}
        >>> soft(system.positions[None], parameters=states).shape
        torch.Size([5, 1])
    """
    if not isinstance(forcefield, ForceField):
        forcefield = from_openmm(forcefield)
    chosen = torch.as_tensor(list(atoms), dtype=torch.int64)
    wrong = chosen[(chosen < 0) | (chosen >= forcefield.n_atoms)]
    if len(wrong):
        raise ValueError(f"alchemical atoms must be indices from 0 to {forcefield.n_atoms - 1}; found {wrong.tolist()}")
    inside = torch.zeros(forcefield.n_atoms, dtype=torch.bool)
    inside[chosen] = True
    if inside.all() or not inside.any():
        raise ValueError(
            f"alchemical atoms must be some of the {forcefield.n_atoms} atoms; found {int(inside.sum())}, so that "
            "nothing interacts with a rest"
        )
    numbers = {}
    for name, value in (("lambda_sterics", lambda_sterics), ("lambda_electrostatics", lambda_electrostatics)):
        number = torch.as_tensor(value, dtype=forcefield.dtype, device=forcefield.device)
        if not 0 <= number.item() <= 1:
            raise ValueError(f"{name} must be between 0 and 1; found {number.item():g}")
        numbers[name] = number
    common = {"alchemical": inside.to(forcefield.device), **numbers}
    return forcefield.with_terms([_convert(term, common, softness) for term in forcefield.terms])


def _convert(term: Term, common: dict[str, Tensor], softness: float) -> Term:
    own = {**term.state_dict(keep_vars=True), **term.options}
    if type(term) is Nonbonded:
        return AlchemicalNonbonded(**own, **common, softness=softness)
    if type(term) is GeneralizedBorn:
        return AlchemicalGeneralizedBorn(**own, **common)
    if type(term) in _BONDED:
        return term
    raise UnsupportedForceError(
        f"{type(term).__name__}: λ is not defined for this term, which couples the alchemical atoms and the rest "
        "(known: Nonbonded, GeneralizedBorn and bonded terms)"
    )
