"""The base class of every term of a force field: one kind of force, batched over conformations."""

from typing import Any, ClassVar

import torch
from torch import nn

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.forcefield.box import box_columns
from boltzflow.forcefield.geometry import distance

__all__ = ["COULOMB", "TERMS", "Term", "all_pairs", "pair_distances", "pair_rows", "root", "switching", "tracked"]

COULOMB = 138.93545764438198
"""e^2 N_A / (4 pi epsilon_0) in kJ/mol nm (CODATA 2018, as in OpenMM)."""

TERMS: dict[str, type["Term"]] = {}


def all_pairs(n_atoms: int) -> Tensor:
    """Return the (2, n_pairs) indices i < j of all pairs of atoms: the order of the rows of ``r`` in `Term.energy`."""
    return torch.triu_indices(n_atoms, n_atoms, 1)


def pair_rows(first: Int[Tensor, "n"], second: Int[Tensor, "n"], n_atoms: int) -> Int[Tensor, "n"]:
    """Return the rows of `all_pairs` that hold the pairs of atoms, in whichever order they are given."""
    i, j = torch.minimum(first, second), torch.maximum(first, second)
    return i * n_atoms - i * (i + 1) // 2 + j - i - 1


def pair_distances(
    x: Float[Tensor, "3 n_atoms batch"], i: Tensor, j: Tensor, box: Float[Tensor, "3 3 1 _"] | None = None
) -> Float[Tensor, "n_pairs batch"]:
    """Return the distances (nm) between the atoms ``i`` and ``j``, both (n_pairs,), or nearest images in a box."""
    return distance(x.index_select(1, i), x.index_select(1, j), box)


def switching(
    r: Float[Tensor, "n batch"], switch: float, cutoff: float, share: Float[Tensor, "n 1"] | float = 1.0
) -> Float[Tensor, "n batch"]:
    """Return the factor that goes smoothly from 1 at ``switch`` to 0 at ``cutoff`` (nm); 1 where ``share`` is 0."""
    t = ((r - switch) / (cutoff - switch)).clamp(0, 1) * share
    return 1 + t**3 * (-10 + t * (15 - 6 * t))


def tracked(*tensors: Tensor) -> bool:
    """Return whether a gradient with respect to any of these parameters may be asked for."""
    return any(tensor.requires_grad for tensor in tensors)


def root(value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the square root, with gradient zero at zero, where it is infinite."""
    zero = value == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, value).sqrt())


class Term(nn.Module):
    """One kind of force, as an energy in kJ/mol.

    A subclass takes its parameters as keyword arguments, keeps the tensors as buffers and the rest in ``options``, and
    implements `energy`. It is then saved and loaded with the force field under its class name.

    Parameters are replaced by constructing the term anew, see `with_tensors`, so that whatever a subclass derives from
    them in its constructor by torch operations follows, gradients included. They are not to be changed in place.

    The layout inside is batch-innermost, (3, n_atoms, batch): every operation vectorises over the conformations.
    """

    uses_pairs: ClassVar[bool] = False
    """Whether `energy` reads the distances between all pairs, which the force field computes once for all terms."""

    shared_parameters: ClassVar[frozenset[str]] = frozenset()
    """Tensors that all terms of a force field share by name, in `ForceField.parameter_tensors` without the term's."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Register the class under its name, for `ForceField.load`."""
        super().__init_subclass__(**kwargs)
        TERMS[cls.__name__] = cls

    def __init__(self, tensors: dict[str, Tensor], **options: Any) -> None:
        """Keep the parameters.

        Args:
            tensors: name -> tensor, registered as buffers; the names are those of the subclass's constructor.
            **options: what the constructor takes besides the tensors: numbers, flags and text, and tuples and
                dictionaries of these.
        """
        super().__init__()
        self.options = options
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.clone())

    def with_tensors(self, tensors: dict[str, Tensor]) -> "Term":
        """Return the term with some of its tensors replaced; gradients reach through to those given."""
        return type(self)(**{**self.state_dict(keep_vars=True), **tensors}, **self.options)

    @property
    def periodic(self) -> bool:
        """Whether `energy` takes a periodic box: the option of that name."""
        return bool(self.options.get("periodic", False))

    def energy(
        self,
        x: Float[Tensor, "3 n_atoms batch"],
        r: Float[Tensor, "n_pairs batch"] | None,
        box: Float[Tensor, "3 3 1 _"] | None = None,
    ) -> Float64[Tensor, "batch"]:
        """Return the energy of each conformation.

        Args:
            x: positions in nm.
            r: distances in nm of all pairs in the order of `all_pairs`, given when ``uses_pairs`` and not periodic.
            box: the three vectors (first axis) of the periodic box in nm, of each conformation or of all; given only
                to terms that are ``periodic``, others need not have the argument.

        Returns:
            Energies in kJ/mol, summed in float64.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement energy(x, r)")

    def forward(
        self, positions: Float[Tensor, "batch n_atoms 3"], box: Float[Tensor, "*batch 3 3"] | None = None
    ) -> Float64[Tensor, "batch"]:
        """Return the energy (kJ/mol) of this term alone at positions in nm, in a box if it is periodic."""
        x = positions.permute(2, 1, 0).contiguous()
        if self.periodic:
            return self.energy(x, None, box_columns(box))
        r = pair_distances(x, *all_pairs(x.shape[1]).to(x.device)) if self.uses_pairs else None
        return self.energy(x, r)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds the references of this term."""
        return (type(self).__name__,)

    def extra_repr(self) -> str:
        """Name the options and the sizes of the parameters."""
        sizes = [f"{name}={tuple(tensor.shape)}" for name, tensor in self.state_dict().items()]
        return ", ".join(sizes + [f"{name}={value}" for name, value in self.options.items()])
