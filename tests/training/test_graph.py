"""CUDA graphs: what can be captured, the numbers of the eager step, and refusals elsewhere."""

import pytest
import torch

from boltzflow.objectives import MaximumLikelihood, Mixture, PathKL, ReverseKL
from boltzflow.training import graph
from boltzflow.training.graph import StepGraph
from tests.training import two_processes


def reverse_kl(device="cpu"):
    generator = two_processes.flow().to(device)
    target = two_processes.target().to(device)
    return Mixture([(1.0, ReverseKL(generator, target)), (0.3, PathKL(generator, target))])


def parameters(run):
    return torch.cat([p.detach().flatten() for p in run.parameters])


class Replayed:
    """Does what a graph does: the step again, its results in the memory of the first time."""

    def __init__(self, step, rng, parameters):
        self.step, self.rng, self.parameters = step, rng, parameters
        graph._forget(parameters)
        self.outputs = step(rng)
        self.gradients = [p.grad for p in parameters]

    def replay(self):
        graph._forget(self.parameters)
        loss, logged, ledger = self.step(self.rng)
        self.outputs[0].copy_(loss)
        for name, value in logged.items():
            self.outputs[1][name].copy_(value)
        for name, count in ledger.nonfinite.items():
            self.outputs[2].nonfinite[name].copy_(count)
        for gradient, p in zip(self.gradients, self.parameters, strict=True):
            gradient.copy_(p.grad)


@pytest.fixture
def replays(monkeypatch):
    def capture(step, rng, parameters):
        found = Replayed(step, rng, parameters)
        return found, found.outputs

    monkeypatch.setattr(graph, "_capture", capture)


@pytest.mark.parametrize("shards", [1, 2])
def test_replayed_steps_have_the_numbers_of_eager_ones(shards, replays):
    eager, replayed = (
        two_processes.trainer(loss=reverse_kl(), shards=shards, cuda_graph=graphed) for graphed in (False, True)
    )
    first, second = [], []
    for run, logged in ((eager, first), (replayed, second)):
        step = run.train_step
        run.train_step = lambda step=step, logged=logged: logged.append(step()) or logged[-1]
        run.run()
    assert torch.equal(parameters(replayed), parameters(eager))
    assert [{k: float(v) for k, v in row.items()} for row in second] == [
        {k: float(v) for k, v in row.items()} for row in first
    ]
    assert replayed.ledger.as_dict() == eager.ledger.as_dict()
    assert eager.ledger.n_energy() == 12 * 2 * 8


def test_steps_that_cannot_be_captured_are_refused():
    with pytest.raises(ValueError, match="needs a CUDA device"):
        two_processes.trainer(loss=reverse_kl(), cuda_graph=True).run()
    likelihood = MaximumLikelihood(two_processes.flow())
    for loss in (likelihood, Mixture([(2.0, likelihood)])):
        with pytest.raises(ValueError, match="looks at its numbers to decide"):
            two_processes.trainer(loss=loss, cuda_graph=True).run()


@pytest.mark.gpu
def test_a_graph_trains_as_the_eager_step_does():
    eager, captured = (two_processes.trainer(loss=reverse_kl("cuda"), cuda_graph=graphed) for graphed in (False, True))
    for run in (eager, captured):
        run.run()
    torch.testing.assert_close(parameters(captured), parameters(eager), rtol=1e-10, atol=1e-12)
    assert captured.ledger.as_dict() == eager.ledger.as_dict()


@pytest.mark.gpu
def test_a_look_at_the_device_cannot_be_captured():
    parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))

    def step(rng):
        loss = parameter.sum() if bool(parameter.sum() > 0) else -parameter.sum()
        loss.backward()
        return loss.detach(), {}, None

    with pytest.raises(ValueError, match="cannot be captured"):
        StepGraph(step, [parameter], parameter.device)
