"""Lennard-Jones and Coulomb interactions between all pairs of atoms, without cutoff, exceptions as given."""

from typing import Any

import torch

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield.registry import register_force, tensor
from boltzflow.forcefield.term import Term, all_pairs, pair_rows

__all__ = ["COULOMB", "Nonbonded"]

COULOMB = 138.93545764438198
"""e^2 N_A / (4 pi epsilon_0) in kJ/mol nm (CODATA 2018, as in OpenMM)."""


class Nonbonded(Term):
    """Lennard-Jones and Coulomb pairs, U = 4 epsilon [(sigma/r)^12 - (sigma/r)^6] + qq / r.

    Pairs that do not interact are left out, so that excluded atoms may approach each other without 0 * inf.
    """

    uses_pairs = True

    def __init__(
        self,
        *,
        pairs: Int[Tensor, "n_active"],
        qq: Float[Tensor, "n_active"],
        sigma: Float[Tensor, "n_active"],
        epsilon: Float[Tensor, "n_active"],
    ) -> None:
        """Keep the interacting pairs.

        Args:
            pairs: rows of `all_pairs`.
            qq: products of charges times the Coulomb constant, in kJ/mol nm.
            sigma: in nm; 0 where epsilon is 0.
            epsilon: in kJ/mol.
        """
        super().__init__({"pairs": pairs, "qq": qq, "sigma": sigma, "epsilon": epsilon})

    def energy(
        self, x: Float[Tensor, "3 n_atoms batch"], r: Float[Tensor, "n_pairs batch"] | None
    ) -> Float64[Tensor, "batch"]:
        """See `Term.energy`."""
        inverse = r.index_select(0, self.pairs).reciprocal()
        s6 = (self.sigma[:, None] * inverse).pow(6)
        # s6 * (s6 - 1) stays +inf on overflow, where s12 - s6 would be NaN.
        pair = 4 * self.epsilon[:, None] * (s6 * (s6 - 1)) + self.qq[:, None] * inverse
        return pair.sum(0, dtype=torch.float64)


@register_force("NonbondedForce")
def _convert(force: Any, system: Any, dtype: torch.dtype) -> Term:
    if force.getNonbondedMethod() != force.NoCutoff:
        names = ["NoCutoff", "CutoffNonPeriodic", "CutoffPeriodic", "Ewald", "PME", "LJPME"]
        raise UnsupportedForceError(
            f"nonbonded method {names[force.getNonbondedMethod()]}: only NoCutoff is known; create the System with "
            "nonbondedMethod=NoCutoff, or use the openmm back-end"
        )
    if force.getNumParticleParameterOffsets() or force.getNumExceptionParameterOffsets():
        raise UnsupportedForceError("parameter offsets are not known; use the openmm back-end")
    n_atoms = system.getNumParticles()
    particles = tensor([force.getParticleParameters(k) for k in range(n_atoms)], torch.float64, (3,))
    i, j = all_pairs(n_atoms)
    charge, sigma, epsilon = particles.T
    pair = torch.stack([charge[i] * charge[j], 0.5 * (sigma[i] + sigma[j]), (epsilon[i] * epsilon[j]).sqrt()], 1)
    exceptions = [force.getExceptionParameters(k) for k in range(force.getNumExceptions())]
    if exceptions:
        rows = pair_rows(*tensor([row[:2] for row in exceptions], None, (2,)).T, n_atoms)
        pair[rows] = tensor([row[2:] for row in exceptions], torch.float64, (3,))
    qq, sigma, epsilon = pair.T
    active = ((qq != 0) | (epsilon != 0)).nonzero()[:, 0]
    return Nonbonded(
        pairs=active,
        qq=(COULOMB * qq[active]).to(dtype),
        sigma=torch.where(epsilon != 0, sigma, 0.0)[active].to(dtype),
        epsilon=epsilon[active].to(dtype),
    )
