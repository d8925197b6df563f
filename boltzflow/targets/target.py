"""Target: an unnormalised density exp(−u) over named fields; and Base, a Target that can sample."""

import abc
from collections.abc import Mapping

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State

__all__ = ["Base", "Target"]


class Target(torch.nn.Module, abc.ABC):
    """An unnormalised density exp(−u), u in kT.

    A subclass sets `fields`, implements `reduced_energy`, and where they are known gives `log_z` and `sample`.

    Attributes:
        name: Shown in ledgers, provenance and errors.
        fields: Name to `Space` of the fields it reads; a State may hold others, which it ignores.
        log_z: log ∫ exp(−u) over its measure; None = unknown.
        measure: Reference measure of the density: "lebesgue", "mean-free", "torus", "cartesian modulo rigid motions",
            "cartesian modulo translations", "haar", "counting" or a product of those.
    """

    name: str = "target"
    measure: str = "lebesgue"

    def __init__(self, fields: Mapping[str, Space], *, name: str | None = None, log_z: float | None = None) -> None:
        super().__init__()
        self.fields = dict(fields)
        self.log_z = log_z
        self.name = name or type(self).__name__

    @property
    def dimension(self) -> int:
        """Degrees of freedom d over all fields."""
        return sum(space.dimension for space in self.fields.values())

    @abc.abstractmethod
    def reduced_energy(self, state: State, context: Context | None = None) -> Float[Tensor, " batch"]:
        """Reduced energy u of every row in kT, differentiable with respect to the fields.

        Args:
            state: Holds at least `self.fields`.
            context: Temperature, λ, ... for Targets that read them.

        Returns:
            u, shape (batch,); +inf outside the support.
        """

    def energy_and_force(
        self, state: State, context: Context | None = None
    ) -> tuple[Float[Tensor, " batch"], dict[str, Tensor]]:
        """Energy and force −∂u/∂field of every row from one evaluation, both detached.

        Returns:
            u, shape (batch,), and a dict with one tensor per floating-point field, of the field's shape and dtype.
        """
        with torch.enable_grad():
            leaves = {n: state[n].detach().requires_grad_() for n in self.fields if state[n].is_floating_point()}
            u = self.reduced_energy(state.replace(**leaves), context)
            gradients = torch.autograd.grad(u.sum(), list(leaves.values()), allow_unused=True)
        force = {
            n: torch.zeros_like(x) if g is None else -g for (n, x), g in zip(leaves.items(), gradients, strict=True)
        }
        return u.detach(), force

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Exact samples, where the Target has a sampler.

        Raises:
            TypeError: If it has none.
        """
        raise TypeError(f"{self.name} has no exact sampler; sample it with a Generator or boltzflow.simulation.")

    def state(self, *values: Tensor, **named: Tensor) -> State:
        """Build a State of this Target's fields: a single tensor for a single field, or keywords by field name."""
        if values:
            if len(values) != len(self.fields):
                raise ValueError(
                    f"{self.name}.state: expected {len(self.fields)} tensors for {sorted(self.fields)}, "
                    f"got {len(values)}."
                )
            named = dict(zip(self.fields, values, strict=True))
        return State(named, self.fields)


class Base(Target):
    """A Target that can sample, from which a Generator starts."""

    @abc.abstractmethod
    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n exact samples."""

    def log_prob(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """Normalised log-density −u − log Z, float64.

        Raises:
            ValueError: If log Z is unknown.
        """
        if self.log_z is None:
            raise ValueError(f"{self.name}: log Z is unknown, so there is no normalised density; use reduced_energy.")
        return -self.reduced_energy(state, context).double() - self.log_z
