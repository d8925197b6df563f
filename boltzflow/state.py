"""State: named tensors with declared spaces, on which Transitions act and which Targets read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from boltzflow._typing import Bool, Int, Tensor

__all__ = ["Evaluation", "Space", "State"]

Kind = Literal["line", "interval", "circle", "sphere", "box", "integer", "mask", "mixed"]


@dataclass(frozen=True)
class Space:
    """Where a field lives.

    Args:
        kind: line, interval, circle, sphere, box, integer or mask; "mixed" for a flat field whose coordinates differ
            in kind (the Transitions that act on it know which is which).
        shape: Event shape, without the batch.
        dimension: Degrees of freedom d; smaller than the number of entries on a subspace (mean-free, sphere).
            None means as many as there are entries.
    """

    kind: Kind
    shape: tuple[int, ...]
    dimension: int | None = None

    def __post_init__(self) -> None:
        """Fill in the dimension."""
        if self.dimension is None:
            object.__setattr__(self, "dimension", int(torch.Size(self.shape).numel()))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Energy and, if it was computed, force of one Target at the present value of a State."""

    energy: Tensor
    force: Mapping[str, Tensor] | None
    context: Any = None


@dataclass(frozen=True, eq=False)
class State:
    """A batch of named tensors `(batch, *event)`, each with a declared space.

    Args:
        fields: Name to tensor; all share the batch size, and (except integers and masks) dtype and device.
        spaces: Name to `Space`, the same names.
        evaluations: What Targets evaluated at exactly these values; `replace` drops them.

    Raises:
        ValueError: If names, batch sizes or event shapes disagree.
    """

    fields: Mapping[str, Tensor]
    spaces: Mapping[str, Space]
    evaluations: Mapping[Any, Evaluation] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Check names and shapes; no tensor is read."""
        if not self.fields:
            raise ValueError("State: expected at least one field, got none.")
        if set(self.fields) != set(self.spaces):
            raise ValueError(
                f"State: fields {sorted(self.fields)} and spaces {sorted(self.spaces)} must have the same names."
            )
        sizes = {name: value.shape[0] for name, value in self.fields.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"State: all fields must share the batch size; got {sizes}.")
        for name, value in self.fields.items():
            if tuple(value.shape[1:]) != self.spaces[name].shape:
                raise ValueError(
                    f"State field {name!r}: expected shape (batch, {', '.join(map(str, self.spaces[name].shape))}), "
                    f"got {tuple(value.shape)}."
                )

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of a field; a KeyError names the fields that exist."""
        try:
            return self.fields[name]
        except KeyError:
            raise KeyError(f"State has no field {name!r}; it has {sorted(self.fields)}.") from None

    def __len__(self) -> int:
        """Batch size."""
        return next(iter(self.fields.values())).shape[0]

    def __contains__(self, name: str) -> bool:
        """Whether a field of that name exists."""
        return name in self.fields

    @property
    def _floating(self) -> Tensor:
        return next((v for v in self.fields.values() if v.is_floating_point()), next(iter(self.fields.values())))

    @property
    def device(self) -> torch.device:
        """Device of the fields."""
        return self._floating.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the floating-point fields."""
        return self._floating.dtype

    def replace(self, **fields: Tensor) -> "State":
        """The same State with some fields replaced; cached evaluations are dropped."""
        unknown = set(fields) - set(self.fields)
        if unknown:
            raise KeyError(f"State.replace: no fields {sorted(unknown)}; it has {sorted(self.fields)}.")
        return State({**self.fields, **fields}, self.spaces)

    def with_fields(
        self, fields: Mapping[str, Tensor], spaces: Mapping[str, Space], *, drop: tuple[str, ...] = ()
    ) -> "State":
        """Add fields (with their spaces) and drop others: for Transitions that change coordinates or augment."""
        kept = {k: v for k, v in self.fields.items() if k not in drop}
        kept_spaces = {k: v for k, v in self.spaces.items() if k not in drop}
        return State({**kept, **fields}, {**kept_spaces, **spaces})

    def with_evaluation(self, key: Any, evaluation: Evaluation) -> "State":
        """The same values with one more cached evaluation."""
        return State(self.fields, self.spaces, {**self.evaluations, key: evaluation})

    def index(self, rows: Int[Tensor, " k"] | Bool[Tensor, " batch"] | slice) -> "State":
        """Rows of the State (an index tensor, a boolean mask or a slice), with their evaluations."""
        cached = {
            key: Evaluation(
                e.energy[rows], None if e.force is None else {k: f[rows] for k, f in e.force.items()}, e.context
            )
            for key, e in self.evaluations.items()
        }
        return State({k: v[rows] for k, v in self.fields.items()}, self.spaces, cached)

    def where(self, keep: Bool[Tensor, " batch"], other: "State") -> "State":
        """Row by row this State where `keep`, `other` elsewhere; evaluations that both carry are kept."""

        def pick(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(keep.reshape(-1, *[1] * (a.ndim - 1)), a, b)

        cached = {}
        for key, mine in self.evaluations.items():
            theirs = other.evaluations.get(key)
            if theirs is None or theirs.context is not mine.context:
                continue
            force = None
            if mine.force is not None and theirs.force is not None:
                force = {k: pick(f, theirs.force[k]) for k, f in mine.force.items()}
            cached[key] = Evaluation(pick(mine.energy, theirs.energy), force, mine.context)
        return State({k: pick(v, other.fields[k]) for k, v in self.fields.items()}, self.spaces, cached)

    def detach(self) -> "State":
        """The same values without autograd history."""
        cached = {
            key: Evaluation(
                e.energy.detach(), None if e.force is None else {k: f.detach() for k, f in e.force.items()}, e.context
            )
            for key, e in self.evaluations.items()
        }
        return State({k: v.detach() for k, v in self.fields.items()}, self.spaces, cached)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "State":
        """Move the fields; dtype applies to floating-point fields only. Evaluations are dropped."""
        return State(
            {k: v.to(device=device, dtype=dtype if v.is_floating_point() else None) for k, v in self.fields.items()},
            self.spaces,
        )
