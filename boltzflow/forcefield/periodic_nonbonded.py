"""Lennard-Jones and Coulomb interactions in a periodic box: reaction field or Ewald sum, exceptions as given."""

import math

import torch

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.forcefield.box import volume
from boltzflow.forcefield.ewald import reciprocal_energy
from boltzflow.forcefield.geometry import TINY_SQUARED, nearest_image
from boltzflow.forcefield.term import (
    COULOMB,
    Term,
    all_pairs,
    pair_distances,
    pair_rows,
    root,
    switching,
    tracked,
)

__all__ = ["PeriodicNonbonded", "dispersion_correction"]


class PeriodicNonbonded(Term):
    """Lennard-Jones and Coulomb interactions of nearest images within a cutoff.

    Pairs interact by 4 epsilon [(sigma/r)^12 - (sigma/r)^6] with mean sigma and geometric mean epsilon, times
    1 - 10 t^3 + 15 t^4 - 6 t^5 from the switching distance on. Coulomb is qq (1/r + k r^2 - c) with a reaction field,
    or an Ewald sum: qq erfc(alpha r)/r, the sum over waves, -alpha/sqrt(pi) sum q^2, the background that neutralises a
    net charge Q, -pi Q^2 / (2 V alpha^2), and -qq erf(alpha r)/r for the exceptions. These pairs have an interaction of
    their own, without cutoff. What the cutoff leaves out of the dispersion is a constant over the volume.

    References:
        Essmann et al., J. Chem. Phys. 103, 8577 (1995) for the Ewald sum; Hub, de Groot, Grubmueller, Groenhof,
        J. Chem. Theory Comput. 10, 381 (2014) for the background; Tironi, Sperb, Smith, van Gunsteren,
        J. Chem. Phys. 102, 5451 (1995) for the reaction field; Shirts et al., J. Phys. Chem. B 111, 13052 (2007) for
        the dispersion.
    """

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
        alpha: float,
        largest: float,
        dispersion: bool,
        periodic_exceptions: bool,
    ) -> None:
        """Keep the parameters.

        Args:
            charge: in elementary charges.
            sigma: in nm.
            epsilon: in kJ/mol.
            exceptions: pairs of atoms with an interaction of their own.
            exception_parameters: product of charges in e^2, sigma in nm and epsilon in kJ/mol of each.
            dielectric: constant of the reaction field beyond the cutoff; not used in an Ewald sum.
            cutoff: in nm.
            switch: distance in nm from which Lennard-Jones is switched off, 0 without switching.
            alpha: of the Ewald sum in 1/nm; 0 for a reaction field.
            largest: wave number of the Ewald sum in 1/nm.
            dispersion: whether what the cutoff leaves out of the dispersion is added.
            periodic_exceptions: whether exceptions are between nearest images.
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
            alpha=alpha,
            largest=largest,
            dispersion=dispersion,
            periodic_exceptions=periodic_exceptions,
        )
        n_atoms = len(charge)
        ij = all_pairs(n_atoms).to(charge.device)
        active = ((charge != 0)[ij].all(0)) | ((epsilon != 0)[ij].all(0)) | tracked(charge, sigma, epsilon)
        active[pair_rows(*exceptions.T, n_atoms)] = False
        self.register_buffer("ij", ij[:, active], persistent=False)
        constant = dispersion_correction(sigma, epsilon, cutoff=cutoff, switch=switch) if dispersion else None
        self.register_buffer("missing", constant, persistent=False)  # energy times volume

    @property
    def periodic(self) -> bool:
        """See `Term.periodic`."""
        return True

    def _near(self, x: Tensor, box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the atoms i, j and the conformation of every pair within the cutoff, in which the graph is built."""
        with torch.no_grad():
            r = pair_distances(x, *self.ij, box)
            # A NaN is kept, so that it makes the energy of its conformation NaN.
            row, conformation = (~(r >= self.options["cutoff"])).nonzero(as_tuple=True)
        return self.ij[0, row], self.ij[1, row], conformation

    def _lennard_jones(self, inverse: Tensor, sigma: Tensor, epsilon: Tensor) -> Tensor:
        s6 = (torch.where(epsilon != 0, sigma, 0.0) * inverse).pow(6)
        # s6 * (s6 - 1) stays +inf on overflow, where s12 - s6 would be NaN.
        return 4 * epsilon * (s6 * (s6 - 1))

    def energy(
        self,
        x: Float[Tensor, "3 n_atoms batch"],
        r: Float[Tensor, "n_pairs batch"] | None,
        box: Float[Tensor, "3 3 1 _"] | None = None,
    ) -> Float64[Tensor, "batch"]:
        """See `Term.energy`."""
        energy = self._pairs(x, box) + self._exceptions(x, box)
        if self.missing is not None:
            energy = energy + self.missing / volume(box)[0].double()
        return energy + self._smeared(x, box) if self.options["alpha"] else energy

    def _pairs(self, x: Tensor, box: Tensor) -> Tensor:
        """Return the energies of pairs within the cutoff that are no exceptions."""
        cutoff, switch, alpha = (self.options[name] for name in ("cutoff", "switch", "alpha"))
        i, j, conformation = self._near(x, box)
        cell = box[:, :, 0].expand(3, 3, x.shape[2])[..., conformation]
        r = (nearest_image(x[:, i, conformation] - x[:, j, conformation], cell).square().sum(0) + TINY_SQUARED).sqrt()
        inverse = r.reciprocal()
        well = root(self.epsilon)
        pair = self._lennard_jones(inverse, 0.5 * (self.sigma[i] + self.sigma[j]), well[i] * well[j])
        if switch:
            pair = pair * switching(r[:, None], switch, cutoff)[:, 0]
        if alpha:
            coulomb = torch.erfc(alpha * r) * inverse
        else:
            dielectric = self.dielectric
            k, c = (dielectric - 1) / (2 * dielectric + 1) / cutoff**3, 3 * dielectric / (2 * dielectric + 1) / cutoff
            coulomb = inverse + k * r * r - c
        pair = pair + COULOMB * self.charge[i] * self.charge[j] * coulomb
        return torch.zeros(x.shape[2], dtype=torch.float64, device=x.device).index_add(0, conformation, pair.double())

    def _exceptions(self, x: Tensor, box: Tensor) -> Tensor:
        """Return the energies of the exceptions, less what the sum over waves has of them."""
        i, j = self.exceptions.T
        qq, sigma, epsilon = self.exception_parameters.T[..., None]
        r = pair_distances(x, i, j, box if self.options["periodic_exceptions"] else None)
        inverse = r.reciprocal()
        own = self._lennard_jones(inverse, sigma, epsilon) + COULOMB * qq * inverse
        if alpha := self.options["alpha"]:
            own = own - COULOMB * (self.charge[i] * self.charge[j])[:, None] * torch.erf(alpha * r) * inverse
        return own.sum(0, dtype=torch.float64)

    def _smeared(self, x: Tensor, box: Tensor) -> Tensor:
        """Return the sum over waves with its corrections: charges with themselves, and their background."""
        alpha, charge = self.options["alpha"], self.charge.double()
        waves = reciprocal_energy(x, box, self.charge, alpha=alpha, largest=self.options["largest"])
        own = alpha / math.sqrt(math.pi) * charge.square().sum()
        background = math.pi / (2 * alpha * alpha) * charge.sum().square() / volume(box)[0].double()
        return COULOMB * (waves - own - background)


