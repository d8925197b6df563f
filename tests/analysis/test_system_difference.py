"""Differences between two systems: exact harmonic pairs by every path, coverage, refusals, pairs of molecules."""

import json
import math

import mdtraj
import numpy as np
import pytest
import torch
import yaml

from boltzflow.analysis.intermediate_states import IntermediateStates, Recorded, neighbour_overlaps
from boltzflow.analysis.learned_difference import learned_difference, tuned_annealing
from boltzflow.analysis.system_difference import _two_sided, system_difference
from boltzflow.analysis.system_pair import check_same_atoms, energy_ratio, paired_starts, paired_targets
from boltzflow.ensemble import Ensemble, Provenance
from boltzflow.errors import FormatError, LowOverlapError
from boltzflow.run import make_rng
from boltzflow.state import Space
from boltzflow.systems import load_system
from boltzflow.targets import Harmonic
from boltzflow.targets.target import Target
from boltzflow.transitions import spline_kernels
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.metropolis import RandomWalkMetropolis

KERNELS = [HMC(0.5, n_leapfrog=3)]


def harmonic(mean=0.0, precision=1.0, offset=0.0):
    d = 2
    one = torch.ones(d, dtype=torch.float64)
    return Harmonic(precision * one, mean=mean * one, offset=offset)


NEAR = harmonic(0.3, 1.3, 0.7)
FAR = harmonic(6.0, 2.0, -1.0)


def difference(a, b, **options):
    start = a.state(torch.zeros(1, 2, dtype=torch.float64))
    arguments = {"n": 1600, "n_chains": 32, "n_burn_in": 30, "sweeps_per_record": 1, "seed": 1}
    return system_difference(a, b, start=start, kernels=KERNELS, **{**arguments, **options})


@pytest.mark.parametrize(
    ("method", "options", "found_by"),
    [
        ("exp", {}, "exp"),
        ("bar", {}, "bar"),
        ("bar", {"max_temperature": 1.0}, "bar"),
        ("mbar", {"lambdas": [0.0, 0.4, 1.0]}, "mbar"),
        ("auto", {}, "exp"),
    ],
)
def test_a_near_pair_by_every_method(method, options, found_by):
    a = harmonic()
    found = difference(a, NEAR, method=method, **options)
    assert found.method == found_by
    assert abs(found.estimate.z_score(a.log_z - NEAR.log_z)) < 4
    assert found.estimate.error < 0.05
    assert found.estimate.degrees == 31, "errors are between the 32 ladders"
    assert all(row["r_hat"] < 1.1 for row in found.states)
    assert found.ledger.n_energy(a.name) > 0
    assert found.diagnostics["n_burn_in"] >= 30


def test_the_sign_turns_with_the_direction():
    a = harmonic()
    there, back = difference(a, NEAR, method="bar"), difference(NEAR, a, method="bar")
    assert there.estimate.value == pytest.approx(-back.estimate.value, abs=4 * 2**0.5 * there.estimate.error)
    assert there.names == (a.name, NEAR.name)


def test_a_far_pair_gets_states_in_between():
    a = harmonic()
    found = difference(a, FAR)
    assert found.method == "mbar"
    assert len(found.states) > 3
    assert abs(found.estimate.z_score(a.log_z - FAR.log_z)) < 4
    first, *_, last = found.diagnostics["rounds"]
    assert min(first["overlaps"]) < 1e-3
    assert min(last["overlaps"]) >= 0.1
    assert found.overlap.shape == (len(found.states),) * 2
    assert "MBAR over" in found.estimate.method
    assert json.loads(json.dumps(found.as_dict()))["delta_f"] == found.estimate.value


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"method": "exp"}, "k-hat .* use method 'mbar', or 'auto'"),
        ({"method": "bar"}, r"λ = 0 and 1 have an overlap of .* < 0.03: use method 'mbar'"),
        ({"method": "mbar", "lambdas": [0.0, 0.5, 1.0]}, "give more lambdas"),
        ({"method": "auto", "max_states": 3}, "allow more states, or go through a system in between"),
    ],
)
def test_too_little_overlap_is_refused_with_the_remedy(options, remedy):
    with pytest.raises(LowOverlapError, match=remedy):
        difference(harmonic(), FAR, n=500, **options)


class Walled(Target):
    """A Gaussian on one side of zero only."""

    def __init__(self, side):
        super().__init__({"x": Space("line", (2,))}, name=f"walled {side:+d}")
        self.side = side

    def reduced_energy(self, state, context=None):
        inside = state["x"][:, 0] * self.side > 0
        return torch.where(inside, 0.5 * state["x"].square().sum(1), torch.inf)


