"""EGNNField: an equivariant graph network whose layers move the atoms; velocities are how far they went."""

from collections.abc import Sequence

import torch
from torch_geometric.nn import MessagePassing

from boltzflow._typing import Float, Tensor
from boltzflow.networks.atom_features import AtomFeatures
from boltzflow.networks.graph_field import GraphField

__all__ = ["EGNNField"]


class EGNNField(GraphField):
    """v = x_L − x_0 minus its mean, where each of L layers moves all atoms along the lines between them.

    With r = x_i − x_j at that layer, a layer is m_ij = φ_e(h_i, h_j, r², a_ij) σ(φ_a m_ij); x_i ← x_i + (range/L) Σ_j
    r/(|r| + 1) tanh φ_x(m_ij); h_i ← h_i + φ_h(h_i, Σ_j m_ij). a_ij are the squared distance at the start and the
    category of the pair, h starts from the categories of the atom and the time. It goes with translations,
    rotations, reflections and permutations of atoms of one type.

    A message sees both ends, so that no part of the field can be given all atoms but one: divergence and Jacobian are
    those of autograd, exact at one backward pass per coordinate. `HollowField` has a cheap divergence.

    Args:
        features: Of the atoms, or a type for every particle, [0] * N for identical ones.
        n_dimensions: D.
        unit: Length in which the network sees positions; about the width of the base.
        n_layers: L.
        hidden: Width of the networks.
        range: Largest way, in units, along one line in all layers together.
        n_harmonics: Harmonics of t that are seen besides t.

    References:
        Satorras, Hoogeboom, Welling (2021), eqs. 3-6, https://arxiv.org/abs/2102.09844; as a continuous flow: Satorras
        et al. (2021), https://arxiv.org/abs/2105.09016; Klein, Krämer, Noé (2023), https://arxiv.org/abs/2306.15030

    Example:
        >>> field = EGNNField([0] * 4, 3, n_layers=2, hidden=8).double()
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
        n_layers: int = 5,
        hidden: int = 64,
        range: float = 15.0,
        n_harmonics: int = 4,
    ) -> None:
        super().__init__(features, n_dimensions, unit=unit, hidden=hidden, n_harmonics=n_harmonics)
        n_pairs = self.features.n_pairs
        # one category of pairs says nothing
        self._n_pairs = n_pairs if n_pairs > 1 else 0
        sizes = {"n_known": 1 + self._n_pairs, "step": range / n_layers}
        # features after the last layer would be of no use
        lasts = [False] * (n_layers - 1) + [True]
        self.layers = torch.nn.ModuleList(_Layer(hidden, **sizes, is_last=last) for last in lasts)

    def forward(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch particles dim"]:
        """The velocities, (batch, N, D)."""
        h, start = self.own_features(positions, t), positions / self.unit
        source, target = self.edges
        known = (start[:, target] - start[:, source]).square().sum(-1, keepdim=True)
        if self._n_pairs:
            kinds = torch.nn.functional.one_hot(self.pairs, self._n_pairs).to(known)
            known = torch.cat([known, kinds.expand(len(known), -1, -1)], -1)
        x = start
        for layer in self.layers:
            h, x = layer(h, x, known, self.edges)
        v = x - start
        return self.unit * (v - v.mean(1, keepdim=True))


class _Layer(MessagePassing):
    """One layer; the graph is the same in all rows of a batch."""

    def __init__(self, hidden: int, *, n_known: int, step: float, is_last: bool) -> None:
        super().__init__(aggr="sum", node_dim=-2)
        linear, silu = torch.nn.Linear, torch.nn.SiLU
        self.step = step
        # the first layer of φ_e, apart for the two ends: those parts are computed once per atom, not per pair
        self.at_target = linear(hidden, hidden)
        self.at_source = linear(hidden, hidden, bias=False)
        self.between = linear(1 + n_known, hidden, bias=False)
        self.message_of = torch.nn.Sequential(silu(), linear(hidden, hidden), silu())
        self.gate = torch.nn.Sequential(linear(hidden, 1), torch.nn.Sigmoid())
        last = linear(hidden, 1, bias=False)
        torch.nn.init.xavier_uniform_(last.weight, gain=1e-3)
        self.way = torch.nn.Sequential(linear(hidden, hidden), silu(), last, torch.nn.Tanh())
        update = torch.nn.Sequential(linear(2 * hidden, hidden), silu(), linear(hidden, hidden))
        self.update_of = None if is_last else update

    def forward(self, h: Tensor, x: Tensor, known: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """New features and positions of all atoms."""
        ends = {"a": self.at_target(h), "b": self.at_source(h)}
        both = self.propagate(edges, **ends, x=x, known=known)
        messages, moved = both.split([h.shape[-1], x.shape[-1]], -1)
        if self.update_of is not None:
            h = h + self.update_of(torch.cat([h, messages], -1))
        return h, x + moved

    def message(self, a_i: Tensor, b_j: Tensor, x_i: Tensor, x_j: Tensor, known: Tensor) -> Tensor:
        """The message and the move of every edge, side by side."""
        r = x_i - x_j
        squared = r.square().sum(-1, keepdim=True)
        m = self.message_of(a_i + b_j + self.between(torch.cat([squared, known], -1)))
        m = m * self.gate(m)
        # the root has no gradient at 0, where two atoms coincide
        distance = squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()
        return torch.cat([m, self.step * self.way(m) * r / (distance + 1.0)], -1)