def dispersion_correction(
    sigma: Float[Tensor, "n_atoms"], epsilon: Float[Tensor, "n_atoms"], *, cutoff: float, switch: float
) -> Float64[Tensor, ""]:
    """Return energy times volume (kJ/mol nm^3) of the Lennard-Jones interactions that a cutoff leaves out.

    The average goes over all pairs of atoms, each with itself included, as OpenMM takes it.

    Args:
        sigma: in nm.
        epsilon: in kJ/mol.
        cutoff: in nm.
        switch: distance in nm from which the interaction is switched off, 0 without switching.

    References:
        Shirts et al., J. Phys. Chem. B 111, 13052 (2007).
    """
    kinds = torch.stack([sigma, epsilon]).double()
    count = torch.ones(len(sigma), dtype=torch.int64, device=sigma.device)
    if not tracked(sigma, epsilon):
        kinds, count = kinds.unique(dim=1, return_counts=True)
    i, j = torch.triu_indices(len(count), len(count), device=count.device)
    n = torch.where(i == j, count[i] * (count[i] + 1) // 2, count[i] * count[j]).double()
    well = n * root(kinds[1, i] * kinds[1, j])
    s6 = (0.5 * (kinds[0, i] + kinds[0, j])).pow(6)
    # Integrals of r^2 / r^12 and r^2 / r^6 beyond the cutoff, and of what the switch takes away before it.
    twelve, six = 1 / (9 * cutoff**9), 1 / (3 * cutoff**3)
    if switch:
        node, weight = _legendre()
        r = switch + (cutoff - switch) * node
        lost = (1 - switching(r[:, None], switch, cutoff)[:, 0]) * weight * (cutoff - switch)
        twelve, six = twelve + (lost / r**10).sum(), six + (lost / r**4).sum()
    mean = (well * s6 * (s6 * twelve - six)).sum() / n.sum()
    return 8 * math.pi * len(sigma) ** 2 * mean


def _legendre() -> tuple[Tensor, Tensor]:
    """Return nodes and weights of a quadrature on 0 to 1, exact for what the switch multiplies."""
    import numpy as np

    node, weight = np.polynomial.legendre.leggauss(48)
    return torch.from_numpy(0.5 * (node + 1)), torch.from_numpy(0.5 * weight)
