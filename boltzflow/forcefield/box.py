"""Periodic boxes in OpenMM's reduced form: their layout inside, their volume, and what makes one unfit."""

import torch

from boltzflow._typing import Bool, Float, Tensor

__all__ = ["box_columns", "check_box", "volume"]

_SLACK = 1e-5  # relative: OpenMM's own reduction leaves vectors that are too long by rounding


def box_columns(box: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "3 3 1 _"]:
    """Return a box (3, 3), or one for each conformation (batch, 3, 3), as (3 vectors, 3 components, 1, batch or 1)."""
    return box.reshape(-1, 3, 3).permute(1, 2, 0)[:, :, None]


def volume(box: Float[Tensor, "3 3 *cells"]) -> Float[Tensor, "*cells"]:
    """Return the volume (nm^3) of a reduced box."""
    return box[0, 0] * box[1, 1] * box[2, 2]


def _rows(bad: Bool[Tensor, "n_boxes"]) -> str:
    rows = bad.nonzero()[:, 0].tolist()
    if len(bad) == 1:
        return "the box"
    return f"the boxes of conformations {rows[:5]}{f' and {len(rows) - 5} more' if len(rows) > 5 else ''}"


def check_box(box: Tensor, *, n: int, cutoff: float) -> None:
    """Raise ValueError unless every box is in reduced form and no smaller than twice the cutoff.

    Args:
        box: (3, 3), or (n, 3, 3), in nm.
        n: number of conformations.
        cutoff: largest cutoff of a periodic force in nm.
    """
    if tuple(box.shape) not in ((3, 3), (n, 3, 3)):
        raise ValueError(f"box must be (3, 3) or ({n}, 3, 3), three vectors in nm; found {tuple(box.shape)}")
    boxes = box.detach().reshape(-1, 3, 3)
    width = torch.diagonal(boxes, dim1=1, dim2=2)
    degenerate = ~(boxes.isfinite().all(2).all(1) & (width > 0).all(1))
    if degenerate.any():
        raise ValueError(
            f"{_rows(degenerate)} must span a volume: finite vectors (ax, 0, 0), (bx, by, 0), (cx, cy, cz) in nm with "
            f"ax, by, cz > 0; found {boxes[degenerate][0].tolist()}"
        )
    skewed = (boxes.triu(1) != 0).any(2).any(1)
    for row, column in ((1, 0), (2, 0), (2, 1)):
        skewed = skewed | (boxes[:, row, column].abs() > (0.5 + _SLACK) * width[:, column])
    if skewed.any():
        raise ValueError(
            f"{_rows(skewed)} must be in OpenMM's reduced form, (ax, 0, 0), (bx, by, 0), (cx, cy, cz) with "
            f"|bx| <= ax/2, |cx| <= ax/2 and |cy| <= by/2; found {boxes[skewed][0].tolist()}. "
            "openmm.app.internal.unitcell.reducePeriodicBoxVectors brings it there"
        )
    small = (width < 2 * cutoff * (1 - 1e-6)).any(1)
    if small.any():
        raise ValueError(
            f"{_rows(small)} must be at least twice the cutoff of {cutoff:g} nm wide; found widths "
            f"{[round(w, 4) for w in width[small][0].tolist()]} nm. Create the System with a shorter cutoff, or give "
            "the box that the positions are in"
        )
