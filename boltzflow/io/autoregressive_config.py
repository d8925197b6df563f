"""Section of a run configuration for flows that move one atom after the other."""

from pydantic import Field

from boltzflow.io.section import Section

__all__ = ["AutoregressiveConfig"]


class AutoregressiveConfig(Section):
    """Blocks of an `autoregressive_flow`; width and layers are those of the causal transformer in each."""

    n_blocks: int = Field(4, ge=1, description="Blocks, in alternating order of the atoms.")
    n_layers: int = Field(4, ge=1, description="Layers of the transformer in a block.")
    width: int = Field(256, ge=1, description="Features of the transformer, a multiple of head_width.")
    head_width: int = Field(64, ge=1, description="Features of an attention head.")
    length: float | None = Field(
        None,
        gt=0,
        description="Standard deviation of the base, in nm for a molecule; None = root mean square coordinate of its "
        "relaxed structure, 1 for analytic energies.",
    )
