"""Torsion-block moves: blocks of a graph, a normalised density, and exact populations whatever the density is."""

import itertools
import math

import pytest
import torch

from boltzflow.coordinates.dihedral import dihedral_angles
from boltzflow.run import make_rng
from boltzflow.simulation import ParallelTempering, soft_axes
from boltzflow.systems import load_system
from boltzflow.testing import assert_detailed_balance, check_transition, run_at
from boltzflow.transitions.compiled import uncompiled
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.torsion_block_flow import BlockTables, TorsionBlockFlow
from boltzflow.transitions.torsion_blocks import FAMILIES, torsion_blocks
from boltzflow.transitions.torsion_density import BlockRows, TorsionDensity
from boltzflow.transitions.torsion_move import rotatable_axes
from tests.transitions.polymer import BONDS, Polymer, chain_blocks, moments

# a trunk 0-1-2-3-4-5-6 with a branch of two axes on 3, and the leaves that make them rotatable
BRANCHED = [*[(k, k + 1) for k in range(6)], (3, 7), (7, 8), (8, 9)]


@pytest.fixture(autouse=True)
def eager():
    with uncompiled():
        yield


def arbitrary(blocks, seed=5, scale=0.5):
    """A density as a network without any training gives it, but far from uniform."""
    torch.manual_seed(seed)
    density = TorsionDensity.of(blocks, bins=6, hidden=(16,)).double().requires_grad_(False)
    for network in density.networks:
        for layer in network.linears:
            torch.nn.init.normal_(layer.weight, std=scale)
    return density


class Uncorrected(TorsionBlockFlow):
    """Forgets the density of what it proposes."""

    def propose(self, state, run):
        trial, _ = super().propose(state, run)
        return trial, run.energy(state)[0] - run.energy(trial)[0]


def test_the_polymers_samples_are_of_its_energy():
    target = Polymer()
    state = target.sample(20, make_rng(1))
    x = state["positions"]
    torch.testing.assert_close(
        dihedral_angles(x, torch.tensor([[0, 1, 2, 3]]))[:, 0], target.torsions(20, make_rng(1))[:, 0]
    )
    # a mean of HMC from exact samples must not drift
    sample = target.sample(4000, make_rng(2))
    moved = HMC(0.02, n_leapfrog=5, n_steps=10).step(sample, run_at(target, make_rng(3)))
    change = moments(target, moved) - moments(target, sample)
    assert (change.mean(0) / change.std(0) * math.sqrt(4000)).abs().max() < 4


def test_blocks_of_a_branched_tree():
    axes = rotatable_axes(BRANCHED, n_atoms=10)
    pairs = axes.pairs.tolist()
    made = torsion_blocks(axes, BRANCHED, [6] * 10, families=FAMILIES, size=2)
    found = {}
    for kind, members in zip(made.kind.tolist(), made.axes.tolist(), strict=True):
        family = made.labels[kind].split(":")[0]
        found.setdefault(family, []).append([tuple(pairs[m]) for m in members if m >= 0])
    assert found["hinge"] == [[(1, 2)], [(2, 3)], [(3, 4)], [(4, 5)]]
    assert found["pivot"] == [[(1, 2), (2, 3)], [(2, 3), (3, 4)], [(3, 4), (4, 5)]]
    assert found["side"] == [[(3, 7), (7, 8)], [(1, 2), (2, 3)], [(4, 5), (3, 4)]]
    assert "crankshaft" not in found
    # the two ends look alike: one kind; and an axis is conditioned on the ones nearest to it, never on itself
    hinges = [k for k in made.kind.tolist() if made.labels[k].startswith("hinge")]
    assert hinges[0] == hinges[3] != hinges[1]
    for members, given in zip(made.axes.tolist(), made.given.tolist(), strict=True):
        assert not {m for m in members if m >= 0} & {a for a, b in given if b < 0}
    row = [made.labels[k].split(":")[0] for k in made.kind.tolist()].index("hinge") + 1
    assert [pairs[a] for a, _ in made.given[row].tolist()] == [[1, 2], [3, 4], [3, 7], [4, 5]]


def test_peptide_blocks_are_side_chains_residues_and_peptide_planes():
    system = load_system("trp_cage")
    axes = soft_axes(rotatable_axes(system.bonds, n_atoms=system.n_atoms), system.bonds, system.elements)
    made = torsion_blocks(axes, system.bonds, system.elements, families=FAMILIES)
    name = [f"{atom.residue}-{atom.name}" for atom in system.topology.atoms]
    found = [
        [tuple(sorted((name[i], name[j]))) for i, j in (axes.pairs[m].tolist() for m in members if m >= 0)]
        for members in made.axes.tolist()
    ]
    assert [("TRP6-CA", "TRP6-CB"), ("TRP6-CB", "TRP6-CG")] in found  # χ1 and χ2
    assert [("LYS8-CD", "LYS8-CG"), ("LYS8-CD", "LYS8-CE")] in found  # χ3 and χ4
    assert [("LEU7-CA", "LEU7-N"), ("LEU7-C", "LEU7-CA")] in found  # φ and ψ
    assert [("LEU7-C", "LEU7-CA"), ("LYS8-CA", "LYS8-N")] in found  # ψ and the next φ
    assert sum(len(members) == 2 and "PRO" in str(members[1]) for members in found) == 0
    kinds = dict(zip([tuple(f) for f in found], made.kind.tolist(), strict=True))
    assert kinds[("SER13-CA", "SER13-CB"),] == kinds[("SER14-CA", "SER14-CB"),]


