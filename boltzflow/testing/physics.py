"""Checks of potentials: parity with OpenMM."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from boltzflow._typing import Float, Tensor
from boltzflow.testing._compare import fail

__all__ = ["assert_energy_matches_openmm"]


def assert_energy_matches_openmm(
    potential: Callable[[Tensor], Tensor],
    system: Any,
    positions: Float[Tensor, "batch n_atoms 3"],
    *,
    energy_tolerance: float = 1e-6,
    force_tolerance: float = 1e-5,
) -> None:
    """Check energies and forces of a potential against OpenMM's Reference platform, conformation by conformation.

    Args:
        potential: (batch, n_atoms, 3) nm → (batch,) kJ/mol, differentiable.
        system: The `openmm.System`.
        positions: In nm, float64, (batch, n_atoms, 3).
        energy_tolerance: On |ΔU| / max(1, |U|), U in kJ/mol.
        force_tolerance: On max_i |ΔF_i| / (1 + rms |F|), in kJ/mol/nm.

    Raises:
        AssertionError: If an energy or a force is off, or is finite in one code and not in the other.
    """
    import openmm
    from openmm import unit

    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    x = positions.detach().clone().requires_grad_()
    energy = potential(x)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    for row in range(len(positions)):
        context.setPositions(positions[row].detach().cpu().numpy())
        reference = context.getState(getEnergy=True, getForces=True)
        u = reference.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        f = np.asarray(reference.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer))
        found = energy[row].item()
        if np.isfinite(u) != np.isfinite(found):
            fail(f"energy of conformation {row} is {found} kJ/mol, OpenMM gives {u}.")
        if not np.isfinite(u):
            continue
        if not abs(found - u) / max(1.0, abs(u)) < energy_tolerance:
            fail(
                f"energy of conformation {row} is {found:.10g} kJ/mol, OpenMM gives {u:.10g}: relative difference "
                f"{abs(found - u) / max(1.0, abs(u)):.2g} (tolerance {energy_tolerance:g})."
            )
        off = np.linalg.norm(-gradient[row].cpu().numpy() - f, axis=1)
        scaled = off / (1 + np.sqrt((f**2).sum(1).mean()))
        if not scaled.max() < force_tolerance:
            atom = int(np.nan_to_num(scaled, nan=np.inf).argmax())
            fail(
                f"force on atom {atom} of conformation {row} is {(-gradient[row, atom]).tolist()} kJ/mol/nm, OpenMM "
                f"gives {f[atom].tolist()}: scaled difference {scaled[atom]:.2g} (tolerance {force_tolerance:g})."
            )
