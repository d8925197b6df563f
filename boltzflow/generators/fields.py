"""The vector field that a run configuration describes."""

from collections.abc import Sequence

import torch

import boltzflow.networks as networks
from boltzflow.errors import UnsupportedForceError
from boltzflow.io.continuous_config import ContinuousConfig
from boltzflow.networks import AtomFeatures, VectorField

__all__ = ["build_field"]


def build_field(
    settings: ContinuousConfig,
    features: AtomFeatures | Sequence[int],
    n_dimensions: int,
    *,
    reach: float,
    unit: float,
    seed: int,
    frame: Sequence[int] | None = None,
) -> VectorField:
    """Make the field, with initial weights that depend on nothing but the arguments.

    Fields that read a type of every particle and no features see every atom of a molecule as a type of its own. All
    others see the features, so that their weights fit other molecules too (`GraphField.for_molecule`).

    Args:
        settings: Which one, and its sizes.
        features: Of the atoms of a molecule, or a type for every particle.
        n_dimensions: D.
        reach: Centre of the last Gaussian of the distance, in the length of positions.
        unit: Length in which graph networks see positions.
        seed: Of the initial weights.
        frame: Three atoms of a molecule; None where particles have none.

    Raises:
        UnsupportedForceError: If the field needs a frame and there is none.

    Example:
        >>> settings = ContinuousConfig(field="hollow", hidden=8, n_layers=1)
        >>> build_field(settings, [0] * 4, 3, reach=5.0, unit=1.0, seed=0).n_particles
        4
    """
    n = len(features)
    types = list(range(n)) if isinstance(features, AtomFeatures) else features
    basis = {"reach": reach, "n_basis": settings.n_basis}
    deep = {"unit": unit, "n_layers": settings.n_layers, "hidden": settings.hidden}
    radial = {"reach": reach / unit, "n_basis": settings.n_basis}
    tensors = {"n_tensors": settings.n_tensors, "order": settings.order}
    with torch.random.fork_rng(devices=[]):
        # initial weights are a function of the configuration alone, whatever was drawn before
        torch.manual_seed(seed)
        match settings.field:
            case "pair" | "embedded" | "neighbour":
                wide = {"hidden": settings.hidden, "n_features": settings.n_features}
                kind, sizes = {
                    "pair": (networks.PairField, {"n_times": settings.n_times}),
                    "embedded": (networks.EmbeddedField, wide),
                    "neighbour": (networks.NeighbourField, wide),
                }[settings.field]
                fields = [kind(types, n_dimensions, **sizes, **basis) for _ in range(settings.n_moves)]
                return networks.ComposedField(fields) if len(fields) > 1 else fields[0]
            case "frame":
                if frame is None:
                    raise UnsupportedForceError(
                        "continuous_flow: identical particles have no frame of three of them; set "
                        "generator.continuous.field to neighbour, embedded or pair."
                    )
                return networks.FrameField(n, frame=frame, scale=0.25 * reach, hidden=[settings.hidden] * 2)
            case "egnn":
                return networks.EGNNField(features, n_dimensions, **deep)
            case "painn":
                return networks.PaiNNField(features, n_dimensions, **deep, **radial)
            case "hollow":
                return networks.HollowField(features, n_dimensions, **deep, **radial)
            case "e3nn":
                return networks.E3NNField(features, n_dimensions, **deep, **radial, **tensors)
            case "transformer":
                return networks.TransformerField(features, n_dimensions, n_heads=settings.n_heads, **deep, **radial)
