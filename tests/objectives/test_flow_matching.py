"""Flow matching: the field that it finds, pairs that leave the marginals alone, and exact weights afterwards."""

import math

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.io.config import TrainingConfig
from boltzflow.networks import EmbeddedField, VectorField
from boltzflow.objectives import FlowMatching, PathKL, Step
from boltzflow.run import make_rng
from boltzflow.targets import MeanFreeGaussian
from boltzflow.training import Trainer
from boltzflow.transitions import EulerFlow
from boltzflow.transitions.transition import Bijection

GROUP = [list(range(4))]


class Scaling(VectorField):
    """v = c x, c to be learned."""

    def __init__(self):
        super().__init__()
        self.c = torch.nn.Parameter(torch.zeros(()))

    def forward(self, positions, t=0.0):
        return self.c * (positions - positions.mean(1, keepdim=True))


def generator(field, *, scale=1.0, n_steps=4):
    return Generator(MeanFreeGaussian(4, 2, scale=scale), [EulerFlow(field, n_steps=n_steps)]).double()


def data(scale, n=400):
    return MeanFreeGaussian(4, 2, scale=scale).double().sample(n, make_rng(7))


@pytest.mark.parametrize("pairs", ["independent", "optimal", "matched", "optimal matched", "equivariant"])
def test_pairs_keep_both_marginals(pairs):
    objective = FlowMatching(generator(Scaling()), pairs=pairs, permuted=GROUP, rotations="proper")
    rows = data(2.0)
    x0, x1 = objective._ends(Step(make_rng(1), data=rows), "positions")
    norms = rows["positions"].flatten(1).norm(dim=1).sort().values
    torch.testing.assert_close(x1.flatten(1).norm(dim=1).sort().values, norms)
    base = x0.square().sum((1, 2))  # chi-squared of 6 degrees of freedom
    assert abs(base.mean() - 6.0) < 4 * (12.0 / len(base)) ** 0.5


def test_close_pairs_make_short_paths():
    lengths = {}
    for pairs in ("independent", "optimal", "matched", "optimal matched", "equivariant"):
        objective = FlowMatching(generator(Scaling()), pairs=pairs, permuted=GROUP, rotations="all")
        lengths[pairs] = objective(Step(make_rng(1), data=data(2.0)))[1]["path_length"]
    assert max(lengths["optimal"], lengths["matched"]) < 0.7 * lengths["independent"]
    assert lengths["optimal matched"] < min(lengths["optimal"], lengths["matched"])
    assert lengths["equivariant"] < lengths["optimal matched"]


def test_the_minimum_is_the_conditional_mean():
    # with x_t = (1 − t) x_0 + t x_1 of scales 1 and s the error of v = c x is least, over t, at c = ∫ a/∫ b
    s, t = 2.0, torch.linspace(0, 1, 20001, dtype=torch.float64)
    c = torch.trapezoid(t * s**2 - (1 - t), t) / torch.trapezoid((1 - t) ** 2 + t**2 * s**2, t)
    made = generator(Scaling())
    rows = data(s, 100_000)
    loss, _ = FlowMatching(made)(Step(make_rng(2), data=rows))
    slope = torch.autograd.grad(loss, made.transitions[0].field.c)[0]
    with torch.no_grad():
        made.transitions[0].field.c.fill_(c)
    loss_there, _ = FlowMatching(made)(Step(make_rng(2), data=rows))
    slope_there = torch.autograd.grad(loss_there, made.transitions[0].field.c)[0]
    assert loss_there < loss
    assert slope_there.abs() < 0.02 * slope.abs()


def trained(steps, objective, rows=None):
    sizes = {"batch_size": 128, "reverse_batch_size": 128, "warmup_steps": 5, "ema_decay": 0.9}
    config = TrainingConfig(steps=steps, learning_rate=0.01, seed=1, dtype="float64", **sizes)
    Trainer(objective, config, data=rows).run(progress=False)


def test_trained_on_samples_it_has_exact_weights_and_path_gradients_improve_it():
    target = MeanFreeGaussian(4, 2, scale=2.0).double()
    torch.manual_seed(0)
    field = EmbeddedField([0] * 4, 2, reach=8.0, hidden=8, n_features=4, n_basis=6)
    made = generator(field, n_steps=3)
    untrained = made.sample(500, target, seed=3).ess_fraction()
    trained(100, FlowMatching(made, pairs="optimal matched", permuted=GROUP, rotations="all"), data(2.0))
    matched = made.sample(2000, target, seed=3)
    log_z = matched.log_z()
    assert abs(log_z.value - 0.0) < 4 * log_z.error  # both are normalised
    assert matched.ess_fraction() > 2 * untrained
    trained(25, PathKL(made, target, forward=1.0))
    tuned = made.sample(2000, target, seed=3)
    assert tuned.ess_fraction() > matched.ess_fraction()


