"""Vector fields from a configuration: of the right kind and size, for particles and for molecules."""

import pytest
import torch

import boltzflow as bf
import boltzflow.networks as networks
from boltzflow.errors import UnsupportedForceError
from boltzflow.generators import build_field, build_generator
from boltzflow.io.config import parse_config
from boltzflow.io.continuous_config import ContinuousConfig
from boltzflow.networks import AtomFeatures, GraphField
from boltzflow.run import make_rng
from boltzflow.targets import MeanFreeGaussian

SIZES = {"hidden": 6, "n_layers": 2, "n_basis": 5, "n_heads": 2, "n_tensors": 2, "order": 1, "n_features": 3}
KINDS = {
    "pair": networks.PairField,
    "embedded": networks.EmbeddedField,
    "neighbour": networks.NeighbourField,
    "egnn": networks.EGNNField,
    "painn": networks.PaiNNField,
    "hollow": networks.HollowField,
    "e3nn": networks.E3NNField,
    "transformer": networks.TransformerField,
}


def build(name, features=(0, 0, 1), *, reach=5.0, unit=1.0, seed=3, **options):
    settings = ContinuousConfig(field=name, **SIZES)
    return build_field(settings, features, 3, reach=reach, unit=unit, seed=seed, **options)


@pytest.mark.parametrize("name", KINDS)
def test_initial_weights_depend_on_the_seed_alone(name):
    first = build(name)
    torch.rand(1)
    second, other = build(name), build(name, seed=4)
    assert type(first) is KINDS[name]
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    if name != "pair":  # starts from zeros
        assert any(not torch.equal(value, other.state_dict()[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize("name", [*KINDS, "frame"])
def test_molecules_have_features_where_the_field_reads_them(name):
    features = AtomFeatures.of_topology(bf.load_system("alanine_dipeptide").topology)
    field = build(name, features, reach=1.2, unit=0.1, frame=[8, 6, 14])
    assert isinstance(field, GraphField) == (name in ("egnn", "painn", "hollow", "e3nn", "transformer"))
    # methyl hydrogens are alike to those that see the bonds
    assert (field.types[11] == field.types[12]) == isinstance(field, GraphField)
    x = torch.rand(2, 22, 3, generator=make_rng(1))
    assert field(x, 0.5).shape == x.shape


def test_particles_have_no_frame():
    with pytest.raises(UnsupportedForceError, match="no frame"):
        build("frame")


@pytest.mark.parametrize(("name", "size"), [("egnn", 0.1), ("hollow", 0.25)])
def test_weights_of_a_configured_flow_are_exact(name, size):
    continuous = {**SIZES, "field": name, "base_scale": 1.85, "n_steps": 2}
    values = {"system": "dw4", "generator": {"family": "continuous_flow", "continuous": continuous}}
    made = build_generator(bf.load_system("dw4"), parse_config(values).generator, dtype=torch.float64)
    field, rng = made.transitions[0].field, make_rng(1)
    assert field.unit == 1.85
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=size, generator=rng)
    ensemble = made.sample(1000, MeanFreeGaussian(4, 2, scale=1.9), seed=1)
    assert abs(ensemble.log_z().z_score(0.0)) < 4
    assert 0.02 < ensemble.ess_fraction() < 0.95
    assert KINDS[name].__name__ in ensemble.provenance.methods


def test_a_configured_flow_moves_a_molecule():
    continuous = {**SIZES, "field": "egnn", "n_steps": 1}
    generator = {"family": "continuous_flow", "n_couplings": 0, "continuous": continuous}
    system = bf.load_system("alanine_dipeptide")
    made = build_generator(system, parse_config({"system": system.name, "generator": generator}).generator)
    assert made.transitions[-1].field.unit == 0.1
    assert torch.isfinite(torch.as_tensor(made.sample(4, system.target, seed=1).log_weights)).any()


@pytest.mark.parametrize("name", ["pair", "embedded", "neighbour"])
def test_several_moves_are_composed_of_different_fields(name):
    settings = ContinuousConfig(field=name, n_moves=3, **SIZES)
    field = build_field(settings, (0, 0, 1), 3, reach=5.0, unit=1.0, seed=3)
    assert isinstance(field, networks.ComposedField)
    assert [type(part) for part in field.fields] == [KINDS[name]] * 3
    first, second = (list(part.parameters()) for part in field.fields[:2])
    assert name == "pair" or any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
