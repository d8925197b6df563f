"""Distances that are held fixed: how far positions are off them, and the metric that they leave in the measure."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.coordinates.graph import connected_components, neighbour_lists

__all__ = ["Constraints"]

# Smallest eigenvalue of the metric, in units of its diagonal, of constraints that count as independent. Three atoms
# that are straight but for the rounding of a PDB file have 1e-6, the tetrahedral angles of a CH3 group 0.4.
_INDEPENDENT = 1e-5
_CONVERGED = 1e-12
_MAX_ITERATIONS = 100


class Constraints(nn.Module):
    """Fixed distances |x_i - x_j| = d_k between pairs of atoms.

    Their metric is Z = S M^-1 S^T with S = dsigma/dx and sigma_k = |x_i - x_j| - d_k, a block for every set of
    constraints that share atoms: 200 rigid waters have 200 determinants of 3 x 3 and none of 600 x 600.

    Positions are not wrapped: in a periodic box the two atoms of a pair lie in the same image.

    Args:
        pairs: (n_constraints, 2) different atoms.
        distances: (n_constraints,) nm.
        masses: (n_atoms,) amu; those of constrained atoms are positive.

    Raises:
        ValueError: if shapes disagree, a pair is repeated, a distance or mass is not positive, or a group of atoms has
            more constraints than degrees of freedom.

    Example:
        >>> import torch
        >>> from boltzflow.coordinates import Constraints
        >>> bonds = Constraints(torch.tensor([[0, 1], [1, 2]]), torch.tensor([0.1, 0.1]), masses=torch.ones(3))
        >>> right_angle = torch.tensor([[[0.1, 0, 0], [0, 0, 0], [0, 0.1, 0]]])
        >>> round(float(bonds.log_det_metric(right_angle).exp()), 6)
        4.0

    References:
        Fixman, PNAS 71, 3050 (1974), for the metric; Ryckaert, Ciccotti and Berendsen, J. Comput. Phys. 23, 327 (1977),
        for `project`.
    """

    def __init__(
        self,
        pairs: Int[Tensor, "n_constraints 2"],
        distances: Float[Tensor, " n_constraints"],
        *,
        masses: Float[Tensor, " n_atoms"],
    ) -> None:
        super().__init__()
        _check(pairs, distances, masses)
        self.n_atoms = len(masses)
        self.register_buffer("pairs", pairs.clone(), persistent=False)
        self.register_buffer("distances", distances.double().clone(), persistent=False)
        self.register_buffer("masses", masses.double().clone(), persistent=False)
        ends = [(i, j) for i, j in pairs.tolist()]
        components = connected_components(neighbour_lists(self.n_atoms, ends))
        number = {atom: n for n, atoms in enumerate(components) for atom in atoms}
        blocks: list[list[int]] = [[] for _ in components]
        for k, (i, _) in enumerate(ends):
            blocks[number[i]].append(k)
        for atoms, rows in zip(components, blocks, strict=True):
            if len(rows) > max(3 * len(atoms) - 6, 1 if len(atoms) == 2 else 0):
                raise ValueError(
                    f"constraints: {len(rows)} distances between the {len(atoms)} atoms {atoms[:20]} cannot be "
                    "independent; leave out the redundant ones"
                )
        self._sizes = sorted({len(rows) for rows in blocks if rows})
        for size in self._sizes:
            rows = torch.tensor([rows for rows in blocks if len(rows) == size])
            self.register_buffer(f"_rows_{size}", rows.to(pairs.device), persistent=False)
            self.register_buffer(f"_coupling_{size}", self._coupling(rows.to(pairs.device)), persistent=False)

    def __len__(self) -> int:
        """Number of constraints."""
        return len(self.pairs)

    def extra_repr(self) -> str:
        """Return sizes for ``repr``."""
        return f"n_constraints={len(self)}, n_atoms={self.n_atoms}, block_sizes={self._sizes}"

    def _coupling(self, rows: Tensor) -> Tensor:
        """Return (n_blocks, k, k) the sum of s_ka s_la / m_a over atoms, where s is +1 at one end and -1 at the other.

        Then Z_kl is this times the cosine between the constraints k and l.
        """
        ends = self.pairs[rows]
        inverse, sign = 1 / self.masses[ends], torch.tensor([1.0, -1.0], dtype=torch.float64, device=rows.device)
        same = ends[:, :, None, :, None] == ends[:, None, :, None, :]
        weight = sign[:, None] * sign * inverse[:, :, None, :, None]
        return (same * weight).sum((-2, -1))

    def _blocks(self, positions: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows, unit vectors (batch, n_blocks, k, 3) and Z (batch, n_blocks, k, k) of the blocks of each size."""
        for size in self._sizes:
            rows, coupling = getattr(self, f"_rows_{size}"), getattr(self, f"_coupling_{size}")
            i, j = self.pairs[rows].unbind(-1)
            arm = (positions[:, i] - positions[:, j]).double()
            unit = arm / arm.norm(dim=-1, keepdim=True)
            yield rows, unit, (unit @ unit.transpose(-1, -2)) * coupling.double()

    def violation(self, positions: Float[Tensor, "batch n_atoms 3"]) -> Float64[Tensor, " batch"]:
        """Return the largest |(|x_i - x_j| - d_k)| / d_k of each conformation.

        Args:
            positions: (batch, n_atoms, 3) nm.
        """
        i, j = self.pairs.unbind(1)
        found = (positions[:, i] - positions[:, j]).double().norm(dim=-1)
        return ((found - self.distances).abs() / self.distances).amax(1)

    def log_det_metric(self, positions: Float[Tensor, "batch n_atoms 3"]) -> Float64[Tensor, " batch"]:
        """Return ln det Z of each conformation, Z in 1/amu; differentiable.

        Args:
            positions: (batch, n_atoms, 3) nm.

        Returns:
            (batch,); -inf where constraints are not independent, NaN where positions are.
        """
        total = self.log_diagonal.double().expand(len(positions))
        for _, _, metric in self._blocks(positions):
            if metric.shape[-1] > 1:
                total = total + _log_det_of_cosines(metric).sum(1)
        return total

    @property
    def log_diagonal(self) -> Float64[Tensor, ""]:
        """Sum of ln(1/m_i + 1/m_j): ln det Z of constraints that share no atoms, a constant."""
        return (1 / self.masses[self.pairs]).sum(1).log().sum()

    def with_masses(self, masses: Float[Tensor, " n_atoms"]) -> "Constraints":
        """Return the same constraints between atoms of other masses (n_atoms,)."""
        return Constraints(self.pairs, self.distances, masses=masses)

    def require_independent(self, positions: Float[Tensor, "n_atoms 3"], names: Sequence[str] | None = None) -> None:
        """Raise where constraints depend on each other at a structure, as the third distance on a straight line does.

        Args:
            positions: (n_atoms, 3) nm.
            names: of the atoms, for the error; by default their indices.

        Raises:
            ValueError: if there are such; the message lists their atoms.
        """
        names = [str(a) for a in range(self.n_atoms)] if names is None else names
        for rows, _, metric in self._blocks(positions[None]):
            smallest = torch.linalg.eigvalsh(_cosines(metric[0]))[:, 0]
            bad = torch.nonzero(~(smallest > _INDEPENDENT)).flatten()
            if len(bad):
                pairs = ", ".join(f"{names[i]}-{names[j]}" for i, j in self.pairs[rows[bad[0]]].tolist()[:20])
                raise ValueError(
                    f"constraints: {len(bad)} groups of {rows.shape[1]} are not independent, the first with the "
                    f"distances {pairs}. Leave out the redundant ones; hold straight groups by virtual sites"
                )

    @torch.no_grad()
    def project(self, positions: Float[Tensor, "batch n_atoms 3"]) -> Float64[Tensor, "batch n_atoms 3"]:
        """Move atoms onto the constraints, along mass-weighted gradients, by Newton's iteration.

        Args:
            positions: (batch, n_atoms, 3) nm, near the constraints, such as rounded ones of a file.

        Returns:
            (batch, n_atoms, 3) float64, with `violation` below 1e-12.

        Raises:
            ValueError: if it does not converge.
        """
        x = positions.double().clone()
        for _ in range(_MAX_ITERATIONS):
            if bool((self.violation(x) < _CONVERGED).all()):
                return x
            step = torch.zeros_like(x)
            for rows, unit, metric in self._blocks(x):
                i, j = self.pairs[rows].unbind(-1)
                off = (x[:, i] - x[:, j]).norm(dim=-1) - self.distances[rows]
                push = torch.linalg.solve(metric, off)[..., None] * unit
                for atoms, sign in ((i, -1.0), (j, 1.0)):
                    moved = sign * push / self.masses[atoms][..., None]
                    step.index_add_(1, atoms.flatten(), moved.flatten(1, 2))
            x += step
        raise ValueError(
            f"positions: no point on the constraints was found near them in {_MAX_ITERATIONS} iterations; the largest "
            f"relative violation is {float(self.violation(positions).max()):.3g}. Minimise the structure first"
        )


