"""Run: evaluation cache, ledger, gradients of non-finite energies, and random streams."""

import pickle

import pytest
import torch

from boltzflow.run import Ledger, Run, make_rng
from boltzflow.state import State
from boltzflow.targets import Gaussian
from boltzflow.targets.target import Target


class Cone(Target):
    """u = sqrt(x): NaN and an infinite slope at the edge of its support."""

    def __init__(self, name=None):
        super().__init__(Gaussian(1).fields, name=name)

    def reduced_energy(self, state, context=None):
        scale = 1.0 if context is None else context["scale"]
        return scale * state["x"].sqrt().sum(1)


def points(*values):
    return Cone().state(torch.tensor(values, dtype=torch.float64)[:, None])


def test_an_evaluation_is_cached_for_its_target_its_context_and_its_values():
    one, other, run = Cone("one"), Cone("other"), Run(make_rng(0), {"scale": 1.0})
    u, state = run.evaluate(one, points(1.0, 4.0))
    assert u.tolist() == [1.0, 2.0]
    again, state = run.evaluate(one, state)
    assert again is u
    assert run.ledger.n_energy() == 2
    # an equal Target that is another object, another context, other values: evaluated anew
    run.evaluate(other, state)
    assert (run.ledger.n_energy("one"), run.ledger.n_energy("other")) == (2, 2)
    hot = Run(make_rng(0), {"scale": 3.0}, run.ledger)
    assert hot.evaluate(one, state)[0].tolist() == [3.0, 6.0]
    assert run.evaluate(one, state.replace(x=state["x"] * 4))[0].tolist() == [2.0, 4.0]
    assert run.ledger.n_energy("one") == 6


def test_a_cached_energy_without_force_does_not_stand_for_both():
    run, target = Run(make_rng(0)), Cone()
    _, state = run.evaluate(target, points(1.0, 4.0))
    u, force, state = run.evaluate_with_force(target, state)
    assert u.tolist() == [1.0, 2.0]
    assert force["x"].flatten().tolist() == [-0.5, -0.25]
    assert (run.ledger.n_energy(), run.ledger.n_force()) == (4, 2)
    run.evaluate_with_force(target, state)
    run.evaluate(target, state)
    assert (run.ledger.n_energy(), run.ledger.n_force()) == (4, 2)


def test_nan_energies_become_infinite_and_are_counted():
    run, target = Run(make_rng(0)), Cone("cone")
    u, _ = run.evaluate(target, points(-1.0, 4.0, torch.nan))
    assert u.tolist() == [torch.inf, 2.0, torch.inf]
    assert run.ledger.as_dict() == {"energy": {"cone": 3}, "force": {"cone": 0}, "nonfinite": {"cone": 2}}


def test_energies_are_float64_whatever_the_state():
    u, _ = Run(make_rng(0)).evaluate(Cone(), points(1.0).to(dtype=torch.float32))
    assert u.dtype == torch.float64


def test_a_free_target_is_not_counted_and_only_that_object():
    base = Gaussian(1).double()
    run = Run(make_rng(0), free=(base,))
    run.evaluate(base, points(1.0))
    assert run.ledger.n_energy() == 0
    run.evaluate(Gaussian(1).double(), points(1.0))
    assert run.ledger.n_energy() == 1


def test_rows_of_non_finite_energy_send_no_gradient_back():
    x = torch.tensor([[-1.0], [4.0]], dtype=torch.float64, requires_grad=True)
    run = Run(make_rng(0))
    u = run.differentiable_energy(Cone(), Cone().state(x))
    assert u.tolist() == [torch.inf, 2.0]
    torch.where(torch.isfinite(u), u, 0.0).sum().backward()
    assert x.grad.flatten().tolist() == [0.0, 0.25]
    assert (run.ledger.n_energy(), run.ledger.n_force()) == (2, 2)


def test_ledgers_add_up_and_come_back_from_their_dictionary():
    a, b = Ledger(), Ledger()
    a.count("x", energy=3, force=2, nonfinite=torch.tensor(1))
    b.count("x", energy=4)
    b.count("y", energy=1, force=1)
    a.merge(b)
    assert (a.n_energy("x"), a.n_energy(), a.n_force(), a.n_energy("z")) == (7, 8, 3, 0)
    back = Ledger.from_dict(a.as_dict())
    assert back.as_dict() == a.as_dict() == pickle.loads(pickle.dumps(a)).as_dict()
    back.count("x", energy=1)
    assert back.n_energy() == 9


def test_streams_are_named_by_all_of_their_numbers():
    names = [(5,), (5, 0), (5, 1), (5, 0, 0), (6,), (6, 0), (2**62 + 5,), (2**62 + 5, 0)]
    draws = [torch.rand(1, generator=make_rng(*name)).item() for name in names]
    assert len(set(draws)) == len(names)
    assert draws == [torch.rand(1, generator=make_rng(*name)).item() for name in names]


def test_noise_has_the_shape_and_dtype_that_is_asked_for():
    run = Run(make_rng(0))
    for dtype in (torch.float32, torch.float64):
        like = torch.zeros(3, 2, dtype=dtype)
        assert run.normal(like).dtype == run.uniform(like).dtype == dtype
        assert run.normal(like).shape == (3, 2)


def test_a_run_without_a_level_says_what_is_missing():
    with pytest.raises(ValueError, match="needs the energy of a level"):
        Run(make_rng(0)).energy(State({"x": torch.zeros(1, 1)}, Cone().fields))
