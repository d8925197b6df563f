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
        from boltzflow.forcefield import triton_bonded, triton_pairs  # which import Triton

        batch, n, given = len(positions), self.n_atoms, self._tensors
        blocks = math.ceil(batch / BLOCK)
        stride = blocks * BLOCK
        x = torch.empty((3, n, stride), dtype=self.dtype, device=positions.device)
        x[..., :batch] = positions.permute(2, 1, 0)
        x[..., batch:] = x[..., batch - 1 : batch]  # the last conformation fills its block
        pairs, born = self._scalars["has_pairs"], self._scalars["has_born"]
        any_pairs = pairs or born
        f = torch.empty_like(x) if any_pairs else torch.zeros_like(x)
        rows = x.new_empty((n if any_pairs else 0, stride))
        radii, chain = x.new_empty((2, n if born else 0, stride))
        energy = torch.empty(stride, dtype=torch.float64, device=x.device)
        group = math.ceil(n / min(n, max(1, PROGRAMS // blocks)))
        sizes = {"n": n, "stride": stride, "group": group}
        options = {"BLOCK": BLOCK, "num_warps": BLOCK // 32, "num_stages": 1}
        shared = {"HAS_SOFT": self._scalars["has_soft"], "HAS_CUTOFF": self._scalars["has_cutoff"], **sizes, **options}
        model = {"HAS_NECK": self._scalars["has_neck"], "ENGULFED": self._scalars.get("engulfed", False)}
        grid = (blocks * math.ceil(n / group),)
        tables = (given["born"], given["neck"], given["soft"], given["numbers"])
        if born:
            triton_pairs.born_radii[grid](x, radii, chain, *tables, **shared, **model)
        if any_pairs:
            flags = {"HAS_PAIRS": pairs, "HAS_BORN": born}
            given_pairs = (given["pair"], given["born"], given["soft"], given["numbers"])
            triton_pairs.pair_forces[grid](x, f, rows, radii, chain, *given_pairs, **shared, **flags)
        if born:
            triton_pairs.chain_forces[grid](x, f, chain, *tables, **shared, **model)
        bonded = {"n": n, "stride": stride, **options}
        names = ("bond_atoms", "bond", "angle_atoms", "angle")
        counts = {name: self._scalars[name] for name in ("n_bonds", "n_angles")}
        triton_bonded.bond_and_angle_forces[(blocks,)](
            x, f, rows, energy, *(given[name] for name in names), n_rows=len(rows), **counts, **bonded
        )
        if n_torsions := self._scalars["n_torsions"]:
            counts = {"n_torsions": n_torsions, "n_harmonics": self._scalars["n_harmonics"]}
            tables = (given["torsion_atoms"], given["torsion"])
            triton_bonded.torsion_forces[(blocks,)](x, f, energy, *tables, **counts, **bonded)
        if n_maps := self._scalars["n_maps"]:
            tables = (given["map_atoms"], given["map"])
            triton_bonded.map_forces[(blocks,)](x, f, energy, *tables, n_maps=n_maps, **bonded)
        return energy[:batch], f[..., :batch].permute(2, 1, 0)
