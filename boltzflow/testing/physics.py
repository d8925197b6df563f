"""Checks of potentials: parity with OpenMM, and symmetry."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from boltzflow._typing import Float, Tensor
from boltzflow.testing._compare import TOLERANCE, fail

__all__ = ["assert_energy_matches_openmm", "assert_equivariant"]


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


def assert_equivariant(
    function: Callable[[Tensor], Tensor],
    positions: Float[Tensor, "batch n_atoms n_dimensions"],
    *,
    rng: torch.Generator,
    output: Literal["invariant", "equivariant"] = "invariant",
    translation: bool = True,
    reflection: bool = False,
    permuted: Sequence[Sequence[int]] | None = None,
    tolerance: float | None = None,
) -> None:
    """Check that a function of positions respects rotations, translations and permutations of identical particles.

    Args:
        function: Maps positions to something per conformation ("invariant"), or to one vector per atom ("equivariant":
            it rotates and permutes with the atoms, and does not change under translations).
        positions: Shape (batch, n_atoms, n_dimensions).
        rng: Random stream of the transformations.
        output: How the result transforms.
        translation: Whether to test translations.
        reflection: Whether mirror images count as rotations.
        permuted: Groups of interchangeable atoms; None tests no permutation.
        tolerance: On |Δ| / (1 + max |result|); None = 1e-8 in float64, 1e-3 in float32.

    Raises:
        AssertionError: If the result transforms otherwise.
    """
    n_atoms, dim = positions.shape[1:]
    tolerance = TOLERANCE[positions.dtype] if tolerance is None else tolerance

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=positions.dtype, device=rng.device, generator=rng).to(positions.device)

    rotation = torch.linalg.qr(normal(dim, dim)).Q
    if (torch.linalg.det(rotation) < 0) != reflection:
        rotation[:, 0] = -rotation[:, 0]
    before = function(positions)
    expected = before @ rotation.T if output == "equivariant" else before
    what = "rotation with reflection" if reflection else "rotation"
    _compare(what, function(positions @ rotation.T), expected, tolerance)
    if translation:
        _compare("translation", function(positions + normal(len(positions), 1, dim)), before, tolerance)
    for group in permuted or ():
        order = torch.arange(n_atoms)
        members = torch.tensor(list(group))
        # a cycle moves every member, whatever the stream
        order[members] = members.roll(1)
        expected = before[:, order] if output == "equivariant" else before
        _compare(f"permutation of atoms {list(group)}", function(positions[:, order]), expected, tolerance)


def _compare(what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    off = ((found - expected).abs().max() / (1 + expected.abs().max())).item()
    if not off <= tolerance:
        fail(f"a {what} changes the result by {off:.3g} of its size (tolerance {tolerance:g}).")
