"""Base on one flat field whose coordinates live on circles, intervals and lines: internal coordinates, for instance."""

import math
from collections.abc import Sequence

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets._noise import normal
from boltzflow.targets.bases._parameters import parameter
from boltzflow.targets.bases.truncated_normal import require_mass, sample_truncated_normal, truncated_normal_constant
from boltzflow.targets.bases.von_mises import sample_von_mises, von_mises_constant
from boltzflow.targets.target import Base

__all__ = ["ProductBase"]


class ProductBase(Base):
    """Independent coordinates in one field `(batch, d)`: circle in (−π, π], interval in [0, 1], or line; normalised.

    Without mean and scale: uniform on circles and intervals, standard normal on lines. With a finite scale: von Mises
    of concentration 1/scale² on circles, normal truncated to [0, 1] on intervals. It does not depend on the context.

    Args:
        kinds: "circle", "interval" or "line" for each of the d coordinates.
        mean: Centre, a number or a tensor of shape (d,); default 0 on circles and lines, 1/2 on intervals.
        scale: Width, likewise; +inf means uniform on circles and intervals. Default: as said above.
        name: Name of the field.

    Raises:
        ValueError: If a kind is unknown, or a scale is not positive (or infinite on a line).

    Example:
        >>> base = ProductBase(["circle", "interval", "line"])
        >>> base.log_prob(base.sample(1, torch.Generator().manual_seed(0))).shape
        torch.Size([1])
    """

    def __init__(
        self,
        kinds: Sequence[str],
        *,
        mean: float | Tensor | None = None,
        scale: float | Tensor | None = None,
        name: str = "q",
    ) -> None:
        kinds = tuple(kinds)
        unknown = sorted(set(kinds) - {"circle", "interval", "line"})
        if unknown or not kinds:
            raise ValueError(
                f"ProductBase kinds: expected circle, interval or line for each coordinate, got {unknown or 'none'}."
            )
        shape = (len(kinds),)
        super().__init__({name: Space("mixed", shape)}, log_z=0.0)
        self.kinds = kinds
        self.field = name
        if "circle" in kinds:
            self.measure = "torus" if set(kinds) == {"circle"} else "torus × lebesgue"
        if mean is None:
            mean = torch.tensor([0.5 if kind == "interval" else 0.0 for kind in kinds])
        if scale is None:
            scale = torch.tensor([1.0 if kind == "line" else math.inf for kind in kinds])
        self.register_buffer("mean", parameter(mean, shape, "ProductBase mean"))
        self.register_buffer("scale", parameter(scale, shape, "ProductBase scale", positive=True))
        for kind in ("circle", "interval", "line"):
            rows = torch.tensor([i for i, k in enumerate(kinds) if k == kind], dtype=torch.int64)
            self.register_buffer(f"_{kind}", rows, persistent=False)
        if self.scale[self._line].isinf().any():
            raise ValueError("ProductBase scale: expected finite values on lines, got inf.")
        mean, scale = self.mean[self._interval], self.scale[self._interval]
        require_mass(mean, scale, torch.zeros_like(mean), torch.ones_like(mean), "ProductBase intervals [0, 1]")

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """−log of the normalised density, +inf if a coordinate on an interval is outside [0, 1]; shape (batch,)."""
        q = state[self.field]
        z = (q - self.mean) / self.scale
        # infinite scales give 0·NaN = NaN for a NaN coordinate, so that nothing invalid looks finite
        concentration = self.scale[self._circle].square().reciprocal()
        terms = 0.5 * z.square()
        angle = q[:, self._circle] - self.mean[self._circle]
        energy = (concentration * (1 - torch.cos(angle))).sum(1, dtype=torch.float64)
        for rows in (self._interval, self._line):
            energy = energy + terms[:, rows].sum(1, dtype=torch.float64)
        interval = q[:, self._interval]
        inside = ((interval >= 0) & (interval <= 1)).all(1)
        return torch.where(inside, energy + self._constant(), torch.inf)

    def _constant(self) -> Tensor:
        mean, scale = self.mean[self._interval], self.scale[self._interval]
        circle = von_mises_constant(self.scale[self._circle].double().square().reciprocal()).sum()
        interval = truncated_normal_constant(mean, scale, torch.zeros_like(mean), torch.ones_like(mean)).sum()
        line = (self.scale[self._line].double().log() + 0.5 * math.log(2 * math.pi)).sum()
        return circle + interval + line

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n exact samples."""
        q = torch.empty((n, len(self.kinds)), dtype=self.mean.dtype, device=self.mean.device)
        mean, scale = self.mean[self._interval], self.scale[self._interval]
        bounds = torch.zeros_like(mean), torch.ones_like(mean)
        q[:, self._interval] = sample_truncated_normal(n, mean, scale, *bounds, rng)
        mean, scale = self.mean[self._circle], self.scale[self._circle]
        q[:, self._circle] = sample_von_mises(n, mean, scale.square().reciprocal(), rng)
        mean, scale = self.mean[self._line], self.scale[self._line]
        q[:, self._line] = mean + scale * normal((n, len(mean)), rng, mean)
        return self.state(q)
