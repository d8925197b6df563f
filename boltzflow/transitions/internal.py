"""Internal coordinates to Cartesian positions as a Transition."""

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.coordinates import InternalCoordinateMap, InternalCoordinates, ZMatrix
from boltzflow.coordinates.torus import wrap
from boltzflow.run import Run
from boltzflow.state import Space, State
from boltzflow.transitions.transition import Bijection

__all__ = ["InternalToCartesian"]


class InternalToCartesian(Bijection):
    """Flat field "q" of scaled internal coordinates → field "positions" (batch, n_atoms, 3) in nm, mod rigid motions.

    q holds n−1 bonds, n−2 angles and n−3 torsions in the order of the Z-matrix. Coordinates on the line are deviations
    from `mean` in units of `scale`; circular ones are angles in (−π, π] as they are. Values outside the chart (a bond
    ≤ 0, an angle outside (0, π), a stiff torsion more than half a turn from its mean) have no image: r = −inf, so the
    weight is exactly zero and is counted; the atoms are placed at the centre instead, without a gradient.

    Args:
        zmatrix: References of every atom.
        mean: Centre of every coordinate, (d,), nm and rad; not used for circular ones.
        scale: Width of every coordinate, (d,), nm and rad, likewise.
        circular: Which coordinates are circular, (d,) bool.
    """

    def __init__(
        self, zmatrix: ZMatrix, *, mean: Float[Tensor, " d"], scale: Float[Tensor, " d"], circular: Tensor
    ) -> None:
        super().__init__()
        self.map = InternalCoordinateMap(zmatrix)
        self.n_atoms = zmatrix.n_atoms
        self.dimension = 3 * zmatrix.n_atoms - 6
        sizes = {"mean": mean, "scale": scale, "circular": circular}
        wrong = {name: tuple(value.shape) for name, value in sizes.items() if tuple(value.shape) != (self.dimension,)}
        if wrong:
            raise ValueError(
                f"InternalToCartesian: expected shape ({self.dimension},) for {self.n_atoms} atoms, got {wrong}."
            )
        zero, one = torch.zeros_like(mean), torch.ones_like(mean)
        self.register_buffer("mean", torch.where(circular, zero, mean))
        self.register_buffer("scale", torch.where(circular, one, scale))
        self.register_buffer("circular", circular)
        self.register_buffer("_log_scale", self.scale.double().log().sum())
        self._sizes = (self.n_atoms - 1, self.n_atoms - 2, self.n_atoms - 3)
        self._torsions = slice(2 * self.n_atoms - 3, self.dimension)

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Place the atoms; r = log|∂positions/∂q|, −inf outside the chart."""
        q = state["q"] * self.scale + self.mean
        bonds, angles, _ = q.split(self._sizes, 1)
        turn = (state["q"] * self.scale)[:, self._torsions].abs()
        outside = (
            (bonds <= 0).any(1)
            | ((angles <= 0) | (angles >= torch.pi)).any(1)
            | ((turn > torch.pi) & ~self.circular[self._torsions]).any(1)
        )
        # a mask on the result alone would leave 0·NaN in the gradients of the parameters
        q = torch.where(outside[:, None], self.mean, q)
        positions, log_det = self.map.inverse(InternalCoordinates(*q.split(self._sizes, 1)))
        ratio = torch.where(outside, -torch.inf, log_det + self._log_scale)
        space = Space("line", (self.n_atoms, 3), dimension=self.dimension)
        return state.with_fields({"positions": positions}, {"positions": space}, drop=("q",)), ratio

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Scaled internal coordinates of the positions, and log|∂q/∂positions|."""
        internal, log_det = self.map(state["positions"])
        q = torch.cat(internal, 1) - self.mean
        stiff = torch.where(self.circular[self._torsions], q[:, self._torsions], wrap(q[:, self._torsions]))
        q = torch.cat([q[:, : self._torsions.start], stiff], 1) / self.scale
        space = Space("mixed", (self.dimension,))
        return state.with_fields({"q": q}, {"q": space}, drop=("positions",)), log_det - self._log_scale
