"""GraphField: what vector fields on all pairs of atoms share, so that one set of weights serves many molecules."""

import copy
import math
from collections.abc import Sequence

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.networks.atom_features import AtomFeatures
from boltzflow.networks.vector_field import VectorField

__all__ = ["GraphField"]


class GraphField(VectorField):
    """A field whose weights do not depend on how many atoms there are: features of atoms come in as embeddings.

    A subclass implements `forward` from `own_features` and the pairs of atoms, and says with what it goes.

    Args:
        features: Of the atoms, or a type for every particle, [0] * N for identical ones.
        n_dimensions: D.
        unit: Length in which the network sees positions, and velocities come out; about the width of the base.
        hidden: Width of the features of atoms.
        n_harmonics: Harmonics of t that are seen besides t.

    Attributes:
        features: Of the atoms.
        edges: Source and target of every ordered pair of atoms, (2, N(N − 1)), in order of the target.
        pairs: Categories of these pairs.

    Raises:
        ValueError: If the numbers make no field.
    """

    def __init__(
        self,
        features: AtomFeatures | Sequence[int],
        n_dimensions: int,
        *,
        unit: float = 1.0,
        hidden: int = 64,
        n_harmonics: int = 4,
    ) -> None:
        super().__init__()
        features = features if isinstance(features, AtomFeatures) else AtomFeatures.of_particles(features)
        if len(features) < 2 or hidden < 1 or unit <= 0:
            raise ValueError(
                f"{type(self).__name__}: expected at least 2 atoms, a width of at least 1 and a positive unit, "
                f"got {len(features)}, {hidden} and {unit}."
            )
        self.n_dimensions, self.unit, self.hidden = n_dimensions, float(unit), hidden
        self.kinds = torch.nn.ModuleList(torch.nn.Embedding(size, hidden) for size in features.sizes)
        self.times = torch.nn.Linear(1 + 2 * n_harmonics, hidden)
        self.register_buffer("_harmonics", math.pi * torch.arange(1, n_harmonics + 1.0), persistent=False)
        self._place(features)

    def for_molecule(self, features: AtomFeatures | Sequence[int]) -> "GraphField":
        """The same field of another molecule: a view that shares the parameters of this one.

        Args:
            features: Of the other's atoms, in the categories that this field was made with.

        Raises:
            ValueError: If the categories are others.

        Example:
            >>> from boltzflow.networks import EGNNField
            >>> small = EGNNField([0, 0, 1], 3)
            >>> large = small.for_molecule([0, 1, 0, 1, 1])
            >>> large.times.weight is small.times.weight
            True
        """
        features = features if isinstance(features, AtomFeatures) else AtomFeatures.of_particles(features)
        mine = self.features
        # fewer types of particles than embeddings are no contradiction
        fits = len(mine.sizes) == len(features.sizes) and mine.n_pairs == features.n_pairs
        if not fits or any(a < b for a, b in zip(mine.sizes, features.sizes, strict=True)):
            raise ValueError(
                f"{type(self).__name__}: expected atoms with categories {mine.sizes} and pairs of {mine.n_pairs} "
                f"kinds, got {features.sizes} and {features.n_pairs}; both must be features of one sort."
            )
        other = copy.copy(self)
        # own buffers, common parameters and networks
        other._buffers = dict(self._buffers)
        other._place(features)
        return other

    def _place(self, features: AtomFeatures) -> None:
        """Take the atoms of a molecule: all that depends on it is set here."""
        n, device = len(features), self._harmonics.device
        self.features, self.types, self.n_particles = features, features.types, n
        # edges lie in order of their target, source after source
        target = torch.arange(n).repeat_interleave(n - 1)
        source = torch.arange(n).expand(n, n)[~torch.eye(n, dtype=torch.bool)]
        self.register_buffer("edges", torch.stack([source, target]).to(device), persistent=False)
        self.register_buffer("_categories", features.categories.to(device), persistent=False)
        self.register_buffer("pairs", features.pairs[target, source].to(device), persistent=False)

    def own_features(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Tensor
    ) -> Float[Tensor, "batch particles hidden"]:
        """Features of every atom before it knows of the others: its categories and the time."""
        t = torch.as_tensor(t, dtype=positions.dtype, device=positions.device).reshape(-1, 1)
        phases = self._harmonics * t
        seen = self.times(torch.cat([t, torch.cos(phases), torch.sin(phases)], 1))
        own = sum(table(column) for table, column in zip(self.kinds, self._categories.t(), strict=True))
        return (own + seen[:, None]).expand(len(positions), -1, -1)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"particles={self.n_particles}, dimensions={self.n_dimensions}, unit={self.unit:.6g}"