class Double(Bijection):
    """Twice the positions."""

    def forward(self, state, run):
        ratio = torch.full((len(state),), 6 * math.log(2.0), dtype=torch.float64)
        return state.replace(positions=2 * state["positions"]), ratio

    def reverse(self, state, run):
        ratio = torch.full((len(state),), -6 * math.log(2.0), dtype=torch.float64)
        return state.replace(positions=state["positions"] / 2), ratio


def test_what_stands_behind_the_flow_is_inverted_on_the_data():
    plain, scaled = generator(Scaling()), generator(Scaling())
    scaled.transitions.append(Double())
    _, x1 = FlowMatching(plain)._ends(Step(make_rng(1), data=data(2.0)), "positions")
    _, halved = FlowMatching(scaled)._ends(Step(make_rng(1), data=data(2.0)), "positions")
    torch.testing.assert_close(2 * halved, x1)


def test_it_needs_one_flow():
    empty = Generator(MeanFreeGaussian(4, 2), [])
    with pytest.raises(TypeError, match="one EulerFlow or another flow along a field, got 0"):
        FlowMatching(empty)


def test_labelled_particles_are_not_exchanged():
    labelled = generator(EmbeddedField([0, 1, 2, 3], 2, reach=4.0))
    with pytest.raises(ValueError, match=r"\[0, 1\] of types \[0, 1\].*leave permuted out, or group by type"):
        FlowMatching(labelled, pairs="equivariant", permuted=[[0, 1]])
    assert FlowMatching(labelled, pairs="equivariant").permuted == []
    with pytest.raises(TypeError, match="does not say which particles are alike; give permuted and rotations"):
        FlowMatching(generator(Scaling()), pairs="equivariant")


def test_data_of_another_kind_are_refused():
    objective = FlowMatching(generator(Scaling()))
    rows = data(1.0, 20)
    shifted = rows.replace(positions=rows["positions"] + 0.3)
    with pytest.raises(
        ValueError, match=r"without a centre of mass, got centroids of up to 0\.424; subtract positions"
    ):
        objective(Step(make_rng(1), data=shifted))
    fewer = MeanFreeGaussian(3, 2).double().sample(20, make_rng(7))
    with pytest.raises(ValueError, match=r"expected data with 'positions' of shape \(4, 2\), got .*\(3, 2\)"):
        objective(Step(make_rng(1), data=fewer))


@pytest.mark.parametrize("pairs", ["independent", "optimal"])
def test_rotated_pairs_forget_how_the_data_lie(pairs):
    x = torch.tensor([[1.0, 0.5], [-1.0, 0.5], [0.5, -1.0], [-0.5, 0.0]], dtype=torch.float64)
    rows = MeanFreeGaussian(4, 2).double().state(x.expand(400, 4, 2))
    ends = {}
    for rotated in (False, True):
        objective = FlowMatching(generator(Scaling()), pairs=pairs, rotated=rotated)
        ends[rotated] = objective._ends(Step(make_rng(1), data=rows), "positions")
    lengths = [(x1 - x0).flatten(1).norm(dim=1) for x0, x1 in ends.values()]
    torch.testing.assert_close(*lengths)  # both ends turn together
    angles = torch.atan2(ends[True][1][:, 0, 1], ends[True][1][:, 0, 0])
    for k in (1, 2):
        assert max(abs((k * angles).cos().mean()), abs((k * angles).sin().mean())) < 4 * (0.5 / 400) ** 0.5
    # rotations, not reflections: the order of the particles around the centre stays
    area = ends[True][1][:, 0, 0] * ends[True][1][:, 1, 1] - ends[True][1][:, 0, 1] * ends[True][1][:, 1, 0]
    torch.testing.assert_close(area, torch.full_like(area, 1.0))


def test_what_comes_before_a_flow_keeps_hand_and_labels():
    field = EmbeddedField([0, 0, 1, 1], 2, reach=4.0, hidden=4).double()
    base = MeanFreeGaussian(4, 2).double()
    alone = FlowMatching(Generator(base, [EulerFlow(field)]), pairs="matched")
    after = FlowMatching(Generator(base, [Double(), EulerFlow(field)]), pairs="matched")
    assert (alone.permuted, alone.rotations) == ([[0, 1], [2, 3]], "all")
    assert (after.permuted, after.rotations) == ([], "proper")
