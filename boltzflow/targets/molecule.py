"""A molecule at a temperature: a potential in kJ/mol as a reduced energy over positions modulo rigid motions."""

from collections.abc import Callable, Sequence
from numbers import Real

import torch

from boltzflow._typing import Bool, Float, Float64, Tensor
from boltzflow.coordinates.constraints import Constraints
from boltzflow.errors import UnitError
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets.target import Target

__all__ = ["BOLTZMANN", "CONSTRAINT_MEASURES", "CONSTRAINT_TOLERANCE", "MoleculeTarget", "kT"]

BOLTZMANN = 0.00831446261815324
"""Gas constant in kJ/mol/K (CODATA 2018, exact)."""

CONSTRAINT_TOLERANCE = 1e-4
"""Largest relative violation of a constrained distance; OpenMM keeps to 1e-5, and float32 rounds by some 1e-6."""

CONSTRAINT_MEASURES = ("mass-metric", "stiff", "rigid")
"""What a constrained density is with respect to; see `MoleculeTarget`."""


def kT(temperature: float | Float[Tensor, "..."]) -> float | Float[Tensor, "..."]:
    """Thermal energy in kJ/mol at a temperature in K."""
    return BOLTZMANN * temperature


class MoleculeTarget(Target):
    """u = U/kT of a molecule, zero density outside its stereochemical sector.

    The measure is Lebesgue on Cartesian positions modulo rigid motions, in nm: with internal coordinates q,
    Z = ∫ exp(−u) |∂x/∂q| dq, without the factor 8π²V of orientations and translations. In a periodic box rotations
    change the energy, and the measure is Lebesgue modulo translations alone. Virtual sites add nothing to either.

    Constraints σ_k = |x_i − x_j| − d_k = 0 leave K fewer dimensions. Densities and log Z are then with respect to
    ∏ δ(σ_k) dx, and the three measures in use differ from it by an explicit term of u, `metric_term`:

    - "mass-metric", what constrained dynamics samples, that of OpenMM included: exp(−U/kT) √(det Z/det Z₀) ∏ δ(σ_k) dx
      with Z = ∇σᵀ M⁻¹ ∇σ and its diagonal Z₀, a constant. Velocities, too, are bound to the surface.
    - "stiff", the limit of ever stiffer harmonic bonds: exp(−U/kT) ∏ δ(σ_k) dx. The Fixman potential ½ kT ln det Z,
      added to U, turns constrained dynamics into this.
    - "rigid", the area of the surface in Cartesian space: as "mass-metric" with unit masses.

    The density is zero where a distance is off by more than `CONSTRAINT_TOLERANCE` of itself: u = +inf, counted as
    `n_nonfinite`. Where no two constraints share an atom, as in a box of diatomics, the three are the same; in rigid
    waters they differ by a constant.

    Args:
        potential: Module, (batch, n_atoms, 3) nm → (batch,) kJ/mol, with `energy_and_force`.
        n_atoms: Number of atoms.
        temperature: In K; an `openmm.unit.Quantity` is converted.
        sector: Maps positions to a mask of the configurations that belong to the Target (handedness of stereo-centres,
            labelling of identical hydrogens); None for all.
        sector_description: What the sector fixes and how log Z counts it.
        constraints: Fixed distances; None = those of the potential, if it has any.
        constraint_measure: "mass-metric", "stiff" or "rigid"; says nothing without constraints.
        topology: OpenMM or mdtraj topology, stored with ensembles.
        origin: What the potential comes from, by the names that `boltzflow.cite` knows: "OpenMM", force-field files.
        name: Shown in ledgers and errors.

    Raises:
        UnitError: If the temperature is not a positive number of kelvin.
        ValueError: If the measure is none of the three.

    References:
        Fixman, PNAS 71, 3050 (1974); van Kampen and Lodder, Am. J. Phys. 52, 419 (1984); Ciccotti, Lelièvre and
        Vanden-Eijnden, Commun. Pure Appl. Math. 61, 371 (2008).
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
        constraints: Constraints | None = None,
        constraint_measure: str = "mass-metric",
        topology: object | None = None,
        origin: Sequence[str] = (),
        name: str = "molecule",
    ) -> None:
        # A box keeps translations as the only rigid motions; virtual sites follow their parents.
        periodic, sites = getattr(potential, "periodic", False), getattr(potential, "sites", None)
        found = getattr(potential, "constraints", None)
        if constraints is None and found is not None:
            constraints = Constraints(found.atoms, found.distances, masses=found.masses)
        if constraint_measure not in CONSTRAINT_MEASURES:
            raise ValueError(
                f"{name}: expected constraint_measure one of {', '.join(CONSTRAINT_MEASURES)}, got "
                f"{constraint_measure!r}."
            )
        free = 3 * (n_atoms - (0 if sites is None else len(sites))) - (3 if periodic else 6)
        free -= 0 if constraints is None else len(constraints)
        super().__init__({"positions": Space("line", (n_atoms, 3), dimension=max(free, 1))}, name=name)
        if periodic:
            self.measure = "cartesian modulo translations"
        if constraints is not None:
            self.measure += f" on {len(constraints)} constraints ({constraint_measure})"
        self.constraints = constraints
        self.constraint_measure = constraint_measure
        self._metric = None if constraints is None else _metric(constraints, constraint_measure)
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
        constrained = () if self.constraints is None else (f"{self.constraint_measure} constraints",)
        return (*getattr(self.potential, "methods", (type(self.potential).__name__,)), *self.origin, *constrained)

    def _beta(self, context: Context | None) -> float | Float[Tensor, ""]:
        temperature = self.temperature if context is None or "temperature" not in context else context["temperature"]
        found = as_temperature(temperature)
        # a tensor stays one, so that u can be differentiated with respect to the temperature
        return 1.0 / kT(temperature.double() if isinstance(temperature, Tensor) else found)

    def metric_term(self, positions: Float[Tensor, "batch n_atoms 3"]) -> Float64[Tensor, " batch"]:
        """What the measure of the constraints adds to U/kT: −½ ln(det Z/det Z₀), zero for "stiff".

        Minus the Fixman potential in kT, with the masses of the atoms for "mass-metric" and unit masses for "rigid".
        """
        if self._metric is None:
            return torch.zeros(len(positions), dtype=torch.float64, device=positions.device)
        return -0.5 * (self._metric.log_det_metric(positions) - self._metric.log_diagonal)

    def in_support(self, positions: Float[Tensor, "batch n_atoms 3"]) -> Bool[Tensor, " batch"]:
        """Which configurations lie in the sector and on the constraints."""
        inside = self.in_sector(positions)
        if self.constraints is None:
            return inside
        return inside & (self.constraints.violation(positions.detach()) <= CONSTRAINT_TOLERANCE)

    def in_sector(self, positions: Float[Tensor, "batch n_atoms 3"]) -> Bool[Tensor, " batch"]:
        """Which configurations belong to the Target."""
        if self.sector is None:
            return torch.ones(positions.shape[0], dtype=torch.bool, device=positions.device)
        return self.sector(positions.detach())

    def reduced_energy(self, state: State, context: Context | None = None) -> Float[Tensor, " batch"]:
        """Return u in float64, `metric_term` included; +inf outside the sector and off the constraints.

        `context["temperature"]` (K) overrides the Target's; as a tensor it can be differentiated.
        """
        return self.reduce(self.potential(state["positions"]), state["positions"], context)

    def reduce(
        self,
        energy: Float[Tensor, " batch"],
        positions: Float[Tensor, "batch n_atoms 3"],
        context: Context | None = None,
    ) -> Float64[Tensor, " batch"]:
        """Return u from the energy of the potential in kJ/mol; see `reduced_energy`."""
        u = energy.double() * self._beta(context)
        if self._metric is not None:
            u = u + self.metric_term(positions)
        return torch.where(self.in_support(positions), u, torch.inf)

    def energy_and_force(
        self, state: State, context: Context | None = None
    ) -> tuple[Float[Tensor, " batch"], dict[str, Tensor]]:
        """Return u and −∂u/∂positions (1/nm) from one evaluation, detached.

        On constraints the force is that of u as a function of all positions; its part along the surface counts.
        """
        positions = state["positions"].detach()
        energy, force = self.potential.energy_and_force(positions)
        with torch.no_grad():
            beta = self._beta(context)
        u, force = energy.double() * beta, force * beta
        if self._metric is not None:
            with torch.enable_grad():
                leaf = positions.requires_grad_()
                term = self.metric_term(leaf)
                (gradient,) = torch.autograd.grad(term.sum(), leaf)
            u, force = u + term.detach(), force - gradient
        return torch.where(self.in_support(positions), u, torch.inf), {"positions": force}


def _metric(constraints: Constraints, measure: str) -> Constraints | None:
    """The constraints between the masses that the measure sees; None where it adds nothing to u."""
    if measure == "stiff":
        return None
    return constraints if measure == "mass-metric" else constraints.with_masses(torch.ones_like(constraints.masses))


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
