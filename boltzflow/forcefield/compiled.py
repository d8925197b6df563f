"""The fast twin of a force field: energy and force in one compiled pass, on the CPU or a GPU."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.forcefield.cached_force import energy_with_force
from boltzflow.forcefield.constraints import ConstraintParameters
from boltzflow.forcefield.kernel import DTYPES, Kernel, library
from boltzflow.forcefield.potential import AngleParameters, BondParameters, ForceField, TorsionParameters
from boltzflow.forcefield.term import tracked
from boltzflow.forcefield.triton_kernel import TritonKernel, available
from boltzflow.forcefield.virtual_sites import VirtualSites

__all__ = ["CompiledForceField"]


class CompiledForceField(nn.Module):
    """A `ForceField` with the same face, evaluated by a compiled kernel where there is one.

    The kernel covers the terms of this package in float32 and float64: in C++ on the CPU, on `torch.get_num_threads`
    threads, and in Triton on a CUDA device, on its current stream and without waiting for it. Other terms are added by
    autograd. On another device, without a C++ compiler or Triton, in a periodic box, or with virtual sites everything
    runs eagerly; the numbers are the same. `forward` evaluates energy and force once and uses the force in the backward
    pass; a second derivative goes through the eager twin.

    Example:
        >>> from boltzflow import load_system
        >>> from boltzflow.forcefield import from_openmm
        >>> system = load_system("alanine_dipeptide")
        >>> fast = from_openmm(system.openmm_system, dtype=torch.float32).compiled()
        >>> energy, force = fast.energy_and_force(system.positions[None].float())
        >>> print(f"{energy.item():.1f} kJ/mol", tuple(force.shape))
        -173.2 kJ/mol (1, 22, 3)
    """

    def __init__(self, eager: ForceField) -> None:
        """Keep the eager twin, and compile the kernel if this machine has not done so yet."""
        super().__init__()
        self.eager = eager
        self._kernel: Kernel | None = None
        self._tracked = tracked(*eager.buffers())
        if eager.device.type == "cpu":
            library()

    @property
    def backend(self) -> Literal["compiled", "triton", "eager"]:
        """Which of them evaluates positions on the device of the parameters."""
        if self.eager.periodic or self.eager.sites is not None or self.eager.dtype not in DTYPES:
            return "eager"
        if self.eager.device.type == "cuda" and available():
            return "triton"
        return "compiled" if self.eager.device.type == "cpu" and library() is not None else "eager"

    @property
    def methods(self) -> tuple[str, ...]:
        """See `ForceField.methods`."""
        return self.eager.methods

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.eager.n_atoms

    @property
    def constraints(self) -> ConstraintParameters | None:
        """See `ForceField`."""
        return self.eager.constraints

    @property
    def n_constraints(self) -> int:
        """Number of constrained distances."""
        return self.eager.n_constraints

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        return self.eager.dtype

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.eager.device

    @property
    def bonds(self) -> BondParameters:
        """See `ForceField.bonds`."""
        return self.eager.bonds

    @property
    def angles(self) -> AngleParameters:
        """See `ForceField.angles`."""
        return self.eager.angles

    @property
    def torsions(self) -> TorsionParameters:
        """See `ForceField.torsions`."""
        return self.eager.torsions

    @property
    def box(self) -> Float[Tensor, "3 3"] | None:
        """See `ForceField.box`."""
        return self.eager.box

    @property
    def periodic(self) -> bool:
        """See `ForceField.periodic`."""
        return self.eager.periodic

    @property
    def sites(self) -> VirtualSites | None:
        """See `ForceField`."""
        return self.eager.sites

    def parameter_tensors(self) -> dict[str, Tensor]:
        """See `ForceField.parameter_tensors`."""
        return self.eager.parameter_tensors()

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> "CompiledForceField":
        """See `ForceField.with_parameters`."""
        return CompiledForceField(self.eager.with_parameters(parameters))

    def forward(
        self,
        positions: Float[Tensor, "batch n_atoms 3"],
        box: Float[Tensor, "*batch 3 3"] | None = None,
        *,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> Float64[Tensor, "*n_states batch"]:
        """Return energies in kJ/mol at positions in nm; see `ForceField.forward`.

        Where a gradient with respect to a parameter is asked for, the eager twin evaluates.
        """
        followed = self._tracked or tracked(*(parameters or {}).values())
        if box is not None or (followed and torch.is_grad_enabled()):
            return self.eager(positions, box, parameters=parameters)
        if not parameters:
            return energy_with_force(self, positions)
        states, several = self.eager._states(parameters)
        energies = torch.stack([CompiledForceField(state)(positions) for state in states])
        return energies if several else energies[0]

    def differentiable(self, positions: Float[Tensor, "batch n_atoms 3"]) -> Float64[Tensor, "batch"]:
        """Return the energies of the eager twin, differentiable to any order."""
        return self.eager(positions)

    def energy_and_force(
        self, positions: Float[Tensor, "batch n_atoms 3"], box: Float[Tensor, "*batch 3 3"] | None = None
    ) -> tuple[Float64[Tensor, "batch"], Float[Tensor, "batch n_atoms 3"]]:
        """Return energies and forces; see `ForceField.energy_and_force`."""
        self.eager.check(positions)
        if positions.device != self.device:
            raise ValueError(
                f"positions are on {positions.device}, the force field on {self.device}; move either with .to(device)"
            )
        backend = self.backend
        if backend == "eager" or box is not None:
            return self.eager.energy_and_force(positions, box)
        if self._kernel is None:
            self._kernel = (TritonKernel if backend == "triton" else Kernel)(self.eager)
        bound = {"chunk_bytes": self.eager.chunk_bytes} if backend == "triton" else {}
        energy, force = self._kernel(positions, **bound)
        if self._kernel.rest is not None:
            more, push = self._kernel.rest.energy_and_force(positions)
            energy, force = energy + more, force + push
        return energy, force.to(positions.dtype)

    def _apply(self, *args: Any, **kwargs: Any) -> "CompiledForceField":
        self._kernel = None  # packed again from the parameters in their new dtype
        return super()._apply(*args, **kwargs)

    def extra_repr(self) -> str:
        """Name the back-end."""
        return f"backend={self.backend}"
