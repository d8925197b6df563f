"""HollowField: what moves an atom is made without it, so that the exact divergence takes D backward passes."""

from collections.abc import Sequence

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.networks.atom_features import AtomFeatures
from boltzflow.networks.graph_field import GraphField
from boltzflow.networks.scalar_vector import RadialFilters, ScalarVectorReadout, ScalarVectorUpdate, separations

__all__ = ["HollowField"]


class HollowField(GraphField):
    """PaiNN whose features of j, as atom i receives them, come from all atoms but i; D passes for the divergence.

    Every atom k has features (s, v)_ik for every atom i that is left out. L rounds of messages among the atoms but i
    make them; in a last one i receives from all others, by filters of its own distances to them, and moves. The own
    position of i thus enters by that last round alone. At fixed features of the others the trace is a sum over atoms
    of D × D blocks, which D backward passes through the last round give for all atoms at once. It is the exact trace:
    the mean that is removed has no divergence, as a translation of all atoms changes nothing.

    Messages of PaiNN are a function of the sender times one of the distance. For that reason the rounds without i are
    products of N × N matrices: they cost O(N³) multiplications, but networks act on O(N²) features only. A forward
    pass costs several times that of `PaiNNField`, the divergence little more. The Jacobian is that of autograd.

    It goes with translations, rotations, reflections and permutations of atoms of one type.

    Args:
        features: Of the atoms, or a type for every particle, [0] * N for identical ones.
        n_dimensions: D.
        unit: Length in which the network sees positions; about the width of the base.
        n_layers: L, the rounds without the atom itself; 0 leaves pair velocities that know no surroundings.
        hidden: Number of scalars, and of vectors.
        reach: Centre of the last Gaussian of the distance, in units.
        n_basis: Gaussians.
        n_harmonics: Harmonics of t that are seen besides t.

    References:
        Neural networks with cheap differential operators (Chen, Duvenaud, 2019), section 2,
        https://arxiv.org/abs/1912.03579; messages: Schütt, Unke, Gastegger (2021), https://arxiv.org/abs/2102.03150

    Example:
        >>> field = HollowField([0] * 4, 3, n_layers=1, hidden=8).double()
        >>> field.divergence(torch.rand(5, 4, 3, dtype=torch.float64), 0.5).shape
        torch.Size([5])
    """

    rotates = True
    reflects = True

    def __init__(
        self,
        features: AtomFeatures | Sequence[int],
        n_dimensions: int,
        *,
        unit: float = 1.0,
        n_layers: int = 2,
        hidden: int = 64,
        reach: float = 5.0,
        n_basis: int = 32,
        n_harmonics: int = 4,
    ) -> None:
        super().__init__(features, n_dimensions, unit=unit, hidden=hidden, n_harmonics=n_harmonics)
        sizes = {"n_pairs": self.features.n_pairs, "reach": reach, "n_basis": n_basis}
        rounds = n_layers + 1
        self.networks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(hidden, hidden), torch.nn.SiLU(), torch.nn.Linear(hidden, 3 * hidden))
            for _ in range(rounds)
        )
        self.filters = torch.nn.ModuleList(RadialFilters(3 * hidden, **sizes) for _ in range(rounds))
        self.updates = torch.nn.ModuleList(ScalarVectorUpdate(hidden) for _ in range(rounds))
        self.readout = ScalarVectorReadout(hidden)

    def _place(self, features: AtomFeatures) -> None:
        super()._place(features)
        device = self._harmonics.device
        self.register_buffer("_square", features.pairs.to(device), persistent=False)
        self.register_buffer("_others", 1.0 - torch.eye(len(features), device=device), persistent=False)

    def forward(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, "batch particles dim"]:
        """The velocities, (batch, N, D)."""
        sent, vectors = self._surroundings(positions, t)
        return _centred(self._velocity(positions, positions, t, sent, vectors))

    def divergence(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> Float[Tensor, " batch"]:
        """Σ ∂v/∂x, (batch,), in D backward passes through the last round."""
        return self.velocity_and_divergence(positions, t)[1]

    def velocity_and_divergence(
        self, positions: Float[Tensor, "batch particles dim"], t: float | Float[Tensor, " batch"] = 0.0
    ) -> tuple[Float[Tensor, "batch particles dim"], Float[Tensor, " batch"]]:
        """Both at once; differentiable where autograd is on."""
        differentiable = torch.is_grad_enabled()
        sent, vectors = self._surroundings(positions, t)
        with torch.enable_grad():
            # positions once more: gradients by these stop short of the surroundings
            own = positions.clone() if positions.requires_grad else positions.detach().clone().requires_grad_()
            v = self._velocity(own, positions, t, sent, vectors)
            blocks = [
                torch.autograd.grad(v[..., k].sum(), own, retain_graph=True, create_graph=differentiable)[0][..., k]
                for k in range(v.shape[-1])
            ]
        v = _centred(v)
        return v if differentiable else v.detach(), sum(blocks).sum(1)

    def _surroundings(self, positions: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """What every k sends, without i, in the last round: (batch, i, k, 3 hidden) and vectors (…, D, hidden)."""
        x, atoms = positions / self.unit, self.own_features(positions, t)
        n, others = self.n_particles, self._others.to(x.dtype)
        distances, directions = separations(x[:, :, None] - x[:, None])
        s = atoms[:, None].expand(-1, n, -1, -1)
        v = s.new_zeros(len(x), n, n, x.shape[2], self.hidden)
        for network, radial, update in zip(self.networks, self.filters, self.updates[:-1], strict=False):
            # nobody sends to itself, and i sends to nobody
            a, b, c = (radial(distances, self._square) * others[..., None]).chunk(3, -1)
            sent = (network(s) * others[..., None]).chunk(3, -1)
            s = s + torch.einsum("bkjf,bijf->bikf", a, sent[0])
            v = v + torch.einsum("bkjf,bijdf->bikdf", b, sent[1][..., None, :] * v)
            v = v + torch.einsum("bkjdf,bijf->bikdf", c[..., None, :] * directions[..., None], sent[2])
            s, v = update(s, v)
        return self.networks[-1](s), v

    def _velocity(
        self, own: Tensor, positions: Tensor, t: float | Tensor, sent: Tensor, vectors: Tensor
    ) -> Float[Tensor, "batch particles dim"]:
        """The last round, the mean still in: every atom at its own position, all others where they are."""
        distances, directions = separations((own[:, :, None] - positions[:, None]) / self.unit)
        received = sent * self.filters[-1](distances, self._square) * self._others.to(own.dtype)[..., None]
        a, b, c = received[..., None, :].chunk(3, -1)
        s = self.own_features(own, t) + a[..., 0, :].sum(2)
        s, v = self.updates[-1](s, (b * vectors + c * directions[..., None]).sum(2))
        return self.unit * self.readout(s, v)


def _centred(v: Tensor) -> Tensor:
    return v - v.mean(1, keepdim=True)
