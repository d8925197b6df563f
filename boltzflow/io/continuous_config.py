"""Sections of a run configuration for flows along a velocity field, and how they are matched to data."""

from typing import Literal

from pydantic import Field

from boltzflow.io.section import Section

__all__ = ["ContinuousConfig", "FlowMapConfig", "FlowMatchingConfig", "PerturbationConfig"]


class PerturbationConfig(Section):
    """Noise of the weights of flow perturbation."""

    directions: int = Field(1, ge=1, description="Orthogonal directions of every step, which are averaged.")
    noise: str = Field("normal", description="Their distribution, which must be isotropic: normal.")


class ContinuousConfig(Section):
    """The field and the steps of a `continuous_flow`."""

    field: Literal["embedded", "neighbour", "pair", "frame", "egnn", "painn", "hollow", "e3nn", "transformer"] = Field(
        "embedded",
        description="embedded: pair velocities that know the surroundings; neighbour: sums over neighbours with "
        "weights that do, about twice as cheap; pair: of the distance alone; frame: a dense network that sees one "
        "molecule in a frame of its own; egnn, painn: equivariant graph networks; hollow: painn with a cheap "
        "divergence; e3nn: tensors that know left from right; transformer: attention without rotations. The Jacobians "
        "of the last five take one backward pass per coordinate: exact, and slow.",
    )
    base_scale: float = Field(1.0, gt=0, description="Standard deviation of the base.")
    n_steps: int = Field(10, ge=1, description="Steps; the weights are exact whatever their number.")
    solver: Literal["euler", "midpoint", "rk4", "adaptive"] = Field(
        "euler",
        description="euler, midpoint, rk4: steps of one, two or four Jacobians, with exact weights; adaptive: the "
        "integrated divergence to a tolerance, approximate, with measured errors (needs the extra `ode`).",
    )
    tolerance: float = Field(1e-5, gt=0, description="adaptive: absolute and relative.")
    weights: Literal["exact", "perturbation"] = Field(
        "exact",
        description="exact: log-determinants of the Euler steps; perturbation: of backward Euler steps along the same "
        "field, unbiased and noisy, for dimensions in which Jacobians are too slow.",
    )
    perturbation: PerturbationConfig = PerturbationConfig()
    reach: float | None = Field(
        None, gt=0, description="Centre of the last Gaussian of the distance; None = 5 base_scale."
    )
    unit: float | None = Field(
        None,
        gt=0,
        description="egnn, painn, hollow, e3nn, transformer: length in which they see positions; None = base_scale, or "
        "0.1 nm for molecules.",
    )
    hidden: int = Field(64, ge=1, description="Width of the networks; of e3nn and painn the scalars per atom.")
    n_layers: int = Field(3, ge=1, description="egnn, painn, hollow, e3nn, transformer: layers.")
    n_heads: int = Field(4, ge=1, description="transformer: heads of attention.")
    n_tensors: int = Field(16, ge=1, description="e3nn: tensors of every other order per atom.")
    order: int = Field(2, ge=1, description="e3nn: highest order of the tensors.")
    n_features: int = Field(16, ge=1, description="embedded, neighbour: features of the surroundings.")
    n_moves: int = Field(
        1,
        ge=1,
        description="embedded, neighbour, pair: fields in a row, each of which sees where those before it have moved "
        "the particles; depth, where one field does not fit however wide it is.",
    )
    n_basis: int = Field(32, ge=2, description="Functions of the distance.")
    n_times: int = Field(6, ge=1, description="pair: knots of time.")


class FlowMapConfig(Section):
    """Steps of a trained flow made longer and fewer: each learns the mean velocity over its length."""

    weight: float = Field(0.0, ge=0, description="Weight of the term.")
    substeps: int = Field(10, ge=1, description="Runge-Kutta steps of the flow as it was, for each of its steps.")


class FlowMatchingConfig(Section):
    """Regression of the velocity field on paths from the base to data; needs no energies."""

    weight: float = Field(0.0, ge=0, description="Weight of the term.")
    method: Literal["data", "rectified", "energy"] = Field(
        "data",
        description="data: pairs of base and data; rectified: pairs that the flow has made itself; energy: its own "
        "samples, weighted to the target, stage by stage.",
    )
    pairs: Literal["independent", "optimal", "matched", "optimal matched", "equivariant"] = Field(
        "optimal matched",
        description="optimal: pairs of a batch by assignment; matched: permutes identical particles and rotates; "
        "equivariant: assignment by the distances that are left after matching all pairs, then matched.",
    )
    rotated: bool = Field(
        default=False,
        description="Turn both ends of every pair by one random rotation; for fields that do not go with rotations "
        "(transformer).",
    )
    entropy: float | None = Field(
        None,
        gt=0,
        description="Weigh pairs as entropic transport does, with ε this much of the mean cost; None = alike.",
    )
    stages: int = Field(10, ge=1, description="energy: buffers of samples.")
    stage_steps: int = Field(1000, ge=1, description="rectified, energy: steps until pairs or buffer are made anew.")
    buffer_size: int = Field(20_000, ge=1, description="energy: samples in each buffer.")
    min_efficiency: float = Field(
        0.1, ge=0, lt=1, description="energy: buffers below it are weighted less, by a power α < 1 of their weights."
    )

    @property
    def method_name(self) -> str:
        """Name by which `boltzflow.cite` finds its references."""
        return {"rectified": "Rectification", "energy": "EnergyWeightedMatching"}.get(self.method, "FlowMatching")
