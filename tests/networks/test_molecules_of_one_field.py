"""One field for molecules of different composition: trained on two of them, of use for a third."""

from pathlib import Path

import mdtraj
import torch

import boltzflow as bf
from boltzflow.generators import Generator
from boltzflow.networks import AtomFeatures, EGNNField
from boltzflow.objectives import FlowMatching, Step
from boltzflow.run import make_rng
from boltzflow.targets import MeanFreeGaussian
from boltzflow.transitions import EulerFlow

INPUTS = Path(__file__).parents[1] / "inputs"


class Molecule:
    """Small vibrations of one structure, as data, and flow matching of a field to them."""

    def __init__(self, topology, positions, field, *, features=None):
        self.features = AtomFeatures.of_topology(topology) if features is None else features
        self.base, self.relaxed = MeanFreeGaussian(len(positions), 3, scale=0.2).double(), positions
        flow = EulerFlow(field.for_molecule(self.features))
        self.objective = FlowMatching(Generator(self.base, [flow]), pairs="matched")

    def loss(self, n, seed):
        rng = make_rng(seed)
        x = self.relaxed + 0.01 * torch.randn(n, *self.relaxed.shape, dtype=torch.float64, generator=rng)
        return self.objective(Step(rng, data=self.base.state(x - x.mean(1, keepdim=True))))[0]


def glycine_dipeptide():
    """That of alanine, with a hydrogen for the methyl group."""
    system = bf.load_system("alanine_dipeptide")
    old, x = system.topology, system.positions.clone()
    (ca, cb), names = old.select("name CA CB"), {"HB1", "HB2", "HB3"}
    x[cb] = x[ca] + 0.109 * (x[cb] - x[ca]) / (x[cb] - x[ca]).norm()
    topology, places = mdtraj.Topology(), {}
    chain = topology.add_chain()
    for residue in old.residues:
        own = topology.add_residue({"ALA": "GLY"}.get(residue.name, residue.name), chain)
        for atom in residue.atoms:
            if atom.name not in names:
                element = mdtraj.element.hydrogen if atom.name == "CB" else atom.element
                places[atom.index] = topology.add_atom(
                    {"CB": "HA3", "HA": "HA2"}.get(atom.name, atom.name), element, own
                )
    for a, b in old.bonds:
        if a.index in places and b.index in places:
            topology.add_bond(places[a.index], places[b.index])
    return topology, x[sorted(places)]


def test_a_field_trained_on_two_molecules_is_of_use_for_a_third():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        system = bf.load_system("alanine_dipeptide")
        features = AtomFeatures.of_topology(system.topology)
        field = EGNNField(features, 3, unit=0.1, n_layers=3, hidden=24).double()
    other = mdtraj.load(str(INPUTS / "alanylglycine.pdb"))
    trained = [
        Molecule(system.topology, system.positions, field),
        Molecule(other.topology, torch.from_numpy(other.xyz[0]).double(), field),
    ]
    new = glycine_dipeptide()
    third = Molecule(*new, field)
    order = torch.randperm(len(third.features), generator=make_rng(5))
    pairs = third.features.pairs[order][:, order]
    wrong = AtomFeatures(third.features.categories[order], features.sizes, pairs, features.n_pairs)
    mistaken = Molecule(*new, field, features=wrong)
    assert [len(one.features) for one in (*trained, third)] == [22, 20, 19]

    with torch.no_grad():
        before = third.loss(64, 9)
    optimizer = torch.optim.Adam(field.parameters(), lr=3e-3)
    for k in range(120):
        optimizer.zero_grad()
        sum(one.loss(8, 100 + k) for one in trained).backward()
        torch.nn.utils.clip_grad_norm_(field.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        after, misled = third.loss(64, 9), mistaken.loss(64, 9)
    assert after < 0.6 * before
    assert after < 0.7 * misled
