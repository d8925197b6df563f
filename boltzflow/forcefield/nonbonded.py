"""Lennard-Jones and Coulomb interactions between all pairs of atoms, exceptions as given."""

from typing import Any

import torch

from boltzflow._typing import Bool, Float, Float64, Int, Tensor
from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield.registry import register_force, tensor
from boltzflow.forcefield.term import Term, all_pairs, pair_rows, switching

__all__ = ["COULOMB", "Nonbonded"]

COULOMB = 138.93545764438198
"""e^2 N_A / (4 pi epsilon_0) in kJ/mol nm (CODATA 2018, as in OpenMM)."""


class Nonbonded(Term):
    """Lennard-Jones and Coulomb pairs, U = 4 epsilon [(sigma/r)^12 - (sigma/r)^6] + qq / r.

    Pairs that do not interact are left out, so that excluded atoms may approach each other without 0 * inf.

    With a cutoff, pairs beyond it do not interact, but for exceptions, which have no cutoff. Within it Coulomb is
    qq (1/r + k r^2 - c) with a reaction field, and from the switching distance on Lennard-Jones is multiplied by
    1 - 10 t^3 + 15 t^4 - 6 t^5, where t goes from 0 to 1 at the cutoff.

    References:
        Tironi, Sperb, Smith, van Gunsteren, J. Chem. Phys. 102, 5451 (1995) for the reaction field.
    """

    uses_pairs = True

    def __init__(
        self,
        *,
        pairs: Int[Tensor, "n_active"],
        qq: Float[Tensor, "n_active"],
        sigma: Float[Tensor, "n_active"],
        epsilon: Float[Tensor, "n_active"],
        exception: Bool[Tensor, "n_active"],
        cutoff: float,
        switch: float,
        dielectric: float,
    ) -> None:
        """Keep the interacting pairs.

        Args:
            pairs: rows of `all_pairs`.
            qq: products of charges times the Coulomb constant, in kJ/mol nm.
            sigma: in nm; 0 where epsilon is 0.
            epsilon: in kJ/mol.
            exception: whether the pair is exempt from the cutoff.
            cutoff: in nm, 0 without one.
            switch: distance in nm from which Lennard-Jones is switched off, 0 without switching.
            dielectric: constant of the reaction field beyond the cutoff.
        """
        super().__init__(
            {"pairs": pairs, "qq": qq, "sigma": sigma, "epsilon": epsilon, "exception": exception},
            cutoff=cutoff,
            switch=switch,
            dielectric=dielectric,
        )

    def reaction_field(self) -> tuple[float, float]:
        """Return k (1/nm^3) and c (1/nm) of the reaction field."""
        cutoff, dielectric = self.options["cutoff"], self.options["dielectric"]
        return (dielectric - 1) / (2 * dielectric + 1) / cutoff**3, 3 * dielectric / (2 * dielectric + 1) / cutoff

    def energy(
        self, x: Float[Tensor, "3 n_atoms batch"], r: Float[Tensor, "n_pairs batch"] | None
    ) -> Float64[Tensor, "batch"]:
        """See `Term.energy`."""
        r = r.index_select(0, self.pairs)
        inverse = r.reciprocal()
        s6 = (self.sigma[:, None] * inverse).pow(6)
        # s6 * (s6 - 1) stays +inf on overflow, where s12 - s6 would be NaN.
        lennard_jones = 4 * self.epsilon[:, None] * (s6 * (s6 - 1))
        if not self.options["cutoff"]:
            return (lennard_jones + self.qq[:, None] * inverse).sum(0, dtype=torch.float64)
        cut = (~self.exception).to(r.dtype)[:, None]
        if self.options["switch"]:
            lennard_jones = lennard_jones * switching(r, self.options["switch"], self.options["cutoff"], cut)
        k, c = self.reaction_field()
        pair = lennard_jones + self.qq[:, None] * (inverse + cut * (k * r * r - c))
        pair = torch.where((r < self.options["cutoff"]) | self.exception[:, None], pair, 0.0)
        return pair.sum(0, dtype=torch.float64)


@register_force("NonbondedForce")
def _convert(force: Any, system: Any, dtype: torch.dtype) -> Term:
    if force.getNonbondedMethod() not in (force.NoCutoff, force.CutoffNonPeriodic):
        names = ["NoCutoff", "CutoffNonPeriodic", "CutoffPeriodic", "Ewald", "PME", "LJPME"]
        raise UnsupportedForceError(
            f"nonbonded method {names[force.getNonbondedMethod()]}: only NoCutoff and CutoffNonPeriodic are known; "
            "create the System with one of them, or use the openmm back-end"
        )
    cutoff = force.getCutoffDistance()._value if force.getNonbondedMethod() == force.CutoffNonPeriodic else 0.0
    if force.getNumParticleParameterOffsets() or force.getNumExceptionParameterOffsets():
        raise UnsupportedForceError("parameter offsets are not known; use the openmm back-end")
    n_atoms = system.getNumParticles()
    particles = tensor([force.getParticleParameters(k) for k in range(n_atoms)], torch.float64, (3,))
    i, j = all_pairs(n_atoms)
    charge, sigma, epsilon = particles.T
    pair = torch.stack([charge[i] * charge[j], 0.5 * (sigma[i] + sigma[j]), (epsilon[i] * epsilon[j]).sqrt()], 1)
    exempt = torch.zeros(len(pair), dtype=torch.bool)
    exceptions = [force.getExceptionParameters(k) for k in range(force.getNumExceptions())]
    if exceptions:
        rows = pair_rows(*tensor([row[:2] for row in exceptions], None, (2,)).T, n_atoms)
        exempt[rows] = True
        pair[rows] = tensor([row[2:] for row in exceptions], torch.float64, (3,))
    qq, sigma, epsilon = pair.T
    active = ((qq != 0) | (epsilon != 0)).nonzero()[:, 0]
    return Nonbonded(
        pairs=active,
        qq=(COULOMB * qq[active]).to(dtype),
        sigma=torch.where(epsilon != 0, sigma, 0.0)[active].to(dtype),
        epsilon=epsilon[active].to(dtype),
        exception=exempt[active],
        cutoff=cutoff,
        switch=force.getSwitchingDistance()._value if cutoff and force.getUseSwitchingFunction() else 0.0,
        dielectric=force.getReactionFieldDielectric(),
    )
