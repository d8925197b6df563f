"""What all sections of a run configuration share."""

from pydantic import BaseModel, ConfigDict

__all__ = ["Section"]


class Section(BaseModel):
    """Frozen after parsing; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
