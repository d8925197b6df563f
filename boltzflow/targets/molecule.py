"""A molecule at a temperature: a potential in kJ/mol as a reduced energy over positions modulo rigid motions."""

from collections.abc import Callable, Sequence
from numbers import Real

import torch

from boltzflow._typing import Bool, Float, Tensor
from boltzflow.errors import UnitError
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets.target import Target

__all__ = ["BOLTZMANN", "MoleculeTarget", "kT"]

BOLTZMANN = 0.00831446261815324
"""Gas constant in kJ/mol/K (CODATA 2018, exact)."""


def kT(temperature: float) -> float:
    """Thermal energy in kJ/mol at a temperature in K."""
    return BOLTZMANN * temperature


class MoleculeTarget(Target):
    """u = U/kT of a molecule, zero density outside its stereochemical sector.

    The measure is Lebesgue on Cartesian positions modulo rigid motions, in nm: with internal coordinates q,
    Z = ∫ exp(−u) |∂x/∂q| dq, without the factor 8π²V of orientations and translations. In a periodic box rotations
    change the energy, and the measure is Lebesgue modulo translations alone. Virtual sites add nothing to either.

    Args:
        potential: Module, (batch, n_atoms, 3) nm → (batch,) kJ/mol, with `energy_and_force`.
        n_atoms: Number of atoms.
        temperature: In K; an `openmm.unit.Quantity` is converted.
        sector: Maps positions to a mask of the configurations that belong to the Target (handedness of stereo-centres,
            labelling of identical hydrogens); None for all.
        sector_description: What the sector fixes and how log Z counts it.
        topology: OpenMM or mdtraj topology, stored with ensembles.
        origin: What the potential comes from, by the names that `boltzflow.cite` knows: "OpenMM", force-field files.
        name: Shown in ledgers and errors.

    Raises:
        UnitError: If the temperature is not a positive number of kelvin.
    """

    measure = "cartesian modulo rigid motions"

    def __init__(
        self,
        potential: torch.nn.Module,
        *,
        n_atoms: int,
        temperature: object,
        sector: Callable[[Tensor], Tensor] | None = None,
        sector_description: str = "none: all configurations",
        topology: object | None = None,
        origin: Sequence[str] = (),
        name: str = "molecule",
    ) -> None:
        # A box keeps translations as the only rigid motions; virtual sites follow their parents.
        periodic, sites = getattr(potential, "periodic", False), getattr(potential, "sites", None)
        free = 3 * (n_atoms - (0 if sites is None else len(sites))) - (3 if periodic else 6)
        super().__init__({"positions": Space("line", (n_atoms, 3), dimension=max(free, 1))}, name=name)
        if periodic:
            self.measure = "cartesian modulo translations"
        self.potential = potential
        self.n_atoms = n_atoms
        self.temperature = as_temperature(temperature)
        self.sector = sector
        self.sector_description = sector_description
        self.topology = topology
        self.origin = tuple(origin)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds the references of the potential."""
        return (*getattr(self.potential, "methods", (type(self.potential).__name__,)), *self.origin)

    def _beta(self, context: Context | None) -> float:
        temperature = self.temperature if context is None or "temperature" not in context else context["temperature"]
        return 1.0 / kT(as_temperature(temperature))

    def in_sector(self, positions: Float[Tensor, "batch n_atoms 3"]) -> Bool[Tensor, " batch"]:
        """Which configurations belong to the Target."""
        if self.sector is None:
            return torch.ones(positions.shape[0], dtype=torch.bool, device=positions.device)
        return self.sector(positions.detach())

    def reduced_energy(self, state: State, context: Context | None = None) -> Float[Tensor, " batch"]:
        """Return u = U/kT in float64; +inf outside the sector. `context["temperature"]` (K) overrides the Target's."""
        u = self.potential(state["positions"]).double() * self._beta(context)
        return torch.where(self.in_sector(state["positions"]), u, torch.inf)

    def energy_and_force(
        self, state: State, context: Context | None = None
    ) -> tuple[Float[Tensor, " batch"], dict[str, Tensor]]:
        """Return u and −∂u/∂positions (1/nm) from one evaluation, detached."""
        energy, force = self.potential.energy_and_force(state["positions"].detach())
        beta = self._beta(context)
        u = torch.where(self.in_sector(state["positions"]), energy.double() * beta, torch.inf)
        return u, {"positions": force * beta}


def as_temperature(value: object) -> float:
    """Temperature in K from a number (or a tensor of one) or an `openmm.unit.Quantity`.

    Raises:
        UnitError: If it is not a positive, finite number of kelvin below 10⁵ K.
    """
    found = value
    if hasattr(value, "value_in_unit"):
        from openmm import unit

        found = value.value_in_unit(unit.kelvin) if value.unit.is_compatible(unit.kelvin) else None
    elif isinstance(value, Tensor) and value.ndim == 0:
        found = value.item()
    if not isinstance(found, Real) or isinstance(found, bool) or not 0.0 < float(found) < 1e5:
        raise UnitError(f"temperature: expected a positive number of kelvin below 1e5, got {value!r}.")
    return float(found)