def _cosines(metric: Tensor) -> Tensor:
    """Return Z with its rows and columns scaled to a unit diagonal."""
    scale = metric.diagonal(dim1=-2, dim2=-1).rsqrt()
    return metric * scale[..., :, None] * scale[..., None, :]


def _log_det_of_cosines(metric: Tensor) -> Tensor:
    return torch.linalg.slogdet(_cosines(metric)).logabsdet


def _check(pairs: Tensor, distances: Tensor, masses: Tensor) -> None:
    if pairs.ndim != 2 or pairs.shape[1] != 2 or distances.shape != pairs.shape[:1] or not len(pairs):
        raise ValueError(
            f"constraints: expected pairs (n, 2) and distances (n,) with n > 0, got {tuple(pairs.shape)} and "
            f"{tuple(distances.shape)}; without constraints there is nothing to make"
        )
    ordered = pairs.sort(1).values
    if len(ordered.unique(dim=0)) < len(pairs):
        raise ValueError("constraints: a pair of atoms is constrained twice; keep one of the two")
    neighbour_lists(len(masses), [(i, j) for i, j in pairs.tolist()])
    if not bool((distances > 0).all() and distances.isfinite().all()):
        raise ValueError(f"constraints: expected positive distances in nm, got {distances.tolist()[:20]}")
    light = pairs.unique()[masses[pairs.unique()] <= 0].tolist()
    if light:
        raise ValueError(
            f"constraints: the constrained atoms {light[:20]} have no mass; frozen atoms cannot be constrained"
        )