@pytest.mark.parametrize("method", ["exp", "bar"])
def test_disjoint_supports_are_refused(method):
    a, b = Walled(1), Walled(-1)
    start = a.state(torch.ones(2, 2, dtype=torch.float64))
    with pytest.raises(LowOverlapError, match=r"no sample of walled|overlap of 0 "):
        system_difference(
            a,
            b,
            start=start,
            kernels=[RandomWalkMetropolis(0.5)],
            method=method,
            n=200,
            n_chains=2,
            n_burn_in=20,
            max_temperature=1.0,
        )


def test_intervals_cover_the_exact_difference():
    """1600 ladders of one run are 100 runs of 16: the 95 % intervals of BAR hold 95 % of the time."""
    a = harmonic()
    ladder = IntermediateStates(
        a, NEAR, a.state(torch.zeros(1, 2, dtype=torch.float64)), kernels=KERNELS, n_chains=1600, seed=5
    )
    ladder.set_states([0.0, 1.0])
    ladder.burn_in(40)
    all_of_it, complete = ladder.sample(1600 * 12, sweeps_per_record=1)
    assert complete
    hits, values = 0, []
    for first in range(0, 1600, 16):
        part = slice(first, first + 16)
        found, _ = _two_sided(Recorded(all_of_it.lambdas, all_of_it.u_a[..., part], all_of_it.u_b[..., part]), ladder)
        low, high = found.interval()
        hits += low < a.log_z - NEAR.log_z < high
        values.append(found.value)
    assert abs(hits / 100 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 100)
    z = (np.mean(values) - (a.log_z - NEAR.log_z)) / (np.std(values) / 10)
    assert abs(z) < 4


@pytest.mark.parametrize("ratio", [0.8, 1.25])
def test_one_potential_at_two_temperatures_is_evaluated_once(ratio):
    """u_B = ratio u_A in two dimensions: Z_B / Z_A = 1 / ratio."""
    a = harmonic(offset=2.0)
    b = harmonic(precision=ratio, offset=2.0 * ratio)
    ladder = IntermediateStates(
        a,
        b,
        a.state(torch.zeros(1, 2, dtype=torch.float64)),
        kernels=KERNELS,
        ratio=ratio,
        n_chains=32,
        max_temperature=1.5,
        seed=2,
    )
    ladder.set_states([0.0, 1.0])
    ladder.burn_in(60)
    recorded, _ = ladder.sample(4000, sweeps_per_record=2)
    found, _ = _two_sided(recorded, ladder)
    assert abs(found.z_score(a.log_z - b.log_z)) < 4
    assert a.log_z - b.log_z == pytest.approx(math.log(ratio) + 2.0 * (ratio - 1))
    np.testing.assert_allclose(recorded.u_b, ratio * recorded.u_a)
    assert len(ladder.hot) == 1
    assert set(ladder.ledger.energies) == {a.name}


def test_energies_of_all_states_are_mixed_without_zero_times_infinity():
    u_a = np.array([[[1.0], [2.0]]])
    recorded = Recorded(np.array([0.0, 1.0]), u_a, np.array([[[np.inf], [3.0]]]))
    np.testing.assert_array_equal(recorded.u_kn(), [[1.0, 2.0], [1e10, 3.0]])
    assert recorded.work.tolist() == [[[np.inf], [1.0]]]
    assert recorded.chains().tolist() == [0, 0]
    assert neighbour_overlaps(Recorded(np.array([0.0, 1.0]), u_a, u_a + np.inf)).tolist() == [0.0]