@pytest.mark.parametrize("family", ["hinge", "pivot", "crankshaft", "side"])
def test_a_turn_changes_the_coordinates_of_its_block_and_nothing_else(family):
    rng = make_rng(2)
    system = load_system("chignolin")
    axes = soft_axes(rotatable_axes(system.bonds, n_atoms=system.n_atoms), system.bonds, system.elements)
    made = torsion_blocks(axes, system.bonds, system.elements, families=(family,))
    tables, block = BlockTables(made), torch.arange(len(made))
    x = system.positions + 0.02 * torch.randn(len(made), system.n_atoms, 3, generator=rng, dtype=torch.float64)
    rows = tables.read(x, block)
    change = 2 * torch.randn(rows.values.shape, generator=rng, dtype=torch.float64) * rows.present
    y = tables.turn(x, block, change)
    after = tables.read(y, block)
    for found, expected in ((after.values - rows.values, change), (after.given - rows.given, 0 * rows.given)):
        assert torch.remainder(found - expected + 3, 2 * math.pi).sub(3).abs().max() < 1e-9
    turned = torch.remainder(made.torsions(y) - made.torsions(x) + 3, 2 * math.pi).sub(3).abs() > 1e-9
    for row, members in zip(turned, made.axes.tolist(), strict=True):
        assert set(row.nonzero()[:, 0].tolist()) == {m for m in members if m >= 0}
    for i, j in system.bonds:
        torch.testing.assert_close((y[:, i] - y[:, j]).norm(dim=1), (x[:, i] - x[:, j]).norm(dim=1))


def test_the_density_is_normalised_and_samples_have_it():
    made = chain_blocks(("hinge", "pivot"))
    density = arbitrary(made, scale=0.25)
    pivot = int(torch.nonzero(made.leading[:, 1] >= 0)[0, 0])
    n = 240
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * math.pi - math.pi
    values = torch.cartesian_prod(grid, grid)
    block = torch.full((len(values),), pivot)
    given = torch.tensor([0.3, -1.2, 2.0, 0.0], dtype=torch.float64).expand(len(values), 4)
    known = torch.tensor([True, True, False, False]).expand(len(values), 4)
    rows = BlockRows(block, values, torch.ones_like(values, dtype=torch.bool), given, known)
    kind = made.kind[block]
    p = density.log_prob(kind, rows).exp()
    assert abs(float(p.sum()) * (2 * math.pi / n) ** 2 - 1) < 2e-3  # splines are smooth between their knots only
    assert float(p.max() / p.min()) > 20
    # with one coordinate missing the factor is gone
    single = rows._replace(present=torch.tensor([True, False]).expand(len(values), 2))
    q = density.log_prob(kind, single).exp()
    assert abs(float(q[::n].sum()) * 2 * math.pi / n - 1) < 2e-3
    rng = make_rng(3)
    m = 20_000
    few = BlockRows(*[part[:1].expand(m, *part.shape[1:]) for part in rows])
    drawn, log_q = density.sample(kind[:1].expand(m), few, torch.rand(m, 2, generator=rng, dtype=torch.float64))
    torch.testing.assert_close(log_q, density.log_prob(kind[:1].expand(m), few._replace(values=drawn)))
    for f in (lambda v: v[:, 0].cos(), lambda v: v[:, 1].sin(), lambda v: (v[:, 0] - v[:, 1]).cos()):
        exact = float((p * f(values)).sum() / p.sum())
        assert abs(float(f(drawn).mean()) - exact) / float(f(drawn).std()) * math.sqrt(m) < 3.5


def test_the_contract_of_kernels_holds_with_an_arbitrary_density():
    made = chain_blocks(("hinge", "pivot"))
    kernel, target, rng = TorsionBlockFlow(made, arbitrary(made)), Polymer(), make_rng(0)
    check_transition(kernel, target.sample(8, rng), run_at(target, rng))
    assert_detailed_balance(kernel, target, n=20_000, rng=rng)


