"""Networks: conditioners, a causal transformer and vector fields.

Fields that need other packages are loaded on first use.
"""

from importlib import import_module
from typing import Any

from boltzflow.networks.atom_features import AtomFeatures
from boltzflow.networks.causal_transformer import CausalTransformer
from boltzflow.networks.composed_field import ComposedField
from boltzflow.networks.embedded_field import EmbeddedField
from boltzflow.networks.frame_field import FrameField
from boltzflow.networks.gated_field import GatedField
from boltzflow.networks.graph_field import GraphField
from boltzflow.networks.hollow_field import HollowField
from boltzflow.networks.linear import Linear
from boltzflow.networks.mlp import MLP, CoordinateFeatures, ResidualMLP
from boltzflow.networks.neighbour_field import NeighbourField
from boltzflow.networks.pair_field import PairField
from boltzflow.networks.rotation_field import RotationField
from boltzflow.networks.shallow_field import ShallowField
from boltzflow.networks.torus_field import TorusField
from boltzflow.networks.transformer_field import TransformerField
from boltzflow.networks.vector_field import VectorField

_HOME = {"E3NNField": "e3nn_field", "EGNNField": "egnn_field", "PaiNNField": "painn_field"}

__all__ = [
    "MLP",
    "AtomFeatures",
    "CausalTransformer",
    "ComposedField",
    "CoordinateFeatures",
    "E3NNField",
    "EGNNField",
    "EmbeddedField",
    "FrameField",
    "GatedField",
    "GraphField",
    "HollowField",
    "Linear",
    "NeighbourField",
    "PaiNNField",
    "PairField",
    "ResidualMLP",
    "RotationField",
    "ShallowField",
    "TorusField",
    "TransformerField",
    "VectorField",
]


def __getattr__(name: str) -> Any:
    """Import a field on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'boltzflow.networks' has no attribute {name!r}")
    return getattr(import_module(f"boltzflow.networks.{_HOME[name]}"), name)
