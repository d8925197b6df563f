"""Lennard-Jones and Coulomb interactions between all pairs of atoms, exceptions as given."""

import logging
from typing import Any

import torch

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield.ewald import screening
from boltzflow.forcefield.periodic_nonbonded import PeriodicNonbonded
from boltzflow.forcefield.registry import register_force, tensor
from boltzflow.forcefield.term import COULOMB, Term, all_pairs, pair_rows, root, switching, tracked

__all__ = ["Nonbonded"]

_log = logging.getLogger(__name__)


class Nonbonded(Term):
    """Lennard-Jones and Coulomb pairs, U = 4 epsilon [(sigma/r)^12 - (sigma/r)^6] + qq / r.

    Pairs have the product of their charges, the mean of their sigmas and the geometric mean of their epsilons, but for
    exceptions, which have parameters of their own. Pairs that do not interact are left out, so that excluded atoms may
    approach each other without 0 * inf. Where the epsilon of an atom is 0 its gradient, which is infinite, is taken as
    zero.

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
        charge: Float[Tensor, "n_atoms"],
        sigma: Float[Tensor, "n_atoms"],
        epsilon: Float[Tensor, "n_atoms"],
        exceptions: Int[Tensor, "n_exceptions 2"],
        exception_parameters: Float[Tensor, "n_exceptions 3"],
        dielectric: Float[Tensor, ""],
        cutoff: float,
        switch: float,
    ) -> None:
        """Keep the parameters, and those of the pairs that interact.

        Args:
            charge: in elementary charges.
            sigma: in nm.
            epsilon: in kJ/mol.
            exceptions: pairs of atoms with an interaction of their own, exempt from the cutoff.
            exception_parameters: product of charges in e^2, sigma in nm and epsilon in kJ/mol of each.
            dielectric: constant of the reaction field beyond the cutoff.
            cutoff: in nm, 0 without one.
            switch: distance in nm from which Lennard-Jones is switched off, 0 without switching.
        """
        super().__init__(
            {
                "charge": charge,
                "sigma": sigma,
                "epsilon": epsilon,
                "exceptions": exceptions,
                "exception_parameters": exception_parameters,
                "dielectric": dielectric,
            },
            cutoff=cutoff,
            switch=switch,
        )
        i, j = all_pairs(len(charge)).to(charge.device)
        exempt = torch.zeros(len(i), dtype=torch.bool, device=charge.device)
        rows = pair_rows(*exceptions.T, len(charge))
        exempt[rows] = True
        pair = torch.stack([charge[i] * charge[j], 0.5 * (sigma[i] + sigma[j]), root(epsilon[i] * epsilon[j])], 1)
        qq, sigma, epsilon = pair.index_copy(0, rows, exception_parameters).T
        active = (qq != 0) | (epsilon != 0)
        if tracked(pair):  # what is zero now may have a gradient
            active = active | ~exempt
        if tracked(exception_parameters):
            active = active | exempt
        else:
            sigma = torch.where(epsilon != 0, sigma, 0.0)
        pairs = active.nonzero()[:, 0]
        self.register_buffer("pairs", pairs, persistent=False)
        self.register_buffer("qq", COULOMB * qq[pairs], persistent=False)
        self.register_buffer("pair_sigma", sigma[pairs], persistent=False)
        self.register_buffer("pair_epsilon", epsilon[pairs], persistent=False)
        self.register_buffer("exempt", exempt[pairs], persistent=False)

    def reaction_field(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return k (1/nm^3) and c (1/nm) of the reaction field."""
        cutoff, dielectric = self.options["cutoff"], self.dielectric
        return (dielectric - 1) / (2 * dielectric + 1) / cutoff**3, 3 * dielectric / (2 * dielectric + 1) / cutoff

    def _sixth_power(self, r: Float[Tensor, "n batch"], inverse: Float[Tensor, "n batch"]) -> Float[Tensor, "n batch"]:
        """Return (sigma/r)^6 of every pair."""
        return (self.pair_sigma[:, None] * inverse).pow(6)

    def energy(
        self, x: Float[Tensor, "3 n_atoms batch"], r: Float[Tensor, "n_pairs batch"] | None
    ) -> Float64[Tensor, "batch"]:
        """See `Term.energy`."""
        r = r.index_select(0, self.pairs)
        inverse = r.reciprocal()
        s6 = self._sixth_power(r, inverse)
        # s6 * (s6 - 1) stays +inf on overflow, where s12 - s6 would be NaN.
        lennard_jones = 4 * self.pair_epsilon[:, None] * (s6 * (s6 - 1))
        if not self.options["cutoff"]:
            return (lennard_jones + self.qq[:, None] * inverse).sum(0, dtype=torch.float64)
        cut = (~self.exempt).to(r.dtype)[:, None]
        if self.options["switch"]:
            lennard_jones = lennard_jones * switching(r, self.options["switch"], self.options["cutoff"], cut)
        k, c = self.reaction_field()
        pair = lennard_jones + self.qq[:, None] * (inverse + cut * (k * r * r - c))
        pair = torch.where((r < self.options["cutoff"]) | self.exempt[:, None], pair, 0.0)
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
    charge, sigma, epsilon = particles.to(dtype).T
    return PeriodicNonbonded(
        charge=charge,
        sigma=sigma,
        epsilon=epsilon,
        exceptions=exceptions,
        exception_parameters=parameters.to(dtype),
        cutoff=cutoff,
        switch=switch,
        dielectric=torch.tensor(force.getReactionFieldDielectric(), dtype=dtype),
        alpha=alpha,
        largest=largest,
        dispersion=force.getUseDispersionCorrection(),
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
    charge, sigma, epsilon = particles.to(dtype).T
    return Nonbonded(
        charge=charge,
        sigma=sigma,
        epsilon=epsilon,
        exceptions=exceptions,
        exception_parameters=parameters.to(dtype),
        dielectric=torch.tensor(force.getReactionFieldDielectric(), dtype=dtype),
        cutoff=cutoff,
        switch=force.getSwitchingDistance()._value if cutoff and force.getUseSwitchingFunction() else 0.0,
    )
