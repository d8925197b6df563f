"""Generalized-Born implicit solvents of the families OBC and GBn, with the ACE surface-area term."""

import math
from typing import Any

import torch

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.forcefield.registry import register_force, tensor
from boltzflow.forcefield.term import COULOMB, Term, all_pairs, pair_distances, tracked

__all__ = ["OBC1", "OBC2", "GeneralizedBorn"]

OBC1 = (0.8, 0.0, 2.909125)
OBC2 = (1.0, 0.8, 4.85)
"""Coefficients alpha, beta, gamma of tanh(alpha psi - beta psi^2 + gamma psi^3) in models I and II of the paper."""

DIELECTRIC_OFFSET = 0.009  # nm
PROBE_RADIUS = 0.14  # nm


class GeneralizedBorn(Term):
    """Generalized-Born energy with OBC or GBn radii, and optionally the ACE surface term.

    With rho the offset radii, R the radii and s the scaled radii of the descreening spheres, the Born radii are
    1/B_i = 1/rho_i - tanh(alpha psi - beta psi^2 + gamma psi^3) / R_i, psi = rho_i I_i, where I_i sums the pairwise
    integrals of Hawkins, Cramer and Truhlar over all other atoms. In the models with necks a pair within R_i + R_j +
    reach adds height / (1 + 100 d^2 + 3e5 d^6) to the integral, d = r - centre. The energy is
    -prefactor/2 sum_ij q_i q_j / f_ij, f^2 = r^2 + B_i B_j exp(-r^2 / (4 B_i B_j)),
    plus surface sum_i (R_i + 0.14)^2 (R_i/B_i)^6.

    References:
        Onufriev, Bashford, Case, Proteins 55, 383 (2004), eqs. 5-12;
        Hawkins, Cramer, Truhlar, Chem. Phys. Lett. 246, 122 (1995);
        Mongan, Simmerling, McCammon, Case, Onufriev, J. Chem. Theory Comput. 3, 156 (2007) for the necks;
        Nguyen, Roe, Simmerling, J. Chem. Theory Comput. 9, 2020 (2013) for GBn2;
        Schaefer, Bartels, Karplus, J. Mol. Biol. 284, 835 (1998) for the surface term.
    """

    uses_pairs = True

    def __init__(
        self,
        *,
        charge: Float[Tensor, "n_atoms"],
        radius: Float[Tensor, "n_atoms"],
        scale: Float[Tensor, "n_atoms"],
        coefficients: Float[Tensor, "n_atoms 3"],
        kind: Int[Tensor, "n_atoms"],
        neck: Float[Tensor, "n_kinds n_kinds 2"],
        prefactor: Float[Tensor, ""],
        surface: Float[Tensor, ""],
        offset: float,
        reach: float,
        engulfed: bool,
        cutoff: float,
        periodic: bool = False,
    ) -> None:
        """Keep the parameters.

        Args:
            charge: in elementary charges.
            radius: R in nm; rho is radius - offset.
            scale: the descreening radius s of each atom is scale * rho.
            coefficients: alpha, beta and gamma of each atom; beta enters with a minus sign.
            kind: of each atom, for ``neck``.
            neck: centre (nm) and height (1/nm) of the neck that an atom of one kind (row) gets from one of another
                (column); empty in the models without necks.
            prefactor: Coulomb constant times (1/solute - 1/solvent dielectric), kJ/mol nm.
            surface: coefficient of the ACE term in kJ/mol/nm^2, 0 without it.
            offset: in nm.
            reach: of the necks in nm, beyond both radii.
            engulfed: whether an atom inside the descreening sphere of another gets the extra 1/rho - 1/L: GBSAOBCForce
                has it, the CustomGBForce of openmm.app has not.
            cutoff: in nm, 0 without one: pairs beyond it do not descreen, and within it 1/f is 1/f - 1/cutoff.
            periodic: whether distances are those of nearest images in a periodic box.
        """
        super().__init__(
            {
                "charge": charge,
                "radius": radius,
                "scale": scale,
                "coefficients": coefficients,
                "kind": kind,
                "neck": neck,
                "prefactor": prefactor,
                "surface": surface,
            },
            offset=offset,
            reach=reach,
            engulfed=engulfed,
            cutoff=cutoff,
            periodic=periodic,
        )
        self.register_buffer("ij", all_pairs(len(charge)).to(charge.device), persistent=False)
        self.register_buffer("offset_radius", radius - offset, persistent=False)
        self.register_buffer("scaled_radius", scale * (radius - offset), persistent=False)
        i, j = self.ij
        self.register_buffer("pair_charge", charge[i] * charge[j], persistent=False)
        self._has_surface = tracked(surface) or bool(surface != 0)

    def necks(self, target: Int[Tensor, "n"], source: Int[Tensor, "n"]) -> Float[Tensor, "3 n"]:
        """Return reach, centre and height of the necks that the atoms ``target`` get from the atoms ``source``."""
        reach = self.radius[target] + self.radius[source] + self.options["reach"]
        return torch.stack([reach, *self.neck[self.kind[target], self.kind[source]].T])

    def _scaled(self, integral: Float[Tensor, "n batch"]) -> Float[Tensor, "n batch"]:
        """Return the integrals of all pairs, first i by j, then j by i, as they count."""
        return integral

    def born_radii(self, r: Float[Tensor, "n_pairs batch"]) -> Float[Tensor, "n_atoms batch"]:
        """Return the effective Born radii in nm from the distances of all pairs."""
        i, j = self.ij
        # Every pair descreens both ways: first i by j, then j by i.
        r = torch.cat([r, r])
        target, source = torch.cat([i, j]), torch.cat([j, i])
        rho, s = self.offset_radius[target, None], self.scaled_radius[source, None]
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
        counted = upper > rho
        if self.options["cutoff"]:
            counted = counted & (r < self.options["cutoff"])
        integral = torch.where(counted, integral, 0.0)
        if len(self.neck):
            reach, centre, height = self.necks(target, source)[..., None]
            square = (r - centre).square()
            reach = reach.clamp(max=self.options["cutoff"] or math.inf)
            integral = integral + torch.where(r <= reach, height / (1 + 100 * square + 3e5 * square**3), 0.0)
        integral = self._scaled(integral)
        total = integral.new_zeros((len(self.charge), r.shape[1])).index_add(0, target, integral)
        psi = total * self.offset_radius[:, None]
        alpha, beta, gamma = self.coefficients.T[..., None]
        argument = psi * (alpha - psi * (beta - psi * gamma))
        return (1 / self.offset_radius[:, None] - torch.tanh(argument) / self.radius[:, None]).reciprocal()

    def energy(
        self,
        x: Float[Tensor, "3 n_atoms batch"],
        r: Float[Tensor, "n_pairs batch"] | None,
        box: Float[Tensor, "3 3 1 _"] | None = None,
    ) -> Float64[Tensor, "batch"]:
        """See `Term.energy`."""
        i, j = self.ij
        r = pair_distances(x, i, j, box) if r is None else r
        born = self.born_radii(r)
        product = born.index_select(0, i) * born.index_select(0, j)
        squared = r * r
        inverse_f = (squared + product * torch.exp(-0.25 * squared / product)).rsqrt()
        if cutoff := self.options["cutoff"]:
            inverse_f = torch.where(r < cutoff, inverse_f - 1 / cutoff, 0.0)
        pairs = (self.pair_charge[:, None] * inverse_f).sum(0, dtype=torch.float64)
        inverse_born = born.reciprocal()
        own = (0.5 * self.charge.square()[:, None] * inverse_born).sum(0, dtype=torch.float64)
        energy = -self.prefactor * (pairs + own)
        if self._has_surface:
            area = (self.radius + PROBE_RADIUS).square()[:, None] * (self.radius[:, None] * inverse_born).pow(6)
            energy = energy + self.surface * area.sum(0, dtype=torch.float64)
        return energy

    @property
    def methods(self) -> tuple[str, ...]:
        """See `Term.methods`."""
        parts = {
            "GBn": len(self.neck) > 0,
            # only GBn2 has coefficients by element
            "GBn2": bool((self.coefficients != self.coefficients[:1]).any()),
            "ACE surface area": self._has_surface,
        }
        return ("GeneralizedBorn", *(name for name, used in parts.items() if used))


@register_force("GBSAOBCForce")
def _convert(force: Any, system: Any, dtype: torch.dtype) -> Term:
    particles = tensor([force.getParticleParameters(k) for k in range(system.getNumParticles())], torch.float64, (3,))
    charge, radius, scale = particles.T
    return GeneralizedBorn(
        charge=charge.to(dtype),
        radius=radius.to(dtype),
        scale=scale.to(dtype),
        coefficients=torch.tensor([OBC2] * len(charge), dtype=dtype).reshape(-1, 3),
        kind=torch.zeros(len(charge), dtype=torch.int64),
        neck=torch.zeros(0, 0, 2, dtype=dtype),
        prefactor=torch.tensor(
            COULOMB * (1 / force.getSoluteDielectric() - 1 / force.getSolventDielectric()), dtype=dtype
        ),
        surface=4 * math.pi * tensor([force.getSurfaceAreaEnergy()], dtype)[0],
        offset=DIELECTRIC_OFFSET,
        reach=0.0,
        engulfed=True,
        cutoff=0.0 if force.getNonbondedMethod() == force.NoCutoff else force.getCutoffDistance()._value,
        periodic=force.usesPeriodicBoundaryConditions(),
    )
