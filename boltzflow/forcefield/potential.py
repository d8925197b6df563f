"""The force field of one molecule: the sum of its terms, batched over conformations and differentiable."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.errors import FormatError
from boltzflow.forcefield.term import TERMS, Term, all_pairs, pair_distances

__all__ = ["AngleParameters", "BondParameters", "ForceField", "TorsionParameters"]

_FORMAT = "boltzflow-forcefield-2"


class BondParameters(NamedTuple):
    """Harmonic bonds: ``atoms`` (n, 2), ``r0`` (n,) in nm, ``k`` (n,) in kJ/mol/nm^2."""

    atoms: Int[Tensor, "n 2"]
    r0: Float[Tensor, "n"]
    k: Float[Tensor, "n"]


class AngleParameters(NamedTuple):
    """Harmonic angles: ``atoms`` (n, 3), vertex in the middle, ``theta0`` (n,) in rad, ``k`` (n,) in kJ/mol/rad^2."""

    atoms: Int[Tensor, "n 3"]
    theta0: Float[Tensor, "n"]
    k: Float[Tensor, "n"]


class TorsionParameters(NamedTuple):
    """Periodic torsions k (1 + cos(n phi - phase)), one row for each term.

    ``atoms`` (n, 4), ``periodicity`` (n,), ``phase`` (n,) in rad, ``k`` (n,) in kJ/mol.
    """

    atoms: Int[Tensor, "n 4"]
    periodicity: Int[Tensor, "n"]
    phase: Float[Tensor, "n"]
    k: Float[Tensor, "n"]


class ForceField(nn.Module):
    """A sum of `Term` modules: positions (batch, n_atoms, 3) in nm -> energies (batch,) in kJ/mol.

    Differentiable to any order. The distances between all pairs of atoms are computed once and shared by the terms that
    use them.
    """

    def __init__(
        self, terms: Sequence[Term], *, n_atoms: int, n_constraints: int = 0, dtype: torch.dtype = torch.float64
    ) -> None:
        """Keep the terms.

        Args:
            terms: whose energies are summed.
            n_atoms: number of atoms.
            n_constraints: number of constrained distances in the System; the energy does not depend on them.
            dtype: of the arithmetic; positions are cast to it.
        """
        super().__init__()
        self.terms = nn.ModuleList(terms)
        self.n_atoms = n_atoms
        self.n_constraints = n_constraints
        self.register_buffer("_dtype", torch.zeros((), dtype=dtype), persistent=False)
        self.register_buffer("_ij", all_pairs(n_atoms), persistent=False)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds the references of its terms."""
        return tuple(dict.fromkeys(name for term in self.terms for name in term.methods))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters and of the arithmetic."""
        return self._dtype.dtype

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self._dtype.device

    @property
    def bonds(self) -> BondParameters:
        """Equilibrium lengths and force constants of all harmonic bonds."""
        return BondParameters(*self._gather("HarmonicBonds", ("atoms", "r0", "k"), 2))

    @property
    def angles(self) -> AngleParameters:
        """Equilibrium values and force constants of all harmonic angles."""
        return AngleParameters(*self._gather("HarmonicAngles", ("atoms", "theta0", "k"), 3))

    @property
    def torsions(self) -> TorsionParameters:
        """Periodicities, phases and force constants of all periodic torsions, proper and improper."""
        return TorsionParameters(*self._gather("PeriodicTorsions", ("atoms", "periodicity", "phase", "k"), 4))

    def _gather(self, kind: str, names: tuple[str, ...], n: int) -> list[Tensor]:
        found = [[getattr(term, name) for name in names] for term in self.terms if type(term).__name__ == kind]
        empty = {"atoms": self._ij.new_zeros((0, n)), "periodicity": self._ij.new_zeros(0)}
        found = found or [[empty.get(name, self._dtype.new_zeros(0)) for name in names]]
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def _energy(self, x: Float[Tensor, "3 n_atoms batch"]) -> Float64[Tensor, "batch"]:
        r = pair_distances(x, *self._ij) if any(term.uses_pairs for term in self.terms) else None
        total = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
        for term in self.terms:
            total = total + term.energy(x, r)
        return total

    def check(self, positions: Tensor) -> None:
        """Raise ValueError unless positions are (batch, n_atoms, 3)."""
        if positions.ndim != 3 or positions.shape[1:] != (self.n_atoms, 3):
            raise ValueError(f"positions must be (batch, {self.n_atoms}, 3) in nm; found {tuple(positions.shape)}")

    def _columns(self, positions: Tensor) -> Tensor:
        """Return positions as (3, n_atoms, batch) in the dtype of the parameters."""
        self.check(positions)
        return positions.permute(2, 1, 0).to(self.dtype).contiguous()

    def forward(self, positions: Float[Tensor, "batch n_atoms 3"]) -> Float64[Tensor, "batch"]:
        """Return the energy of each conformation.

        Args:
            positions: in nm.

        Returns:
            Energies in kJ/mol, float64. A conformation with NaN positions has energy NaN.
        """
        return self._energy(self._columns(positions))

    def energy_and_force(
        self, positions: Float[Tensor, "batch n_atoms 3"]
    ) -> tuple[Float64[Tensor, "batch"], Float[Tensor, "batch n_atoms 3"]]:
        """Return energies (kJ/mol, float64) and forces (kJ/mol/nm, dtype of the positions), both detached."""
        with torch.enable_grad():
            x = self._columns(positions.detach()).requires_grad_()
            energy = self._energy(x)
            # Without terms, or with constant ones, nothing depends on the positions.
            gradient = torch.autograd.grad(energy.sum(), x)[0] if energy.requires_grad else torch.zeros_like(x)
        return energy.detach(), gradient.neg().permute(2, 1, 0).to(positions.dtype).contiguous()

    def compiled(self) -> nn.Module:
        """Return the `CompiledForceField`, the fast twin with the same face: energy and force in one compiled pass."""
        from boltzflow.forcefield.compiled import CompiledForceField  # which imports this module

        return CompiledForceField(self)

    def to_state(self) -> dict[str, Any]:
        """Return the parameters as plain tensors and numbers; `from_state` needs no OpenMM."""
        return {
            "format": _FORMAT,
            "n_atoms": self.n_atoms,
            "n_constraints": self.n_constraints,
            "dtype": str(self.dtype).removeprefix("torch."),
            "terms": [
                {"kind": type(term).__name__, "tensors": dict(term.state_dict()), "options": dict(term.options)}
                for term in self.terms
            ],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "ForceField":
        """Rebuild a force field from `to_state`.

        Raises:
            FormatError: the state was not written by this version, holds a kind of term that is not imported, or a
                parameter that is not finite.
        """
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            found = state.get("format") if isinstance(state, dict) else type(state).__name__
            raise FormatError(f"expected the parameters of a force field in format {_FORMAT!r}; found {found!r}")
        missing = sorted({term["kind"] for term in state["terms"]} - set(TERMS))
        if missing:
            raise FormatError(
                f"terms {missing} are not known (known: {sorted(TERMS)}); import the module that defines them"
            )
        for term in state["terms"]:
            bad = [name for name, tensor in term["tensors"].items() if not tensor.isfinite().all()]
            if bad:
                raise FormatError(f"the parameters {bad} of {term['kind']} are not finite; convert the System again")
        try:
            terms = [TERMS[term["kind"]](**term["tensors"], **term["options"]) for term in state["terms"]]
        except TypeError as error:  # parameters that the terms of this version do not have, or that they miss
            raise FormatError(f"the parameters are those of another version ({error}); convert the System") from error
        return cls(
            terms, n_atoms=state["n_atoms"], n_constraints=state["n_constraints"], dtype=getattr(torch, state["dtype"])
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write the parameters to a file, atomically."""
        path = Path(path)
        temporary = path.with_name(path.name + f".{os.getpid()}.part")
        try:
            torch.save(self.to_state(), temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ForceField":
        """Read the parameters that `save` wrote; OpenMM is not needed.

        Raises:
            FileNotFoundError: there is no such file.
            FormatError: the file is damaged, or `from_state` refuses it.
        """
        try:
            state = torch.load(path, weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # torch raises many kinds for a damaged file
            raise FormatError(f"{path} does not hold the parameters of a force field: {error}") from error
        return cls.from_state(state)

    def extra_repr(self) -> str:
        """Name the size and the dtype."""
        return f"n_atoms={self.n_atoms}, n_constraints={self.n_constraints}, dtype={self.dtype}"
