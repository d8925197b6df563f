"""Networks: conditioners and vector fields."""

from boltzflow.networks.embedded_field import EmbeddedField
from boltzflow.networks.linear import Linear
from boltzflow.networks.mlp import MLP, CoordinateFeatures, ResidualMLP
from boltzflow.networks.pair_field import PairField
from boltzflow.networks.shallow_field import ShallowField
from boltzflow.networks.vector_field import VectorField

__all__ = [
    "MLP",
    "CoordinateFeatures",
    "EmbeddedField",
    "Linear",
    "PairField",
    "ResidualMLP",
    "ShallowField",
    "VectorField",
]