def test_ladders_that_disagree_are_said_and_time_is_kept():
    """Two wells with no way between them, and half of the ladders in each."""

    class Wells(Target):
        def __init__(self, tilt, name):
            super().__init__({"x": Space("line", (2,))}, name=name)
            self.tilt = tilt

        def reduced_energy(self, state, context=None):
            x = state["x"]
            return 50 * (x[:, 0].abs() - 2).square() + 0.5 * x[:, 1].square() + self.tilt * x[:, 0]

    a, b = Wells(0.0, "even"), Wells(0.3, "tilted")
    start = a.state(torch.tensor([[2.0, 0.0], [-2.0, 0.0]], dtype=torch.float64).repeat(4, 1))
    found = system_difference(
        a,
        b,
        start=start,
        kernels=KERNELS,
        method="bar",
        n=100_000,
        minutes=1e-4,
        n_chains=8,
        n_burn_in=30,
        max_temperature=1.0,
        seed=1,
    )
    assert found.estimate.error > 0.1
    assert any("R-hat" in text for text in found.estimate.warnings)
    assert any("time was up" in text for text in found.estimate.warnings)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n": 5}, "at least 100 samples"),
        ({"minutes": 0.0}, "positive time"),
        ({"max_states": 1}, "at least 2"),
        ({"lambdas": [0.0, 1.0]}, "for method 'mbar'"),
        ({"method": "mbar", "lambdas": [0.0, 0.5]}, "from 0 to 1"),
        ({"method": "mbar", "lambdas": [0.0, 0.7, 0.5, 1.0]}, "rising"),
        ({"method": "learned"}, "learned_difference"),
        ({"n_chains": 1}, "at least 2"),
        ({"max_temperature": 0.5}, "factor >= 1"),
    ],
)
def test_wrong_arguments_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        difference(harmonic(), NEAR, **options)
    with pytest.raises(ValueError, match="need start= and kernels="):
        system_difference(harmonic(), NEAR)
    with pytest.raises(ValueError, match="the difference is zero"):
        difference(NEAR, NEAR)


def wide(n, seed, spread=1.3):
    """Samples of a wide Gaussian with their weights for the unit one, as a generator would give them."""
    base = harmonic(precision=1 / spread**2)
    state = base.sample(n, make_rng(seed))
    a = harmonic()
    u = a.reduced_energy(state)
    return Ensemble(
        samples={"x": state["x"]},
        log_weights=base.reduced_energy(state) - u,
        reduced_energies=u,
        target="other",
        base="wide",
        log_z_base=base.log_z,
        provenance=Provenance(ledger={"energy": {"a": n}, "force": {}}),
    )


def test_weighted_samples_serve_both_ends():
    a = harmonic()
    found = learned_difference(wide(4000, 1), a, NEAR)
    assert abs(found.estimate.z_score(a.log_z - NEAR.log_z)) < 4
    assert found.estimate.error < 0.03
    assert [row["state"] for row in found.states] == [a.name, NEAR.name]
    assert found.ledger.n_energy() == 3 * 4000
    z = [learned_difference(wide(300, s), a, NEAR).estimate.z_score(a.log_z - NEAR.log_z) for s in range(200)]
    assert abs(np.mean(np.abs(z) < 1.96) - 0.95) < 3.5 * math.sqrt(0.95 * 0.05 / 200)


def test_samples_that_do_not_reach_the_other_end_are_annealed_to_it():
    a, b = harmonic(), harmonic(3.0, 2.0, 0.5)
    with pytest.raises(LowOverlapError, match=r"k-hat .* train a generator|effective samples"):
        learned_difference(wide(2000, 1), a, b)
    annealing, cost = tuned_annealing(wide(200, 2), a, b, KERNELS, n_levels=24, seed=3)
    assert annealing.lambdas[-1] == 1.0
    assert cost.n_force() > 0
    found = learned_difference(wide(2000, 1), a, b, annealing=annealing, seed=4)
    assert abs(found.estimate.z_score(a.log_z - b.log_z)) < 4
    assert found.estimate.error < 0.1
    assert "24 levels" in found.estimate.method
    assert found.states[1]["ess"] > 200


# pairs of molecules


@pytest.fixture(scope="module")
def dipeptide():
    return load_system("alanine_dipeptide")


def variant(system, folder, *, text=lambda s: s, positions=None, scale=None):
    """A folder with the system under a changed topology file, structure or energy."""
    folder.mkdir()
    frame = mdtraj.load(str(system.folder / system.definition.topology))
    if positions is not None:
        frame.xyz = positions.numpy()[None]
    frame.save_pdb(str(folder / "topology.pdb"))
    (folder / "topology.pdb").write_text(text((folder / "topology.pdb").read_text()))
    xml = (system.folder / "system.xml").read_text()
    (folder / "system.xml").write_text(xml if scale is None else xml.replace(*scale))
    (folder / "system.yaml").write_text(
        yaml.safe_dump({"name": "variant", "description": "a variant", "temperature": 300.0, "data": "."})
    )
    return load_system(folder)


