"""Flows of rotations: the log-ratio of the very steps, exact inverses, and weights by z-score."""

import math

import pytest
import torch

from boltzflow.coordinates import rotation_exp, rotation_log
from boltzflow.generators import Generator
from boltzflow.io.config import TrainingConfig
from boltzflow.networks import RotationField, ShallowField
from boltzflow.objectives import RotationMatching, Step
from boltzflow.run import Run, make_rng
from boltzflow.targets import Gaussian, Target, UniformRotations
from boltzflow.training import Trainer
from boltzflow.transitions import EulerFlow, RotationFlow


def flow(n=2, *, n_steps=3, size=0.15):
    made, rng = RotationFlow(RotationField(n, 8), n_steps=n_steps).double(), make_rng(3)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=rng, dtype=p.dtype) * (size if p is made.field.last.weight else 0.5))
    return made


def draw(n_rows, n=2, seed=1):
    return UniformRotations(n).double().sample(n_rows, make_rng(seed))


def run():
    return Run(make_rng(2))


def test_the_base_is_uniform():
    x = draw(20_000, 1)["rotations"][:, 0]
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(x @ x.mT, eye.expand_as(x), rtol=0, atol=1e-14)
    assert (torch.linalg.det(x) > 0).all()
    # of Haar measure every entry has mean 0 and mean square 1/3, and the angle the density (1 − cos θ)/π
    assert (x.mean(0) * len(x) ** 0.5 / x.std(0)).abs().max() < 4
    assert ((x.square() - 1 / 3).mean(0) * len(x) ** 0.5 / x.square().std(0)).abs().max() < 4
    angle = rotation_log(x).norm(dim=1)
    cosine = torch.cos(angle)
    assert abs(cosine.mean() + 0.5) < 4 * cosine.std() / len(x) ** 0.5


def test_derivatives_of_the_field_are_those_of_autograd():
    field, x = flow().field, draw(4)["rotations"]

    def turned(xi):
        return field(x @ rotation_exp(xi.unflatten(1, (2, 3))), 0.3).flatten(1)

    zero = torch.zeros(4, 6, dtype=torch.float64)
    rows = torch.autograd.functional.jacobian(lambda xi: turned(xi).sum(0), zero).permute(1, 0, 2)
    torch.testing.assert_close(field.velocity_and_derivative(x, 0.3)[1], rows)


def test_the_log_ratio_is_that_of_the_map_in_haar_measure():
    made, x = flow(), draw(3)
    y, ratio = made(x, run())

    def moved(xi):
        turned = x["rotations"] @ rotation_exp(xi.unflatten(1, (2, 3)))
        end = made(x.replace(rotations=turned), run())[0]["rotations"]
        return rotation_log(y["rotations"].detach().mT @ end).flatten(1)

    jacobian = torch.autograd.functional.jacobian(
        lambda xi: moved(xi).sum(0), torch.zeros(3, 6, dtype=torch.float64)
    ).permute(1, 0, 2)
    torch.testing.assert_close(ratio, torch.linalg.slogdet(jacobian).logabsdet, rtol=0, atol=1e-10)
    assert ratio.abs().max() > 0.1


def test_many_small_steps_have_the_divergence():
    made, x = flow(n_steps=200), draw(2)
    with torch.no_grad():
        _, ratio = made(x, run())
        where, total = x["rotations"], 0.0
        for k in range(200):
            omega, derivative = made.field.velocity_and_derivative(where, k / 200)
            total = total + derivative.diagonal(dim1=1, dim2=2).sum(1) / 200
            where = where @ rotation_exp(omega / 200)
    assert (ratio - total).abs().max() < 5e-3
    assert total.abs().max() > 0.1


