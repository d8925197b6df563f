"""Virtual sites: particles without mass whose positions follow from those of others."""

from typing import Any

import torch
from torch import nn

from boltzflow._typing import Float, Int, Tensor
from boltzflow.errors import UnsupportedForceError

__all__ = ["VirtualSites", "read_virtual_sites"]


class VirtualSites(nn.Module):
    """The places of virtual sites as functions of their parents.

    With o, X and Y weighted sums of the parents' positions, a site is at o + c X x Y (averages and out-of-plane sites)
    plus p1 ex + p2 ey + p3 ez, where ex is along X, ez along X x Y, and ey = ez x ex (local coordinates).
    """

    def __init__(
        self,
        *,
        sites: Int[Tensor, "n_sites"],
        parents: Int[Tensor, "n_sites n_parents"],
        origin: Float[Tensor, "n_sites n_parents"],
        x_axis: Float[Tensor, "n_sites n_parents"],
        y_axis: Float[Tensor, "n_sites n_parents"],
        cross: Float[Tensor, "n_sites"],
        local: Float[Tensor, "n_sites 3"],
    ) -> None:
        """Keep the rules.

        Args:
            sites: particles that are virtual sites.
            parents: real particles, any where the weight is 0.
            origin: weights of the parents in o.
            x_axis: weights in X.
            y_axis: weights in Y.
            cross: c in 1/nm.
            local: p in nm.
        """
        super().__init__()
        tensors = {"sites": sites, "parents": parents, "origin": origin, "x_axis": x_axis, "y_axis": y_axis}
        for name, value in {**tensors, "cross": cross, "local": local}.items():
            self.register_buffer(name, value.detach().clone())
        # Averages have no axes: their directions would be 0/0.
        self.register_buffer("crossed", (cross != 0).nonzero()[:, 0], persistent=False)
        self.register_buffer("framed", (local != 0).any(1).nonzero()[:, 0], persistent=False)

    def __len__(self) -> int:
        """Number of sites."""
        return len(self.sites)

    def _sum(self, weights: Tensor, x: Tensor, rows: Tensor | slice) -> Tensor:
        parents = self.parents[rows]
        points = x.index_select(1, parents.flatten()).unflatten(1, parents.shape)
        return (weights[rows][..., None] * points).sum(2)

    def forward(self, x: Float[Tensor, "3 n_atoms batch"]) -> Float[Tensor, "3 n_atoms batch"]:
        """Return positions in which the sites are where their parents put them; what stood there is not read."""
        place = self._sum(self.origin, x, slice(None))
        if len(self.crossed):
            a, b = (self._sum(weights, x, self.crossed) for weights in (self.x_axis, self.y_axis))
            out = self.cross[self.crossed, None] * torch.linalg.cross(a, b, dim=0)
            place = place.index_add(1, self.crossed, out)
        if len(self.framed):
            a, b = (self._sum(weights, x, self.framed) for weights in (self.x_axis, self.y_axis))
            ex = a / a.norm(dim=0)
            ez = torch.linalg.cross(a, b, dim=0)
            ez = ez / ez.norm(dim=0)
            ey = torch.linalg.cross(ez, ex, dim=0)
            p = self.local[self.framed].T[..., None]
            place = place.index_add(1, self.framed, p[0] * ex + p[1] * ey + p[2] * ez)
        return x.index_copy(1, self.sites, place)


def _rule(site: Any) -> tuple[list[float], list[float], list[float], float, list[float]]:
    """Return the weights of o, X and Y, and c and p, of an openmm.VirtualSite."""
    kind, none = type(site).__name__, [0.0, 0.0, 0.0]
    if kind in ("TwoParticleAverageSite", "ThreeParticleAverageSite"):
        n = site.getNumParticles()
        return [site.getWeight(k) for k in range(n)], [0.0] * n, [0.0] * n, 0.0, none
    if kind == "OutOfPlaneSite":
        a, b = site.getWeight12(), site.getWeight13()
        return [1 - a - b, a, b], [-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0], site.getWeightCross(), none
    if kind == "LocalCoordinatesSite":
        weights = (site.getOriginWeights(), site.getXWeights(), site.getYWeights())
        return *(list(w) for w in weights), 0.0, list(site.getLocalPosition()._value)
    raise UnsupportedForceError(
        f"{kind} is not known (known: TwoParticleAverageSite, ThreeParticleAverageSite, OutOfPlaneSite, "
        "LocalCoordinatesSite); use the openmm back-end"
    )


def read_virtual_sites(system: Any, dtype: torch.dtype) -> VirtualSites | None:
    """Return the virtual sites of an openmm.System, None if it has none.

    Args:
        system: an ``openmm.System``.
        dtype: of the weights.

    Raises:
        UnsupportedForceError: a kind of site that is not known, or one with a parent that is a site itself.
    """
    found = [k for k in range(system.getNumParticles()) if system.isVirtualSite(k)]
    if not found:
        return None
    rules, parents = [], []
    for k in found:
        site = system.getVirtualSite(k)
        atoms = [site.getParticle(n) for n in range(site.getNumParticles())]
        nested = [atom for atom in atoms if system.isVirtualSite(atom)]
        if nested:
            raise UnsupportedForceError(
                f"particle {k} is a virtual site of particle {nested[0]}, which is one itself; use the openmm back-end"
            )
        try:
            rules.append(_rule(site))
        except UnsupportedForceError as error:
            raise UnsupportedForceError(f"virtual site {k}: {error}") from None
        parents.append(atoms)
    n_parents = max(len(atoms) for atoms in parents)

    def padded(rows: tuple[list[float], ...]) -> Tensor:
        return torch.tensor([row + [0.0] * (n_parents - len(row)) for row in rows], dtype=dtype)

    origin, x_axis, y_axis, cross, local = zip(*rules, strict=True)
    return VirtualSites(
        sites=torch.tensor(found),
        parents=torch.tensor([row + row[:1] * (n_parents - len(row)) for row in parents]),
        origin=padded(origin),
        x_axis=padded(x_axis),
        y_axis=padded(y_axis),
        cross=torch.tensor(cross, dtype=dtype),
        local=torch.tensor(local, dtype=dtype),
    )
