"""Rigid-body moves: geometry, volume, detailed balance, and the orientation of a dipole against quadrature."""

import math

import pytest
import torch

from boltzflow.run import make_rng
from boltzflow.state import Space
from boltzflow.targets.bases import Gaussian, MeanFreeGaussian
from boltzflow.targets.target import Target
from boltzflow.testing import assert_detailed_balance, check_transition, run_at
from boltzflow.transitions.rigid_move import RigidMove, move_rigidly

BONDS = [(0, 1), (0, 2), (4, 5)]  # a water, an ion and a diatomic molecule


def distances(x):
    return (x[:, :, None] - x[:, None]).norm(dim=-1)


def test_one_molecule_moves_and_keeps_its_shape_and_hand():
    rng = make_rng(1)
    x = torch.randn(40, 6, 3, generator=rng, dtype=torch.float64)
    shift, turn = torch.randn(2, 40, 3, generator=rng, dtype=torch.float64)
    moving = torch.tensor([[True] * 3 + [False] * 3, [False] * 3 + [True] * 3] * 20)
    y = move_rigidly(x, moving, shift, turn)
    for part in (slice(0, 3), slice(3, 6)):
        torch.testing.assert_close(distances(y[:, part]), distances(x[:, part]))
    assert torch.equal(y[~moving], x[~moving])
    rotation = torch.linalg.matrix_exp(
        torch.stack([torch.linalg.cross(turn, e.expand_as(turn)) for e in torch.eye(3, dtype=torch.float64)], 2)
    )
    centre = x[:1, :3].mean(1, keepdim=True)
    expected = (x[:1, :3] - centre) @ rotation[0].T + centre + shift[:1, None]
    torch.testing.assert_close(y[:1, :3], expected)
    torch.testing.assert_close(move_rigidly(y, moving, -shift, -turn), x)


def test_it_preserves_volume():
    rng = make_rng(2)
    x, shift, turn = (torch.randn(1, n, 3, generator=rng, dtype=torch.float64) for n in (4, 1, 1))
    moving = torch.tensor([[True, True, True, False]])
    jacobian = torch.autograd.functional.jacobian(
        lambda p: move_rigidly(p.reshape(1, 4, 3), moving, shift[0], turn[0]).flatten(), x.flatten()
    )
    assert torch.linalg.slogdet(jacobian).logabsdet.abs() < 1e-12


@pytest.mark.parametrize("target", [Gaussian((6, 3), name="positions"), MeanFreeGaussian(6)], ids=["line", "mean-free"])
def test_detailed_balance(target):
    kernel, rng = RigidMove(BONDS, n_atoms=6, width=0.7, turn=0.9, n_steps=2).double(), make_rng(3)
    assert_detailed_balance(kernel, target.double(), n=20_000, rng=rng)
    assert 0.1 < kernel.acceptance_rate() < 0.9


def test_contract_of_transitions():
    target, rng = Gaussian((6, 3), name="positions").double(), make_rng(4)
    check_transition(RigidMove(BONDS, n_atoms=6, width=0.3).double(), target.sample(8, rng), run_at(target, rng))


class Dipole(Target):
    """Two beads a nanometre apart in a field along z, beside a third; the length is kept by the move."""

    def __init__(self):
        super().__init__({"positions": Space("line", (3, 3))}, name="dipole")

    def reduced_energy(self, state, context=None):
        x = state["positions"]
        return -2.0 * (x[:, 1, 2] - x[:, 0, 2]) + x.mean(1).square().sum(1)


def test_orientation_of_a_dipole_equals_quadrature():
    # p(cos) ~ exp(2 cos) on [-1, 1] whatever the step, so that <cos> = coth(2) - 1/2
    target, rng = Dipole(), make_rng(5)
    n = 2000
    x = torch.zeros(n, 3, 3, dtype=torch.float64)
    x[:, 1, 0] = 1.0
    run = run_at(target, rng)
    state = RigidMove([(0, 1)], n_atoms=3, width=0.3, turn=1.0, n_steps=150).step(target.state(x), run)
    dipole = state["positions"][:, 1] - state["positions"][:, 0]
    assert (dipole.norm(dim=1) - 1).abs().max() < 1e-12
    expected = 1 / math.tanh(2) - 0.5
    assert abs(dipole[:, 2].mean() - expected) / (dipole[:, 2].std() / math.sqrt(n)) < 4
    assert abs(dipole[:, 0].mean()) / (dipole[:, 0].std() / math.sqrt(n)) < 4


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="at least two molecules"):
        RigidMove([(0, 1)], n_atoms=2)
    with pytest.raises(ValueError, match=r"turn=1\.5"):
        RigidMove([(0, 1)], n_atoms=3, turn=1.5)
    target, rng = MeanFreeGaussian(4).double(), make_rng(0)
    with pytest.raises(ValueError, match=r"\(batch, 6, 3\), got \(2, 4, 3\)"):
        RigidMove(BONDS, n_atoms=6).step(target.sample(2, rng), run_at(target, rng))
