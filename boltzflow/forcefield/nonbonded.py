"""Lennard-Jones and Coulomb interactions between all pairs of atoms, exceptions as given."""

import logging
from typing import Any

import torch

from boltzflow._typing import Bool, Float, Float64, Int, Tensor
from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield.ewald import screening
from boltzflow.forcefield.periodic_nonbonded import PeriodicNonbonded, dispersion_correction
from boltzflow.forcefield.registry import register_force, tensor
from boltzflow.forcefield.term import COULOMB, Term, all_pairs, pair_rows, switching

__all__ = ["Nonbonded"]

_log = logging.getLogger(__name__)


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


def _parameters(
    force: Any,
) -> tuple[Float64[Tensor, "n_atoms 3"], Int[Tensor, "n_exceptions 2"], Float64[Tensor, "n_exceptions 3"]]:
    """Return charge (or product of charges), sigma and epsilon of atoms and exceptions, with offsets added."""
    n_globals = force.getNumGlobalParameters()
    value = {force.getGlobalParameterName(k): force.getGlobalParameterDefaultValue(k) for k in range(n_globals)}
    particles = [force.getParticleParameters(k) for k in range(force.getNumParticles())]
    pairs = [force.getExceptionParameters(k) for k in range(force.getNumExceptions())]
    atoms = tensor(particles, torch.float64, (3,))
    exceptions = tensor([row[2:] for row in pairs], torch.float64, (3,))
    offsets = 0
    for kind, rows in (("Particle", atoms), ("Exception", exceptions)):
        for k in range(getattr(force, f"getNum{kind}ParameterOffsets")()):
            name, row, *scale = getattr(force, f"get{kind}ParameterOffset")(k)
            rows[row] += value[name] * tensor(scale, torch.float64)
            offsets += 1
    if offsets:
        _log.info("%d parameter offsets of %s are taken at the defaults %s", offsets, force.getName(), value)
    if (atoms[:, 2] < 0).any():
        raise UnsupportedForceError(
            "parameter offsets make an epsilon negative; change the global parameters' defaults"
        )
    return atoms, tensor([row[:2] for row in pairs], None, (2,)), exceptions


def _periodic(force: Any, particles: Tensor, exceptions: Tensor, parameters: Tensor, dtype: torch.dtype) -> Term:
    cutoff, method = force.getCutoffDistance()._value, force.getNonbondedMethod()
    switch = force.getSwitchingDistance()._value if force.getUseSwitchingFunction() else 0.0
    alpha, largest = screening(cutoff) if method != force.CutoffPeriodic else (0.0, 0.0)
    if method == force.PME:
        _log.info(
            "PME is evaluated by a converged Ewald sum; boltzflow.forcefield.pme_offset measures how far OpenMM's PME, "
            "at its tolerance of %g, is from it",
            force.getEwaldErrorTolerance(),
        )
    dispersion = 0.0
    if force.getUseDispersionCorrection():
        dispersion = dispersion_correction(*particles[:, 1:].T, cutoff=cutoff, switch=switch)
    charge, sigma, epsilon = particles.to(dtype).T
    return PeriodicNonbonded(
        charge=charge,
        sigma=sigma,
        epsilon=epsilon,
        exceptions=exceptions,
        exception_parameters=parameters.to(dtype),
        cutoff=cutoff,
        switch=switch,
        dielectric=force.getReactionFieldDielectric(),
        alpha=alpha,
        largest=largest,
        dispersion=dispersion,
        periodic_exceptions=force.getExceptionsUsePeriodicBoundaryConditions(),
    )


@register_force("NonbondedForce")
def _convert(force: Any, system: Any, dtype: torch.dtype) -> Term:
    if force.getNonbondedMethod() == force.LJPME:
        raise UnsupportedForceError(
            "nonbonded method LJPME is not known (known: NoCutoff, CutoffNonPeriodic, CutoffPeriodic, Ewald, PME); "
            "create the System with PME, or use the openmm back-end"
        )
    particles, exceptions, parameters = _parameters(force)
    if force.usesPeriodicBoundaryConditions():
        return _periodic(force, particles, exceptions, parameters, dtype)
    cutoff = force.getCutoffDistance()._value if force.getNonbondedMethod() == force.CutoffNonPeriodic else 0.0
    n_atoms = system.getNumParticles()
    i, j = all_pairs(n_atoms)
    charge, sigma, epsilon = particles.T
    pair = torch.stack([charge[i] * charge[j], 0.5 * (sigma[i] + sigma[j]), (epsilon[i] * epsilon[j]).sqrt()], 1)
    exempt = torch.zeros(len(pair), dtype=torch.bool)
    rows = pair_rows(*exceptions.T, n_atoms)
    exempt[rows] = True
    pair[rows] = parameters
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