def test_two_temperatures_share_one_potential_and_one_sector(dipeptide):
    hot = load_system("alanine_dipeptide@330")
    a, b, notes = paired_targets(dipeptide, hot)
    assert energy_ratio(a, b) == pytest.approx(300 / 330)
    assert (b.temperature, b.name, notes) == (330.0, "alanine_dipeptide@330", [])
    assert a.temperature == 300.0
    assert energy_ratio(a, dipeptide.target) == 1.0
    assert energy_ratio(a, harmonic()) is None
    with pytest.raises(FormatError, match="one system at one temperature"):
        paired_targets(dipeptide, load_system("alanine_dipeptide"))


def test_other_labels_of_hydrogens_are_brought_into_one_sector(dipeptide, tmp_path):
    x = dipeptide.positions.clone()
    hydrogens = [a.index for a in dipeptide.topology.atoms if a.residue.name == "ACE" and a.element.symbol == "H"]
    x[hydrogens[:2]] = x[hydrogens[:2]].flip(0)
    other = variant(dipeptide, tmp_path / "labels", positions=x, scale=("<GlobalParameters/>", "<GlobalParameters />"))
    assert not bool(dipeptide.sector.contains(other.positions[None]))
    a, b, notes = paired_targets(dipeptide, other)
    assert "identical hydrogens are labelled as in alanine_dipeptide" in notes[0]
    start = paired_starts(dipeptide, other, a, 4)
    assert torch.isfinite(b.reduced_energy(start)).all()
    assert not torch.isfinite(other.target.reduced_energy(start)).any(), "its own Target is left as it was"


def test_mirror_images_are_different_molecules(dipeptide, tmp_path):
    other = variant(dipeptide, tmp_path / "mirror", positions=dipeptide.positions * torch.tensor([-1.0, 1, 1]))
    with pytest.raises(FormatError, match="different hand"):
        paired_targets(dipeptide, other)


def test_the_first_difference_of_atoms_is_named(dipeptide, tmp_path):
    renamed = variant(dipeptide, tmp_path / "renamed", text=lambda s: s.replace(" CB  ALA", " CX  ALA"))
    with pytest.raises(FormatError, match=r"differ at atom 10: ALA2-CB \(C\) against ALA2-CX \(C\).*topology of"):
        paired_targets(dipeptide, renamed)
    fewer = dipeptide.topology.subset(range(21))
    with pytest.raises(FormatError, match="A has 22 atoms and B has 21"):
        check_same_atoms(dipeptide.topology, fewer, names=("A", "B"))


def test_a_system_without_a_generator_says_so(dipeptide, tmp_path):
    first, second = (variant(dipeptide, tmp_path / name) for name in "ab")
    hot = load_system(f"{second.folder}@320")
    with pytest.raises(LowOverlapError, match="neither system has a trained generator"):
        system_difference(first, hot, method="learned")


def test_tempered_and_learned_paths_agree_on_a_molecule(dipeptide, monkeypatch):
    """310 K against 300 K, a few hundred samples each."""
    monkeypatch.setattr(spline_kernels._compiler, "off", True)  # eager splines start faster
    warm = load_system("alanine_dipeptide@310")
    tempered = system_difference(
        dipeptide, warm, method="bar", n=320, n_chains=16, n_burn_in=60, max_temperature=1.0, seed=3
    )
    learned = system_difference(dipeptide, warm, n=400, seed=3)
    assert (tempered.method, learned.method) == ("bar", "learned")
    assert abs(tempered.estimate.z_score(learned.estimate)) < 4
    assert math.hypot(tempered.estimate.error, learned.estimate.error) < 0.1
    assert "300 K -> 310 K" in tempered.estimate.note
    assert tempered.diagnostics["temperatures"] == [300.0, 310.0]


def test_samples_outside_the_other_end_have_weight_zero_there():
    """A Gaussian against its half: Z_B / Z_A = 1/2, though half of the samples of A have infinite energy at B."""

    class Whole(Walled):
        def reduced_energy(self, state, context=None):
            return 0.5 * state["x"].square().sum(1)

    a, b = Whole(0), Walled(1)
    found = system_difference(
        a,
        b,
        start=a.state(torch.ones(1, 2, dtype=torch.float64)),
        kernels=[RandomWalkMetropolis(1.0)],
        method="bar",
        n=2000,
        n_chains=40,
        n_burn_in=40,
        max_temperature=1.0,
        seed=1,
    )
    assert abs(found.estimate.z_score(math.log(2))) < 4
    assert found.states[0]["mean_work"] == math.inf
    assert found.states[0]["r_hat"] < 1.2
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["states"][0]["mean_work"] is None
