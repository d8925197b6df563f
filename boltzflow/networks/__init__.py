"""Networks: conditioners and vector fields."""

from boltzflow.networks.linear import Linear
from boltzflow.networks.mlp import MLP, CoordinateFeatures, ResidualMLP

__all__ = ["MLP", "CoordinateFeatures", "Linear", "ResidualMLP"]
