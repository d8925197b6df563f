"""Generalized-Born implicit solvent of Onufriev, Bashford and Case (OBC), with the ACE surface-area term."""

import math
from typing import Any

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield.nonbonded import COULOMB
from boltzflow.forcefield.registry import register_force, tensor
from boltzflow.forcefield.term import Term, all_pairs

__all__ = ["OBC1", "OBC2", "GeneralizedBorn"]

OBC1 = (0.8, 0.0, 2.909125)
OBC2 = (1.0, 0.8, 4.85)
"""Coefficients alpha, beta, gamma of tanh(alpha psi - beta psi^2 + gamma psi^3) in models I and II of the paper."""

DIELECTRIC_OFFSET = 0.009  # nm
PROBE_RADIUS = 0.14  # nm


class GeneralizedBorn(Term):
    """Generalized-Born energy with OBC radii, and optionally the ACE surface term.

    With rho the offset radii, R the radii and s the scaled radii of the descreening spheres, the Born radii are
    1/B_i = 1/rho_i - tanh(alpha psi - beta psi^2 + gamma psi^3) / R_i, psi = rho_i I_i, where I_i sums the pairwise
    integrals of Hawkins, Cramer and Truhlar over all other atoms. The energy is
    -prefactor/2 sum_ij q_i q_j / f_ij, f^2 = r^2 + B_i B_j exp(-r^2 / (4 B_i B_j)),
    plus surface sum_i (R_i + 0.14)^2 (R_i/B_i)^6.

    References:
        Onufriev, Bashford, Case, Proteins 55, 383 (2004), eqs. 5-12;
        Hawkins, Cramer, Truhlar, Chem. Phys. Lett. 246, 122 (1995);
        Schaefer, Bartels, Karplus, J. Mol. Biol. 284, 835 (1998) for the surface term.
    """

    uses_pairs = True

    def __init__(
        self,
        *,
        charge: Float[Tensor, "n_atoms"],
        offset_radius: Float[Tensor, "n_atoms"],
        radius: Float[Tensor, "n_atoms"],
        scaled_radius: Float[Tensor, "n_atoms"],
        alpha: float,
        beta: float,
        gamma: float,
        prefactor: float,
        surface: float,
        engulfed: bool,
    ) -> None:
        """Keep the parameters.

        Args:
            charge: in elementary charges.
            offset_radius: rho in nm, radius minus 0.009.
            radius: R in nm.
            scaled_radius: s in nm, the descreening radius of each atom.
            alpha: linear coefficient of the tanh argument.
            beta: quadratic coefficient (enters with a minus sign).
            gamma: cubic coefficient.
            prefactor: Coulomb constant times (1/solute - 1/solvent dielectric), kJ/mol nm.
            surface: coefficient of the ACE term in kJ/mol/nm^2, 0 without it.
            engulfed: whether an atom inside the descreening sphere of another gets the extra 1/rho - 1/L: GBSAOBCForce
                has it, the CustomGBForce of openmm.app has not.
        """
        super().__init__(
            {"charge": charge, "offset_radius": offset_radius, "radius": radius, "scaled_radius": scaled_radius},
            alpha=alpha,
            beta=beta,
            gamma=gamma,
            prefactor=prefactor,
            surface=surface,
            engulfed=engulfed,
        )
        self.register_buffer("ij", all_pairs(len(charge)).to(charge.device), persistent=False)

    def born_radii(self, r: Float[Tensor, "n_pairs batch"]) -> Float[Tensor, "n_atoms batch"]:
        """Return the effective Born radii in nm from the distances of all pairs."""
        i, j = self.ij
        # Every pair descreens both ways: first i by j, then j by i.
        r = torch.cat([r, r])
        target = torch.cat([i, j])
        rho, s = self.offset_radius[target, None], self.scaled_radius[torch.cat([j, i]), None]
        upper = r + s
        distance = (r - s).abs()
        lower = torch.maximum(distance, rho)
        inverse_lower, inverse_upper = lower.reciprocal(), upper.reciprocal()
        integral = 0.5 * (inverse_lower - inverse_upper) + (
            0.125 * (r - s * s / r) * (inverse_upper.square() - inverse_lower.square())
            + 0.25 * torch.log(lower / upper) / r
        )
        if self.options["engulfed"]:
            integral = integral + torch.where(rho < s - r, 1 / rho - inverse_lower, 0.0)
        integral = torch.where(upper > rho, integral, 0.0)
        total = integral.new_zeros((len(self.charge), r.shape[1])).index_add(0, target, integral)
        psi = total * self.offset_radius[:, None]
        argument = psi * (self.options["alpha"] - psi * (self.options["beta"] - psi * self.options["gamma"]))
        return (1 / self.offset_radius[:, None] - torch.tanh(argument) / self.radius[:, None]).reciprocal()

    def energy(
        self, x: Float[Tensor, "3 n_atoms batch"], r: Float[Tensor, "n_pairs batch"] | None
    ) -> Float64[Tensor, "batch"]:
        """See `Term.energy`."""
        born = self.born_radii(r)
        i, j = self.ij
        product = born.index_select(0, i) * born.index_select(0, j)
        squared = r * r
        inverse_f = (squared + product * torch.exp(-0.25 * squared / product)).rsqrt()
        pairs = ((self.charge[i] * self.charge[j])[:, None] * inverse_f).sum(0, dtype=torch.float64)
        inverse_born = born.reciprocal()
        own = (0.5 * self.charge.square()[:, None] * inverse_born).sum(0, dtype=torch.float64)
        energy = -self.options["prefactor"] * (pairs + own)
        if self.options["surface"]:
            area = (self.radius + PROBE_RADIUS).square()[:, None] * (self.radius[:, None] * inverse_born).pow(6)
            energy = energy + self.options["surface"] * area.sum(0, dtype=torch.float64)
        return energy

    @property
    def methods(self) -> tuple[str, ...]:
        """See `Term.methods`."""
        return ("GeneralizedBorn", "ACE surface area") if self.options["surface"] else ("GeneralizedBorn",)


@register_force("GBSAOBCForce")
def _convert(force: Any, system: Any, dtype: torch.dtype) -> Term:
    if force.getNonbondedMethod() != force.NoCutoff:
        raise UnsupportedForceError(
            "a cutoff is not known; create the System with nonbondedMethod=NoCutoff, or use the openmm back-end"
        )
    particles = tensor([force.getParticleParameters(k) for k in range(system.getNumParticles())], torch.float64, (3,))
    charge, radius, scale = particles.T
    alpha, beta, gamma = OBC2
    return GeneralizedBorn(
        charge=charge.to(dtype),
        offset_radius=(radius - DIELECTRIC_OFFSET).to(dtype),
        radius=radius.to(dtype),
        scaled_radius=(scale * (radius - DIELECTRIC_OFFSET)).to(dtype),
        alpha=alpha,
        beta=beta,
        gamma=gamma,
        prefactor=COULOMB * (1 / force.getSoluteDielectric() - 1 / force.getSolventDielectric()),
        surface=4 * math.pi * tensor([force.getSurfaceAreaEnergy()], torch.float64).item(),
        engulfed=True,
    )
