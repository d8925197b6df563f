"""Internal coordinates to Cartesian positions as a Transition."""

import torch
from torch.nn.functional import logsigmoid

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.coordinates import FrozenCoordinates, InternalCoordinateMap, InternalCoordinates, ZMatrix
from boltzflow.coordinates.torus import wrap
from boltzflow.run import Run
from boltzflow.state import Space, State
from boltzflow.transitions.transition import Bijection

__all__ = ["InternalToCartesian"]

_LARGEST_EXPONENT = 40.0
# Relative deviation of a frozen coordinate beyond which positions are not on the constraints; far above rounding.
_OFF = 1e-3


class InternalToCartesian(Bijection):
    """Flat field "q" of scaled internal coordinates → field "positions" (batch, n_atoms, 3) in nm, mod rigid motions.

    q holds n−1 bonds, n−2 angles and n−3 torsions in the order of the Z-matrix. Coordinates on the line are deviations
    from `mean` in units of `scale`; circular ones are angles in (−π, π] as they are. The lengths and angles of the
    links between molecules are broad, so they have maps onto (0, ∞) and (0, π) whose value and slope at q = 0 are
    `mean` m and `scale` s: b = m exp(s q / m) and θ = π σ(logit(m/π) + s q / (m (1 − m/π))). Values outside the chart
    (a bond ≤ 0, an angle outside (0, π), a stiff torsion more than half a turn from its mean, an exponent of a link
    beyond ±40) have no image: r = −inf, so the weight is exactly zero and is counted; the atoms are placed at the
    centre instead, without a gradient.

    Frozen coordinates are constants and no part of q, whose density is then the one with respect to ∏ δ(σ_k) dx of the
    constraints σ_k that freeze them. Positions off the constraints have density zero: the ratio of `reverse` is −inf.

    Args:
        zmatrix: References of every atom.
        mean: Centre of every coordinate, (d,), nm and rad; not used for circular ones.
        scale: Width of every coordinate, (d,), nm and rad, likewise.
        circular: Which coordinates are circular, (d,) bool.
        frozen: Coordinates that constraints fix, which q leaves out; None = none.
    """

    def __init__(
        self,
        zmatrix: ZMatrix,
        *,
        mean: Float[Tensor, " d"],
        scale: Float[Tensor, " d"],
        circular: Tensor,
        frozen: FrozenCoordinates | None = None,
    ) -> None:
        super().__init__()
        self.map = InternalCoordinateMap(zmatrix)
        self.n_atoms = zmatrix.n_atoms
        size = 3 * zmatrix.n_atoms - 6
        sizes = {"mean": mean, "scale": scale, "circular": circular}
        wrong = {name: tuple(value.shape) for name, value in sizes.items() if tuple(value.shape) != (size,)}
        if wrong:
            raise ValueError(f"InternalToCartesian: expected shape ({size},) for {self.n_atoms} atoms, got {wrong}.")
        zero, one = torch.zeros_like(mean), torch.ones_like(mean)
        held = torch.zeros_like(circular) if frozen is None else frozen.mask
        if frozen is not None:
            mean, scale = torch.where(held, frozen.values.to(mean), mean), torch.where(held, one, scale)
        circular = circular & ~held
        self.dimension = int((~held).sum())
        self.register_buffer("_free", torch.nonzero(~held).flatten(), persistent=False)
        self.register_buffer("_held", torch.nonzero(held).flatten(), persistent=False)
        self.register_buffer("mean", torch.where(circular, zero, mean))
        self.register_buffer("scale", torch.where(circular, one, scale))
        self.register_buffer("circular", circular)
        log_slope = 0.0 if frozen is None else frozen.log_slope
        self.register_buffer("_log_scale", self.scale.double().log().sum() - log_slope)
        self._has_links = bool(zmatrix.links)
        for name, links, start in [
            ("_link_lengths", zmatrix.linked_bonds, 0),
            ("_link_angles", zmatrix.linked_angles, self.n_atoms - 1),
        ]:
            self.register_buffer(name, start + torch.from_numpy(links).nonzero()[:, 0], persistent=False)
        self._sizes = (self.n_atoms - 1, self.n_atoms - 2, self.n_atoms - 3)
        self._torsions = slice(2 * self.n_atoms - 3, size)

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Place the atoms; r = log|∂positions/∂q|, −inf outside the chart."""
        whole = state["q"]
        if len(self._held):
            whole = whole.new_zeros(len(whole), len(self.mean)).index_copy(1, self._free, whole)
        q, log_slope, beyond = self._unscaled(whole)
        bonds, angles, _ = q.split(self._sizes, 1)
        turn = (whole * self.scale)[:, self._torsions].abs()
        outside = (
            beyond
            | (bonds <= 0).any(1)
            | ((angles <= 0) | (angles >= torch.pi)).any(1)
            | ((turn > torch.pi) & ~self.circular[self._torsions]).any(1)
        )
        # a mask on the result alone would leave 0·NaN in the gradients of the parameters
        q = torch.where(outside[:, None], self.mean, q)
        positions, log_det = self.map.inverse(InternalCoordinates(*q.split(self._sizes, 1)))
        ratio = torch.where(outside, -torch.inf, log_det + log_slope + self._log_scale)
        space = Space("line", (self.n_atoms, 3), dimension=self.dimension)
        return state.with_fields({"positions": positions}, {"positions": space}, drop=("q",)), ratio

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Scaled internal coordinates of the positions, and log|∂q/∂positions|."""
        internal, log_det = self.map(state["positions"])
        q, log_slope = self._scaled(torch.cat(internal, 1))
        if len(self._held):
            off = (q[:, self._held].abs() > _OFF * self.mean[self._held]).any(1)
            q, log_det = q[:, self._free], torch.where(off, -torch.inf, log_det)
        space = Space("mixed", (self.dimension,))
        return state.with_fields({"q": q}, {"q": space}, drop=("positions",)), log_det - log_slope - self._log_scale

    def _unscaled(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Internal coordinates, log|slope / scale| of the links' maps in float64, and where these have no image."""
        step = q * self.scale
        internal = step + self.mean
        if not self._has_links:
            return internal, q.new_zeros(len(q), dtype=torch.float64), q.new_zeros(len(q), dtype=torch.bool)
        length, share = self._link_means()
        growth = step[:, self._link_lengths] / length
        odds = share.logit() + step[:, self._link_angles] / (torch.pi * share * (1 - share))
        beyond = (torch.cat([growth, odds], 1).abs() > _LARGEST_EXPONENT).any(1)
        # clamped, since infinities there would leave NaN in the gradients; those rows have weight zero
        growth, odds = (part.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT) for part in (growth, odds))
        internal = internal.index_copy(1, self._link_lengths, length * growth.exp())
        internal = internal.index_copy(1, self._link_angles, torch.pi * odds.sigmoid())
        return internal, self._log_slope(growth, odds, share), beyond

    def _scaled(self, internal: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `_unscaled`, with the same log|slope / scale|."""
        step = internal - self.mean
        stiff = torch.where(self.circular[self._torsions], step[:, self._torsions], wrap(step[:, self._torsions]))
        step = torch.cat([step[:, : self._torsions.start], stiff], 1)
        if not self._has_links:
            return step / self.scale, step.new_zeros(len(step), dtype=torch.float64)
        length, share = self._link_means()
        growth = (internal[:, self._link_lengths] / length).log()
        odds = (internal[:, self._link_angles] / torch.pi).logit()
        step = step.index_copy(1, self._link_lengths, length * growth)
        step = step.index_copy(1, self._link_angles, (odds - share.logit()) * torch.pi * share * (1 - share))
        return step / self.scale, self._log_slope(growth, odds, share)

    def _link_means(self) -> tuple[Tensor, Tensor]:
        """Mean lengths of the links in nm, and mean angles as a share of pi."""
        return self.mean[self._link_lengths], self.mean[self._link_angles] / torch.pi

    @staticmethod
    def _log_slope(growth: Tensor, odds: Tensor, share: Tensor) -> Tensor:
        bend = logsigmoid(odds) + logsigmoid(-odds) - torch.log(share * (1 - share))
        return growth.sum(1, dtype=torch.float64) + bend.sum(1, dtype=torch.float64)
