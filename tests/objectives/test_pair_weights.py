"""Weighted pairs: both marginals are what they were, and the closed form of the first correction."""

import pytest
import torch

from boltzflow.generators import Generator
from boltzflow.io import parse_config
from boltzflow.networks import PairField
from boltzflow.objectives import FlowMatching, Step, build_objective, pair_log_weights
from boltzflow.run import make_rng
from boltzflow.targets import MeanFreeGaussian
from boltzflow.transitions import EulerFlow


def batch(n, seed, d=3):
    rng = make_rng(seed)
    x0 = torch.randn(n, d, dtype=torch.float64, generator=rng)
    x1 = 0.5 * torch.randn(n, d, dtype=torch.float64, generator=rng) + torch.tensor([1.5, 0.0, -0.5])[:d]
    return x0, x1


def plan(cost, entropy):
    """Mean over all pairings of the weight of every pair: the weights of batches that are cyclically shifted."""
    n = len(cost)
    rows = torch.arange(n)
    found = torch.zeros(n, n, dtype=torch.float64)
    for shift in range(n):
        columns = (rows + shift) % n
        found[rows, columns] = pair_log_weights(cost[:, columns], entropy=entropy).exp()
    return found


def test_over_all_pairings_every_row_counts_once():
    x0, x1 = batch(40, 1)
    cost = torch.cdist(x0, x1).square()
    found = plan(cost, 0.3)
    assert (found.mean(0) - 1).abs().max() < 1e-5
    assert (found.mean(1) - 1).abs().max() < 1e-5
    tilted = torch.exp(-cost / (0.3 * cost.mean()))
    tilted = tilted / tilted.mean()
    assert (tilted.mean(0) - 1).abs().max() > 0.5  # what it corrects


def test_both_marginals_are_restored():
    differences = {"base": [], "data": [], "tilted base": [], "tilted data": []}
    for seed in range(400):
        x0, x1 = batch(64, seed)
        cost = torch.cdist(x0, x1).square()
        w = pair_log_weights(cost, entropy=0.5).exp()
        plain = torch.exp(-cost.diagonal() / (0.5 * cost.mean()))
        plain = plain / plain.mean()
        for name, rows in (("base", x0), ("data", x1)):
            f = torch.cat([rows, rows.square()], 1)
            differences[name].append(((w - 1)[:, None] * f).mean(0))
            differences[f"tilted {name}"].append(((plain - 1)[:, None] * f).mean(0))
    z = {name: torch.stack(rows).mean(0) / torch.stack(rows).std(0) * 20 for name, rows in differences.items()}
    assert max(z["base"].abs().max(), z["data"].abs().max()) < 4
    assert min(z["tilted base"].abs().max(), z["tilted data"].abs().max()) > 10


def test_the_first_correction_is_the_closed_form_of_a_normal_base():
    # E over x ~ N(0, I) of exp(−|x − y|²/2ε) = (ε/(1 + ε))^(d/2) exp(−|y|²/(2 (1 + ε)))
    epsilon, d = 0.7, 3
    x, y = torch.randn(200_000, d, dtype=torch.float64, generator=make_rng(3)), batch(5, 4)[1]
    k = torch.exp(-0.5 * torch.cdist(y, x).square() / epsilon)
    exact = (epsilon / (1 + epsilon)) ** (d / 2) * torch.exp(-0.5 * y.square().sum(1) / (1 + epsilon))
    assert ((k.mean(1) - exact) / (k.std(1) / len(x) ** 0.5)).abs().max() < 4


def test_short_pairs_count_more_and_paths_become_shorter():
    lengths = {}
    data = MeanFreeGaussian(4, 2, scale=2.0).double().sample(400, make_rng(7))
    for entropy, pairs in ((None, "independent"), (0.2, "independent"), (0.05, "independent"), (0.3, "matched")):
        made = Generator(MeanFreeGaussian(4, 2), [EulerFlow(PairField([0] * 4, 2, reach=6.0))]).double()
        _, logged = FlowMatching(made, pairs=pairs, entropy=entropy)(Step(make_rng(1), data=data))
        lengths[entropy, pairs] = float(logged["path_length"])
        assert ("pairs_ess_fraction" in logged) == (entropy is not None)
        if entropy is not None:
            assert 0.0 < logged["pairs_ess_fraction"] < 0.9
    assert lengths[0.05, "independent"] < 0.9 * lengths[0.2, "independent"] < 0.85 * lengths[None, "independent"]
    assert lengths[0.3, "matched"] < 0.7 * lengths[None, "independent"]


def test_what_does_not_go_together_is_refused():
    made = Generator(MeanFreeGaussian(4, 2), [EulerFlow(PairField([0] * 4, 2, reach=6.0))]).double()
    with pytest.raises(ValueError, match="nothing to weigh; set pairs to 'independent' or 'matched'"):
        FlowMatching(made, pairs="equivariant", entropy=0.1)
    with pytest.raises(ValueError, match="expected a positive number"):
        pair_log_weights(torch.ones(2, 2), entropy=0.0)
    values = {"weight": 1.0, "pairs": "matched", "entropy": 0.2}
    config = parse_config({"system": "dw4", "objective": {"likelihood": 0.0, "flow_matching": values}}).objective
    assert config.methods == ("FlowMatching", "pair_log_weights")
    assert build_objective(made, MeanFreeGaussian(4, 2), config).entropy == 0.2
