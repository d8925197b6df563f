"""The force field of one molecule: the sum of its terms, batched over conformations and differentiable."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.errors import FormatError
from boltzflow.forcefield.box import box_columns, check_box
from boltzflow.forcefield.chunks import bytes_per_conformation, default_bound
from boltzflow.forcefield.constraints import ConstraintParameters
from boltzflow.forcefield.parameters import parameter_owners, replaced_terms
from boltzflow.forcefield.term import TERMS, Term, all_pairs, pair_distances
from boltzflow.forcefield.virtual_sites import VirtualSites

__all__ = ["AngleParameters", "BondParameters", "ForceField", "TorsionParameters"]

_FORMAT = "boltzflow-forcefield-5"


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

    Periodic terms take a box, (3, 3) or (batch, 3, 3) in nm: the vectors (ax, 0, 0), (bx, by, 0), (cx, cy, cz) in
    OpenMM's reduced form; by default that of the System. Positions need not be wrapped into it.

    The rows of virtual sites in the positions are not read: the sites are placed by their parents, as by OpenMM's
    ``computeVirtualSites``. Forces on them are handed on to the parents, and their own rows are zero.

    Every parameter is a named tensor, see `parameter_tensors`, that can be given anew in a call, be differentiated, or
    be given for many states at once.

    What need not stay in memory for a gradient to be taken later, that is `energy_and_force`, and `forward` without
    gradients, is evaluated in chunks of conformations that take about ``chunk_bytes`` each.

    Attributes:
        constraints: fixed distances of the System, None without; float64 on the CPU whatever the dtype.
        chunk_bytes: bound on the memory of one chunk; a chunk has at least one conformation. By default
            ``$BOLTZFLOW_CHUNK_BYTES``, or 2^30.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        *,
        n_atoms: int,
        constraints: ConstraintParameters | None = None,
        dtype: torch.dtype = torch.float64,
        box: Float[Tensor, "3 3"] | None = None,
        sites: VirtualSites | None = None,
    ) -> None:
        """Keep the terms.

        Args:
            terms: whose energies are summed.
            n_atoms: number of atoms.
            constraints: of the System; the energy does not depend on them, but the density of a Target does.
            dtype: of the arithmetic; positions are cast to it.
            box: default box of periodic terms, three vectors in nm.
            sites: virtual sites, None without.
        """
        super().__init__()
        self.terms = nn.ModuleList(terms)
        self.n_atoms = n_atoms
        self.constraints = constraints
        self.register_buffer("_dtype", torch.zeros((), dtype=dtype), persistent=False)
        self.register_buffer("_ij", all_pairs(n_atoms), persistent=False)
        self.register_buffer("_box", None if box is None else box.detach().to(dtype).clone(), persistent=False)
        self.sites = sites
        self.chunk_bytes = default_bound()
        self._bytes: int | None = None  # of one conformation, measured when it is needed

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

    @property
    def box(self) -> Float[Tensor, "3 3"] | None:
        """The default box in nm, None without periodic terms."""
        return self._box

    @property
    def n_constraints(self) -> int:
        """Number of constrained distances."""
        return 0 if self.constraints is None else len(self.constraints.atoms)

    @property
    def periodic(self) -> bool:
        """Whether the energy depends on a periodic box."""
        return any(term.periodic for term in self.terms)

    def _gather(self, kind: str, names: tuple[str, ...], n: int) -> list[Tensor]:
        found = [[getattr(term, name) for name in names] for term in self.terms if type(term).__name__ == kind]
        empty = {"atoms": self._ij.new_zeros((0, n)), "periodicity": self._ij.new_zeros(0)}
        found = found or [[empty.get(name, self._dtype.new_zeros(0)) for name in names]]
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def parameter_tensors(self) -> dict[str, Tensor]:
        """Return every physical parameter by name, such as ``"HarmonicBonds.k"`` or ``"Nonbonded.charge"``.

        Where there are several terms of a kind, they are told apart as ``"CustomBonds[0].parameter_values"``. Not among
        them are cutoffs, switching distances, the split of an Ewald sum, and the rules of virtual sites.
        """
        return {
            name: self.terms[index].state_dict(keep_vars=True)[own]
            for name, ((index, own), *_) in parameter_owners(list(self.terms)).items()
        }

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> "ForceField":
        """Return the force field with some parameters replaced; gradients reach through to those given.

        Args:
            parameters: name, as in `parameter_tensors` -> tensor of the same shape.

        Raises:
            UnknownNameError: a name that is no parameter; the nearest are named.
            ValueError: another shape.
        """
        states, several = self._states(parameters)
        if several:
            raise ValueError("parameters of several states are given; a force field has one: give them to forward")
        return states[0]

    def with_terms(self, terms: Sequence[Term]) -> "ForceField":
        """Return the force field of the same atoms with other terms."""
        common = {"constraints": self.constraints, "dtype": self.dtype, "box": self._box, "sites": self.sites}
        found = ForceField(terms, n_atoms=self.n_atoms, **common)
        found.chunk_bytes = self.chunk_bytes
        return found.to(self.device)

    def _states(self, parameters: Mapping[str, Tensor]) -> tuple[list["ForceField"], bool]:
        """Return a force field for each state, and whether the parameters have a dimension of states."""
        states, several = replaced_terms(list(self.terms), parameters)
        found = [
            self.with_terms([replaced.get(index, term) for index, term in enumerate(self.terms)]) for replaced in states
        ]
        return found, several

    def _energy(
        self, x: Float[Tensor, "3 n_atoms batch"], box: Float[Tensor, "3 3 1 _"] | None
    ) -> Float64[Tensor, "batch"]:
        return self._energies(x, box, [{}])[0]

    def _energies(
        self, x: Float[Tensor, "3 n_atoms batch"], box: Float[Tensor, "3 3 1 _"] | None, states: list[dict[int, Term]]
    ) -> Float64[Tensor, "n_states batch"]:
        """Return the energies with some terms replaced in each state; what no state replaces is evaluated once."""
        if self.sites is not None:
            x = self.sites(x)
        shared = any(term.uses_pairs and not term.periodic for term in self.terms)
        r = pair_distances(x, *self._ij) if shared else None

        def energy(term: Term) -> Tensor:
            return term.energy(x, None, box) if term.periodic else term.energy(x, r)

        known: dict[Term, Tensor] = {}
        rows = []
        for replaced in states:
            total = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
            for index, own in enumerate(self.terms):
                term = replaced.get(index, own)
                if term not in known:
                    known[term] = energy(term)
                total = total + known[term]
            rows.append(total)
        return torch.stack(rows)

    def check(self, positions: Tensor) -> None:
        """Raise ValueError unless positions are (batch, n_atoms, 3)."""
        if positions.ndim != 3 or positions.shape[1:] != (self.n_atoms, 3):
            raise ValueError(f"positions must be (batch, {self.n_atoms}, 3) in nm; found {tuple(positions.shape)}")

    def _columns(self, positions: Tensor) -> Tensor:
        """Return positions as (3, n_atoms, batch) in the dtype of the parameters."""
        self.check(positions)
        return positions.permute(2, 1, 0).to(self.dtype).contiguous()

    def _cell(self, box: Tensor | None, n: int) -> Tensor | None:
        """Return the box of ``n`` conformations as terms take it, or None without periodic terms; refuse unfit ones."""
        if not self.periodic:
            if box is not None:
                raise ValueError("no force of this force field is periodic: its energy has no box; leave box out")
            return None
        if box is None and self._box is None:
            raise ValueError(
                "this force field is periodic and has no default box; give box, (3, 3) or (batch, 3, 3) in nm"
            )
        box = (self._box if box is None else box).to(self._dtype)
        cutoff = max(term.options.get("cutoff", 0.0) for term in self.terms if term.periodic)
        check_box(box, n=n, cutoff=cutoff)
        return box_columns(box)

    def _chunks(self, x: Tensor, cell: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        """Return positions and boxes of parts of the batch that keep to the bound on memory."""
        n = x.shape[-1]
        # A generous estimate: what is small beyond doubt needs no measurement.
        if n < 2 or n * x.element_size() * self.n_atoms**2 * 64 * len(self.terms) < self.chunk_bytes:
            return [(x, cell)]
        if self._bytes is None:
            first = None if cell is None else cell[..., :1]
            self._bytes = bytes_per_conformation(lambda some: self._energy(some, first), x[..., :1])
        size = max(1, self.chunk_bytes // self._bytes)
        if size >= n:
            return [(x, cell)]
        shared = cell is None or cell.shape[-1] == 1
        parts = [slice(start, start + size) for start in range(0, n, size)]
        return [(x[..., part].contiguous(), cell if shared else cell[..., part]) for part in parts]

    def forward(
        self,
        positions: Float[Tensor, "batch n_atoms 3"],
        box: Float[Tensor, "*batch 3 3"] | None = None,
        *,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> Float64[Tensor, "*n_states batch"]:
        """Return the energy of each conformation.

        Args:
            positions: in nm.
            box: of all conformations or of each, in nm, if the force field is periodic; None takes the default.
            parameters: name, as in `parameter_tensors` -> the tensor to use instead. Energies are differentiable with
                respect to it. One more dimension in front stands for states: one energy in each of them.

        Returns:
            Energies in kJ/mol, float64, (n_states, batch) where parameters are given for states. A conformation with
            NaN positions has energy NaN.

        Raises:
            UnknownNameError: a name that is no parameter; the nearest are named.
            ValueError: positions of another shape; a box that is not in reduced form, or smaller than twice the cutoff
                (the message says in which conformations); a periodic force field without a box, or a box where no force
                is periodic.
        """
        x, cell = self._columns(positions), self._cell(box, len(positions))
        states, several = replaced_terms(list(self.terms), parameters or {})
        followed = [x, *(buffer for replaced in states for term in replaced.values() for buffer in term.buffers())]
        if cell is not None:
            followed.append(cell)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in followed):
            energies = self._energies(x, cell, states)
        else:
            energies = torch.cat([self._energies(*part, states) for part in self._chunks(x, cell)], 1)
        return energies if several else energies[0]

    def energy_and_force(
        self, positions: Float[Tensor, "batch n_atoms 3"], box: Float[Tensor, "*batch 3 3"] | None = None
    ) -> tuple[Float64[Tensor, "batch"], Float[Tensor, "batch n_atoms 3"]]:
        """Return energies (kJ/mol, float64) and forces (kJ/mol/nm, dtype of the positions), both detached.

        Args:
            positions: in nm.
            box: see `forward`.

        Raises:
            ValueError: see `forward`.
        """
        x, cell = self._columns(positions.detach()), self._cell(None if box is None else box.detach(), len(positions))
        energies, gradients = zip(*(self._energy_and_gradient(*part) for part in self._chunks(x, cell)), strict=True)
        force = torch.cat(gradients, 2).neg().permute(2, 1, 0).to(positions.dtype).contiguous()
        return torch.cat(energies), force

    def _energy_and_gradient(self, x: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self._energy(x, cell)
            # Without terms, or with constant ones, nothing depends on the positions.
            gradient = torch.autograd.grad(energy.sum(), x)[0] if energy.requires_grad else torch.zeros_like(x)
        return energy.detach(), gradient

    def compiled(self) -> nn.Module:
        """Return the `CompiledForceField`, the fast twin with the same face: energy and force in one compiled pass."""
        from boltzflow.forcefield.compiled import CompiledForceField  # which imports this module

        return CompiledForceField(self)

    def to_state(self) -> dict[str, Any]:
        """Return the parameters as plain tensors and numbers; `from_state` needs no OpenMM."""
        return {
            "format": _FORMAT,
            "n_atoms": self.n_atoms,
            "constraints": None if self.constraints is None else self.constraints._asdict(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "terms": [
                {"kind": type(term).__name__, "tensors": dict(term.state_dict()), "options": dict(term.options)}
                for term in self.terms
            ],
            "box": self._box,
            "sites": None if self.sites is None else dict(self.sites.state_dict()),
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
            terms,
            n_atoms=state["n_atoms"],
            constraints=None if state["constraints"] is None else ConstraintParameters(**state["constraints"]),
            dtype=getattr(torch, state["dtype"]),
            box=state["box"],
            sites=None if state["sites"] is None else VirtualSites(**state["sites"]),
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
