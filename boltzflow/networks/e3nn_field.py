"""E3NNField: messages of tensors of higher order that know left from right."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from e3nn import o3
from e3nn.nn import Gate
from torch_geometric.nn import MessagePassing

from boltzflow._typing import Float, Tensor
from boltzflow.networks.atom_features import AtomFeatures
from boltzflow.networks.graph_field import GraphField
from boltzflow.networks.scalar_vector import RadialFilters, separations

__all__ = ["E3NNField"]


class E3NNField(GraphField):
    """v_i from tensors up to order l at every atom, after L rounds of tensor products with solid harmonics of r_ij.

    Positions count as tensors of even parity, so that products of any order mix: the cross product of two vectors is a
    vector. The field goes with translations, rotations and permutations of atoms of one type, but not with
    reflections: from two rounds on it moves mirror images differently, and a flow along it need not generate both
    hands of a molecule alike. Harmonics are of r/√(1 + r²), smooth where atoms meet; filters end at the reach. Features
    of an atom depend on all others in every round, so divergence and Jacobian are those of autograd, exact at one
    backward pass per coordinate.

    Args:
        features: Of the atoms, or a type for every particle, [0] * N for identical ones.
        n_dimensions: 3.
        unit: Length in which the network sees positions; about the width of the base.
        n_layers: L, at least 2.
        hidden: Number of scalars per atom.
        n_tensors: Number of tensors of every other order per atom.
        order: l.
        reach: Centre of the last Gaussian of the distance, in units.
        n_basis: Gaussians.
        n_harmonics: Harmonics of t that are seen besides t.

    Raises:
        ValueError: If there are not three dimensions, or numbers make no handed field.

    References:
        e3nn (Geiger, Smidt, 2022), https://arxiv.org/abs/2207.09453; rounds as in Batzner et al. (2022),
        https://arxiv.org/abs/2101.03164

    Example:
        >>> field = E3NNField([0] * 4, 3, n_layers=2, hidden=8, n_tensors=4).double()
        >>> field(torch.rand(5, 4, 3, dtype=torch.float64), 0.5).shape
        torch.Size([5, 4, 3])
    """

    rotates = True

    def __init__(
        self,
        features: AtomFeatures | Sequence[int],
        n_dimensions: int = 3,
        *,
        unit: float = 1.0,
        n_layers: int = 3,
        hidden: int = 32,
        n_tensors: int = 16,
        order: int = 2,
        reach: float = 5.0,
        n_basis: int = 32,
        n_harmonics: int = 4,
    ) -> None:
        super().__init__(features, n_dimensions, unit=unit, hidden=hidden, n_harmonics=n_harmonics)
        if n_dimensions != 3 or n_layers < 2 or order < 1 or n_tensors < 1:
            raise ValueError(
                "E3NNField: expected 3 dimensions, at least 2 layers, an order of at least 1 and 1 tensor of each, got "
                f"{n_dimensions}, {n_layers}, {order} and {n_tensors}; one layer could not tell left from right."
            )
        higher = "".join(f" + {n_tensors}x{k}e" for k in range(1, order + 1))
        between = o3.Irreps(f"{hidden}x0e{higher}")
        self._harmonics_of = o3.SphericalHarmonics(
            o3.Irreps.spherical_harmonics(order, p=1), normalize=False, normalization="component", irreps_in="1e"
        )
        sizes = {"n_pairs": self.features.n_pairs, "reach": reach, "n_basis": n_basis}
        # scalars come in and vectors go out; what else the ends could have would be of no use
        ends = [o3.Irreps(f"{hidden}x0e"), *[between] * (n_layers - 1), o3.Irreps(f"{n_tensors}x1e")]
        self.layers = torch.nn.ModuleList(
            _Layer(a, self._harmonics_of.irreps_out, b, **sizes) for a, b in itertools.pairwise(ends)
        )
        self.readout = o3.Linear(ends[-1], "1x1e")
        torch.nn.init.zeros_(self.readout.weight)

    def forward(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch particles dim"]:
        """The velocities, (batch, N, 3)."""
        x, h = positions / self.unit, self.own_features(positions, t)
        source, target = self.edges
        distances, directions = separations(x[:, target] - x[:, source])
        harmonics = self._harmonics_of(directions)
        for layer in self.layers:
            h = layer(h, layer.filters(distances, self.pairs), harmonics, self.edges)
        v = self.readout(h)
        return self.unit * (v - v.mean(1, keepdim=True))


class _Layer(MessagePassing):
    """One round, between linear maps and with gates; the graph is the same in all rows of a batch."""

    def __init__(self, irreps: o3.Irreps, harmonics: o3.Irreps, result: o3.Irreps, **sizes: Any) -> None:
        super().__init__(aggr="sum", node_dim=1)
        scalars = o3.Irreps([(n, ir) for n, ir in result if ir.l == 0])
        gated = o3.Irreps([(n, ir) for n, ir in result if ir.l > 0])
        gates = o3.Irreps(f"{gated.num_irreps}x0e")
        activations = [torch.nn.functional.silu] * len(scalars)
        self.gate = Gate(scalars, activations, gates, [torch.sigmoid], gated)
        wanted = {ir for _, ir in self.gate.irreps_in}
        paths = [
            (i, j, n, ir)
            for i, (n, a) in enumerate(irreps)
            for j, (_, b) in enumerate(harmonics)
            for ir in a * b
            if ir in wanted
        ]
        products, places, _ = o3.Irreps([(n, ir) for _, _, n, ir in paths]).sort()
        instructions = [(i, j, place, "uvu", True) for (i, j, _, _), place in zip(paths, places, strict=True)]
        self.before = o3.Linear(irreps, irreps)
        self.product = o3.TensorProduct(
            irreps, harmonics, products, instructions, internal_weights=False, shared_weights=False
        )
        self.filters = RadialFilters(self.product.weight_numel, **sizes)
        self.after = o3.Linear(products.simplify(), self.gate.irreps_in)
        self.own = o3.Linear(irreps, self.gate.irreps_in)
        self.keeps = irreps == result

    def forward(self, h: Tensor, filters: Tensor, harmonics: Tensor, edges: Tensor) -> Tensor:
        """New tensors of all atoms."""
        sent = self.propagate(edges, sent=self.before(h), filters=filters, harmonics=harmonics)
        new = self.gate(self.own(h) + self.after(sent))
        return h + new if self.keeps else new

    def message(self, sent_j: Tensor, filters: Tensor, harmonics: Tensor) -> Tensor:
        """The tensor product of every edge."""
        return self.product(sent_j, harmonics, filters)
