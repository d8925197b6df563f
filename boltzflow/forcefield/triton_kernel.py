"""The compiled kernel of force fields on a GPU: packs a force field for the Triton kernels, and launches them."""

import functools
import importlib.util
import logging
import math

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.forcefield.kernel import Kernel
from boltzflow.forcefield.potential import ForceField

__all__ = ["TritonKernel", "available"]

_log = logging.getLogger(__name__)

BLOCK = 64
"""Conformations of a program, in two warps: each lane holds one number of a block, so that no layout is converted."""

OPTIONS = {"BLOCK": BLOCK, "num_warps": BLOCK // 32, "num_stages": 1, "enable_fp_fusion": True}
"""What the kernels are compiled with."""

PROGRAMS = 4096
"""Programs that fill a GPU; below, the atoms of a conformation are shared between several."""

_NUMBERS = ("prefactor", "surface", "cutoff", "switching", "field", "shift", "born_cutoff", "born_shift")


@functools.lru_cache(maxsize=1)
def available() -> bool:
    """Return whether Triton is installed, as it is with torch for CUDA; without it, say once that it is missed."""
    if importlib.util.find_spec("triton") is not None:
        return True
    _log.warning("Triton is not installed: force fields run eagerly on the GPU, many times slower; pip install triton")
    return False


class TritonKernel(Kernel):
    """The terms of a force field that the Triton kernels evaluate, packed for them; the same terms as in `Kernel`.

    It runs on the device of the force field, on the current stream, and waits for nothing. Results do not depend on the
    size of the batch nor on the place in it.
    """

    def __init__(self, forcefield: ForceField) -> None:
        """Pack the terms.

        Args:
            forcefield: in float32 or float64 on a GPU; see `Kernel` for what is left in ``rest``.
        """
        super().__init__(forcefield)
        device = forcefield.device
        self.rest = None if self.rest is None else self.rest.to(device)
        self._tensors = {name: value.to(device) for name, value in self._tensors.items()}
        numbers = [self._scalars.get(name, 0.0) for name in _NUMBERS]
        self._tensors["numbers"] = torch.tensor(numbers, dtype=self.dtype, device=device)

    def __call__(
        self, positions: Float[Tensor, "batch n_atoms 3"], *, chunk_bytes: int = 2**30
    ) -> tuple[Float64[Tensor, "batch"], Float[Tensor, "batch n_atoms 3"]]:
        """Return energies (kJ/mol, float64) and forces (kJ/mol/nm).

        Args:
            positions: in nm.
            chunk_bytes: bound on the memory of intermediate results, at least those of one block of conformations.
        """
        x = positions.detach()
        energy = torch.empty(len(x), dtype=torch.float64, device=x.device)
        force = torch.empty(x.shape, dtype=self.dtype, device=x.device)
        # positions, forces, energies, Born radii and dE/dB of each atom; the energy
        one = 9 * self.n_atoms * force.element_size() + 8
        size = max(1, min(chunk_bytes // one, 2**30) // BLOCK) * BLOCK
        with torch.cuda.device_of(x):
            for start in range(0, len(x), size):
                part = slice(start, start + size)
                energy[part], force[part] = self._evaluate(x[part])
        return energy, force

    def _evaluate(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        batch, blocks = len(positions), math.ceil(len(positions) / BLOCK)
        x = torch.empty((3, self.n_atoms, blocks * BLOCK), dtype=self.dtype, device=positions.device)
        x[..., :batch] = positions.permute(2, 1, 0)
        x[..., batch:] = x[..., batch - 1 : batch]  # the last conformation fills its block
        f, energies = torch.zeros_like(x), torch.empty(x.shape[2], dtype=torch.float64, device=x.device)
        sizes = {"n": self.n_atoms, "stride": x.shape[2], **OPTIONS}
        rows = self._pairs(x, f, blocks, sizes)
        self._bonded(x, f, rows, energies, blocks, sizes)
        return energies[:batch], f[..., :batch].permute(2, 1, 0)

    def _pairs(self, x: Tensor, f: Tensor, blocks: int, sizes: dict[str, int | bool]) -> Tensor:
        """Write the forces between all pairs into ``f``; return the shares of the atoms in the energy."""
        from boltzflow.forcefield import triton_pairs  # which imports Triton

        given, has = self._tensors, self._scalars
        pairs, born = has["has_pairs"], has["has_born"]
        rows = x.new_empty((self.n_atoms if pairs or born else 0, x.shape[2]))
        radii, chain = x.new_empty((2, self.n_atoms if born else 0, x.shape[2]))
        group = math.ceil(self.n_atoms / min(self.n_atoms, max(1, PROGRAMS // blocks)))
        grid = (blocks * math.ceil(self.n_atoms / group),)
        shared = {"group": group, "HAS_SOFT": has["has_soft"], "HAS_CUTOFF": has["has_cutoff"], **sizes}
        model = {"HAS_NECK": has["has_neck"], "ENGULFED": has.get("engulfed", False)}
        solvent = (given["born"], given["neck"], given["soft"], given["numbers"])
        if born:
            triton_pairs.born_radii[grid](x, radii, chain, *solvent, **shared, **model)
        if pairs or born:
            tables = (given["pair"], given["born"], given["soft"], given["numbers"])
            kinds = {"HAS_PAIRS": pairs, "HAS_BORN": born}
            triton_pairs.pair_forces[grid](x, f, rows, radii, chain, *tables, **shared, **kinds)
        if born:
            triton_pairs.chain_forces[grid](x, f, chain, *solvent, **shared, **model)
        return rows

    def _bonded(
        self, x: Tensor, f: Tensor, rows: Tensor, energies: Tensor, blocks: int, sizes: dict[str, int | bool]
    ) -> None:
        """Add the forces of the bonded terms to ``f``, and write the energies, with those in ``rows``."""
        from boltzflow.forcefield import triton_bonded  # which imports Triton

        def launch(kernel: str, *first: Tensor, tensors: tuple[str, ...], counts: tuple[str, ...], **more: int) -> None:
            tables = (self._tensors[name] for name in tensors)
            numbers = {name: self._scalars[name] for name in counts}
            getattr(triton_bonded, kernel)[(blocks,)](*first, *tables, **numbers, **more, **sizes)

        launch(
            *("bond_and_angle_forces", x, f, rows, energies),
            tensors=("bond_atoms", "bond", "angle_atoms", "angle"),
            counts=("n_bonds", "n_angles"),
            n_rows=len(rows),
        )
        if self._scalars["n_torsions"]:
            names = ("torsion_atoms", "torsion")
            launch("torsion_forces", x, f, energies, tensors=names, counts=("n_torsions", "n_harmonics"))
        if self._scalars["n_maps"]:
            launch("map_forces", x, f, energies, tensors=("map_atoms", "map"), counts=("n_maps",))