def test_the_inverse_is_exact():
    made, x = flow(size=0.3), draw(50)
    with torch.no_grad():
        y, ratio = made(x, run())
        back, minus = made.reverse(y, run())
    torch.testing.assert_close(back["rotations"], x["rotations"], rtol=0, atol=1e-10)
    torch.testing.assert_close(minus, -ratio, rtol=0, atol=1e-10)
    eye = torch.eye(3, dtype=torch.float64)
    assert (y["rotations"] @ y["rotations"].mT - eye).abs().max() < 1e-14
    x = draw(3)
    weights = [p for p in made.parameters() if p.requires_grad]
    seen = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=make_rng(5))
    found = torch.autograd.grad((made.reverse(x, run())[0]["rotations"] * seen).sum(), weights)
    with torch.no_grad():
        values = []
        for sign in (1e-6, -1e-6):
            for p in weights:
                p.add_(sign * torch.ones_like(p))
            values.append((made.reverse(x, run())[0]["rotations"] * seen).sum())
            for p in weights:
                p.sub_(sign * torch.ones_like(p))
    expected = (values[0] - values[1]) / 2e-6
    assert float(sum(g.sum() for g in found)) == pytest.approx(float(expected), rel=1e-5)


def test_folds_are_failures():
    with torch.no_grad():
        _, ratio = flow(n_steps=1, size=3.0)(draw(200), run())
        _, minus = flow(n_steps=1, size=3.0).reverse(draw(200), run())
    assert 0 < int(torch.isnan(ratio).sum()) < 200
    assert int(torch.isnan(minus).sum()) > 0


class MatrixFisher(Target):
    """u = −κ tr R for one rotation; log Z = κ + log(I_0(2κ) − I_1(2κ)) in Haar measure."""

    measure = "haar"

    def __init__(self, kappa):
        two = torch.tensor(2 * kappa, dtype=torch.float64)
        z = torch.special.i0(two) - torch.special.i1(two)
        super().__init__(UniformRotations(1).fields, log_z=kappa + math.log(float(z)))
        self.kappa = kappa

    def reduced_energy(self, state, context=None):
        return -self.kappa * state["rotations"].diagonal(dim1=2, dim2=3).sum((1, 2)).double()

    def sample(self, n, rng, context=None):
        proposals = UniformRotations(1).double().sample(60 * n, rng)
        keep = (
            torch.rand(60 * n, dtype=torch.float64, generator=rng).log()
            < -self.reduced_energy(proposals) - 3 * self.kappa
        )
        return proposals.index(keep).index(slice(n))


def test_matched_to_data_it_has_exact_weights():
    target = MatrixFisher(1.0)
    torch.manual_seed(0)
    made = Generator(UniformRotations(1), [RotationFlow(RotationField(1, 32), n_steps=8)]).double()
    before = made.sample(2000, target, seed=1)
    assert abs(before.log_z().z_score(target.log_z)) < 4
    data = target.sample(3000, make_rng(7))
    config = TrainingConfig(
        steps=150, batch_size=128, learning_rate=0.01, warmup_steps=5, ema_decay=0.9, seed=1, dtype="float64"
    )
    Trainer(RotationMatching(made, pairs="optimal"), config, data=data).run(progress=False)
    after = made.sample(10_000, target, seed=1, batch_size=10_000)
    assert after.ess_fraction() > 2 * before.ess_fraction()
    assert after.log_z().error < 0.03
    assert abs(after.log_z().z_score(target.log_z)) < 4
    trace = after.expectation(lambda state: state["rotations"].diagonal(dim1=2, dim2=3).sum((1, 2)))
    two = torch.tensor(2.0, dtype=torch.float64)
    i0, i1 = torch.special.i0(two), torch.special.i1(two)
    # d log Z/dκ, with I_1' = I_0 − I_1/x
    exact = 1 + (2 * i1 - 2 * (i0 - i1 / two)) / (i0 - i1)
    assert abs(trace.z_score(float(exact))) < 4


def test_the_optimal_pairs_are_closer():
    made = Generator(UniformRotations(2), [RotationFlow(RotationField(2, 4))]).double()
    step = [Step(make_rng(1), data=draw(64, seed=9)) for _ in range(2)]
    lengths = [
        RotationMatching(made, pairs=pairs)(one)[1]["path_length"]
        for pairs, one in zip(("independent", "optimal"), step, strict=True)
    ]
    assert lengths[1] < 0.8 * lengths[0]


def test_what_it_needs():
    with pytest.raises(TypeError, match=r"one RotationFlow, got \['EulerFlow'\]"):
        RotationMatching(Generator(Gaussian(2), [EulerFlow(ShallowField(2, 4), name="x")]))
