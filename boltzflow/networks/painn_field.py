"""PaiNNField: messages of scalars and vectors between all atoms; velocities are a mixture of the vectors."""

from collections.abc import Sequence

import torch
from torch_geometric.nn import MessagePassing

from boltzflow._typing import Float, Tensor
from boltzflow.networks.atom_features import AtomFeatures
from boltzflow.networks.graph_field import GraphField
from boltzflow.networks.scalar_vector import RadialFilters, ScalarVectorReadout, ScalarVectorUpdate, separations

__all__ = ["PaiNNField"]


class PaiNNField(GraphField):
    """v_i from scalars s_i and vectors v_i of every atom, after L rounds of messages between all pairs.

    A message is φ(s_j) times filters W of the distance and of the category of the pair: scalars, vectors of the
    sender, and directions. Directions are r/√(1 + r²), smooth where atoms meet; filters are sums of Gaussians that end
    at the reach. It goes with translations, rotations, reflections and permutations of atoms of one type, and sees
    angles, which an EGNN has to infer. Divergence and Jacobian are those of autograd, exact at one backward pass per
    coordinate; `HollowField` is the same network in a form whose divergence is cheap.

    Args:
        features: Of the atoms, or a type for every particle, [0] * N for identical ones.
        n_dimensions: D.
        unit: Length in which the network sees positions; about the width of the base.
        n_layers: L.
        hidden: Number of scalars, and of vectors, per atom.
        reach: Centre of the last Gaussian of the distance, in units.
        n_basis: Gaussians.
        n_harmonics: Harmonics of t that are seen besides t.

    References:
        Schütt, Unke, Gastegger (2021), eqs. 7-10, https://arxiv.org/abs/2102.03150

    Example:
        >>> field = PaiNNField([0] * 4, 3, n_layers=2, hidden=8).double()
        >>> field(torch.rand(5, 4, 3, dtype=torch.float64), 0.5).shape
        torch.Size([5, 4, 3])
    """

    rotates = True
    reflects = True

    def __init__(
        self,
        features: AtomFeatures | Sequence[int],
        n_dimensions: int,
        *,
        unit: float = 1.0,
        n_layers: int = 3,
        hidden: int = 64,
        reach: float = 5.0,
        n_basis: int = 32,
        n_harmonics: int = 4,
    ) -> None:
        super().__init__(features, n_dimensions, unit=unit, hidden=hidden, n_harmonics=n_harmonics)
        sizes = {"n_pairs": self.features.n_pairs, "reach": reach, "n_basis": n_basis}
        self.messages = torch.nn.ModuleList(_Messages(hidden) for _ in range(n_layers))
        self.filters = torch.nn.ModuleList(RadialFilters(3 * hidden, **sizes) for _ in range(n_layers))
        self.updates = torch.nn.ModuleList(ScalarVectorUpdate(hidden) for _ in range(n_layers))
        self.readout = ScalarVectorReadout(hidden)

    def forward(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch particles dim"]:
        """The velocities, (batch, N, D)."""
        x, s = positions / self.unit, self.own_features(positions, t)
        source, target = self.edges
        distances, directions = separations(x[:, target] - x[:, source])
        v = s.new_zeros(*x.shape, self.hidden)
        for messages, filters, update in zip(self.messages, self.filters, self.updates, strict=True):
            s, v = messages(s, v, filters(distances, self.pairs), directions, self.edges)
            s, v = update(s, v)
        v = self.readout(s, v)
        return self.unit * (v - v.mean(1, keepdim=True))


class _Messages(MessagePassing):
    """One round; the graph is the same in all rows of a batch."""

    def __init__(self, hidden: int) -> None:
        super().__init__(aggr="sum", node_dim=1)
        self.network = torch.nn.Sequential(
            torch.nn.Linear(hidden, hidden), torch.nn.SiLU(), torch.nn.Linear(hidden, 3 * hidden)
        )

    def forward(
        self, s: Tensor, v: Tensor, filters: Tensor, directions: Tensor, edges: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New scalars and vectors of all atoms."""
        sent = self.propagate(edges, sent=self.network(s), v=v, filters=filters, directions=directions)
        return s + sent[:, :, 0], v + sent[:, :, 1:]

    def message(self, sent_j: Tensor, v_j: Tensor, filters: Tensor, directions: Tensor) -> Tensor:
        """What every edge brings, (batch, edges, 1 + D, hidden): scalars first."""
        a, b, c = (sent_j * filters)[:, :, None].chunk(3, -1)
        return torch.cat([a, v_j * b + directions[..., None] * c], 2)
