"""A chain of six beads with independent bonds and angles and three coupled torsions, and exact samples of it."""

import math

import torch

from boltzflow.coordinates import dihedral_angles
from boltzflow.state import Space
from boltzflow.targets.target import Target
from boltzflow.transitions import rotatable_axes, torsion_blocks

BONDS = [(k, k + 1) for k in range(5)]
TORSIONS = torch.tensor([[k, k + 1, k + 2, k + 3] for k in range(3)])


class Polymer(Target):
    """Of an energy in its torsions alone, up to stiff bonds and angles; the torsions are drawn by rejection."""

    def __init__(self):
        super().__init__({"positions": Space("line", (6, 3), dimension=15)}, name="polymer")

    def torsion_energy(self, phi):
        a, b, c = phi.unbind(-1)
        return 2 * torch.cos(3 * a) - 1.5 * torch.cos(2 * b - 1) - torch.cos(c - 0.4) - 1.5 * torch.cos(a - b)

    def reduced_energy(self, state, context=None):
        x = state["positions"]
        bonds = x[:, 1:] - x[:, :-1]
        length = bonds.norm(dim=-1)
        angle = torch.arccos(-(bonds[:, 1:] * bonds[:, :-1]).sum(-1) / (length[:, 1:] * length[:, :-1]))
        phi = dihedral_angles(x, TORSIONS)
        # with the volume element taken out, so that bonds and angles are Gaussian
        u = (200 * (length - 1).square() + 2 * length.log()).sum(1)
        return u + (50 * (angle - 1.9).square() + angle.sin().log()).sum(1) + self.torsion_energy(phi)

    def torsions(self, n, rng):
        tries = 80 * n + 1000
        phi = 2 * math.pi * torch.rand(tries, 3, generator=rng, dtype=torch.float64) - math.pi
        keep = torch.rand(tries, generator=rng, dtype=torch.float64) < torch.exp(-6 - self.torsion_energy(phi))
        return phi[keep][:n]

    def sample(self, n, rng, context=None):
        phi = self.torsions(n, rng)
        assert len(phi) == n
        length = 1 + torch.randn(n, 5, generator=rng, dtype=torch.float64) / 20
        angle = 1.9 + torch.randn(n, 4, generator=rng, dtype=torch.float64) / 10
        frame, r = torch.linalg.qr(torch.randn(n, 3, 3, generator=rng, dtype=torch.float64))
        frame = frame * r.diagonal(dim1=1, dim2=2).sign()[:, None]  # uniform over the orthogonal matrices
        frame = frame * torch.linalg.det(frame)[:, None, None]
        e, p = frame[:, 0], frame[:, 1]
        x = [torch.zeros(n, 3, dtype=torch.float64), length[:, :1] * e]
        turn = torch.cat([torch.full((n, 1), math.pi, dtype=torch.float64), phi], dim=1)
        for k in range(4):
            q = torch.linalg.cross(e, p)
            cos, sin = turn[:, k : k + 1].cos(), turn[:, k : k + 1].sin()
            away, along = -angle[:, k : k + 1].cos(), angle[:, k : k + 1].sin()
            side = cos * p + sin * q  # towards the bead before, seen along the bond, and turned
            new = away * e + along * side
            x.append(x[-1] + length[:, k + 1 : k + 2] * new)
            e, p = new, along * e - away * side
            p = -p
        x = torch.stack(x, dim=1)
        return self.state(x - x.mean(1, keepdim=True))


def moments(target, state):
    """Functions of the torsions and of the energy, (n, 10)."""
    phi = dihedral_angles(state["positions"], TORSIONS)
    a, b, c = phi.unbind(1)
    columns = [a.cos(), (3 * a).cos(), a.sin(), b.cos(), b.sin(), (2 * b).sin(), c.cos(), c.sin(), (a - b).cos()]
    return torch.stack([*columns, torch.tanh(target.reduced_energy(state) / 10)], dim=1)


def chain_blocks(families):
    """Blocks of the chain; with crankshafts, of its first and last torsion only."""
    axes = rotatable_axes(BONDS, n_atoms=6)
    if "crankshaft" in families:  # the bond between stands for the amide
        axes = axes.select([(1, 2), (3, 4)])
        families = [family for family in families if family != "pivot"]
    return torsion_blocks(axes, BONDS, [6] * 6, families=families)