@pytest.mark.parametrize("families", [("hinge",), ("pivot",), ("crankshaft",), ("hinge", "pivot")])
def test_exact_samples_stay_exact_and_without_the_density_they_do_not(families):
    target = Polymer()
    made = chain_blocks(families)
    sample = target.sample(6000, make_rng(4))
    weights = torch.rand(len(made), generator=make_rng(9)) + 0.1
    z = {}
    for kernel in (TorsionBlockFlow, Uncorrected):
        moved = kernel(made, arbitrary(made), weights=weights, n_steps=6).step(sample, run_at(target, make_rng(5)))
        change = moments(target, moved) - moments(target, sample)
        z[kernel] = float((change.mean(0) / change.std(0) * math.sqrt(len(change))).nan_to_num().abs().max())
    assert z[TorsionBlockFlow] < 4
    assert z[Uncorrected] > 10


def simulation(seed=6):
    target, made = Polymer(), chain_blocks(("hinge", "pivot"))
    return ParallelTempering(
        target,
        target.sample(80, make_rng(7)),
        temperatures=[300.0, 450.0],
        n_chains=80,
        kernels=[HMC(0.03, n_leapfrog=2), TorsionBlockFlow(made, arbitrary(made), n_steps=2)],
        n_relax=0,
        seed=seed,
    )


def test_a_tempered_chain_has_the_exact_means():
    chains = simulation()
    chains.burn_in(40)
    result = chains.run(40)
    x = result.samples["positions"]
    target = Polymer()
    found = moments(target, target.state(x.flatten(0, 1))).unflatten(0, x.shape[:2]).mean(0)
    exact = moments(target, target.sample(40_000, make_rng(8)))
    error = (found.var(0) / len(found) + exact.var(0) / len(exact)).sqrt()
    assert ((found.mean(0) - exact.mean(0)) / error).abs().max() < 3.5
    assert all(0.02 < a < 0.9 for a in result.diagnostics["acceptance"][1])


def test_a_resumed_simulation_goes_on_bit_for_bit():
    whole, broken, resumed = simulation(), simulation(), simulation()
    expected = whole.run(6)
    broken.run(2)
    resumed.load_state_dict(broken.state_dict())
    rest = resumed.run(4)
    assert torch.equal(rest.samples["positions"], expected.samples["positions"][2:])
    assert rest.diagnostics["acceptance"] == expected.diagnostics["acceptance"]


def test_blocks_are_chosen_by_their_weights_and_counted():
    made, target = chain_blocks(("hinge",)), Polymer()
    kernel = TorsionBlockFlow(made, arbitrary(made), weights=[0.0, 1.0, 3.0], n_steps=4)
    state = target.sample(2000, make_rng(1))
    moved = kernel.step(state, run_at(target, make_rng(2)))
    changed = (made.torsions(moved["positions"]) - made.torsions(state["positions"])).abs() > 1e-6
    assert not bool(changed[:, 0].any())
    trials = kernel.trials.tolist()
    assert trials[0] == 0
    assert sum(trials) == 8000
    assert abs(trials[2] - 6000) / math.sqrt(8000 * 0.75 * 0.25) < 3.5
    assert abs(float(kernel.accepted.sum()) / 8000 - float(kernel.last_acceptance.mean())) < 1e-12


def test_what_cannot_be_used_is_named():
    axes = rotatable_axes(BONDS, n_atoms=6)
    with pytest.raises(ValueError, match=r"expected some of .*got \['loop'\]"):
        torsion_blocks(axes, BONDS, [6] * 6, families=("loop",))
    with pytest.raises(ValueError, match="size >= 1"):
        torsion_blocks(axes, BONDS, [6] * 6, size=0)
    rigid = [(0, 1), (1, 2), (2, 0)]
    with pytest.raises(ValueError, match="has no block of"):
        torsion_blocks(rotatable_axes(rigid, n_atoms=3), rigid, [6] * 3)
    made = chain_blocks(("hinge",))
    with pytest.raises(ValueError, match="no blocks of"):
        made.select(["side"])
    with pytest.raises(ValueError, match="3 non-negative numbers"):
        TorsionBlockFlow(made, arbitrary(made), weights=[1.0, 1.0])
    target = Polymer()
    longer = torsion_blocks(rotatable_axes([*BONDS, (5, 6)], n_atoms=7), [*BONDS, (5, 6)], [6] * 7, families=("hinge",))
    with pytest.raises(ValueError, match="expected positions"):
        TorsionBlockFlow(longer, arbitrary(longer)).step(target.sample(2, make_rng(1)), run_at(target, make_rng(1)))


def test_crankshafts_join_axes_that_one_bond_joins():
    made = chain_blocks(("crankshaft",))
    assert [made.atoms[m, 1:3].tolist() for m in made.axes[0].tolist()] == [[1, 2], [3, 4]]
    assert made.sense.tolist() == [[1, -1]]
    assert made.given[0, 0].tolist() == made.axes[0].tolist()  # their sum
    assert list(itertools.chain(*made.leading.tolist())) == [0]
