"""The block test: every stochastic block, annealed along the double well, gives the exact log Z and P(left)."""

import math

import pytest
import torch

from boltzflow.errors import UnknownNameError
from boltzflow.generators import BLOCKS, Generator, stochastic_block
from boltzflow.targets import DoubleWell, Gaussian
from boltzflow.transitions import DrawVelocities, DropVelocities
from boltzflow.transitions.metropolis import MetropolisKernel

torch.set_num_threads(1)

STEP_SIZE = {
    "metropolis": 0.3,
    "langevin": 0.004,
    "mala": 0.02,
    "hmc": 0.06,
    "unadjusted_hmc": 0.04,
    "bbk": 0.04,
    "baoab": 0.04,
    "obabo": 0.04,
}
LOG_RATIO, P_LEFT = 8.455603, 0.1556929
"""log(Z1/Z0) from exp(-|x|^2/2), and P(x1 < 0), by quadrature."""


class DriftedWithWrongTest(MetropolisKernel):
    """A Langevin proposal accepted with exp(-delta u) alone: not in detailed balance with exp(-u)."""

    needs_force = True

    def propose(self, state, run):
        before, force, _ = run.energy_and_force(state)
        x, eps = state["x"], 0.02
        drifted = x + eps * force["x"] + math.sqrt(2 * eps) * run.normal(x)
        after, _, proposal = run.energy_and_force(state.replace(x=drifted))
        return proposal, before - after


def annealed(block, *, n=4000):
    """Weighted samples along 40 levels, velocities kept from one level to the next."""
    steps = [step for k in range(1, 41) for step in block(k / 40)]
    moves = [step for step in steps if not isinstance(step, (DrawVelocities, DropVelocities))]
    if len(moves) < len(steps):
        moves = [DrawVelocities(), *moves, DropVelocities()]
    return Generator(Gaussian(2).double(), moves).sample(n, DoubleWell().double(), seed=11, batch_size=n)


def z_scores(ensemble):
    log_ratio = LOG_RATIO + math.log(2 * math.pi)  # the base is normalised
    left = ensemble.expectation(lambda state: (state["x"][:, 0] < 0).double())
    return ensemble.log_z().z_score(log_ratio), left.z_score(P_LEFT)


def test_the_exact_values_are_those_of_the_target():
    target = DoubleWell()
    assert target.log_z - math.log(2 * math.pi) == pytest.approx(LOG_RATIO, abs=2e-6)
    assert target.well.below(0.0) == pytest.approx(P_LEFT, abs=2e-6)


@pytest.mark.parametrize("kernel", BLOCKS)
def test_every_block_gives_the_exact_weights(kernel):
    ensemble = annealed(lambda level: stochastic_block(kernel, step_size=STEP_SIZE[kernel], n_steps=5, level=level))
    assert max(map(abs, z_scores(ensemble))) < 3
    assert ensemble.ess_fraction() > 0.15


def test_a_drifted_proposal_with_the_plain_metropolis_test_is_rejected():
    ensemble = annealed(lambda level: [DriftedWithWrongTest(n_steps=5, level=level)])
    assert z_scores(ensemble)[0] > 10


def test_an_unknown_kernel_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'baoab'"):
        stochastic_block("baob", step_size=0.1)
