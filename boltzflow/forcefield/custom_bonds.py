"""Custom forces on fixed sets of atoms: bonds, angles, torsions, single atoms, compounds and groups."""

from typing import Any

import torch

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield import geometry
from boltzflow.forcefield.custom_lennard_jones import recognise_bonds
from boltzflow.forcefield.custom_term import CustomTerm, read_custom
from boltzflow.forcefield.expressions import Expression
from boltzflow.forcefield.operations import Operand
from boltzflow.forcefield.registry import register_force, tensor
from boltzflow.forcefield.tabulated_function import read_tables
from boltzflow.forcefield.term import Term

__all__ = ["CustomBonds"]

_N_POINTS = {"distance": 2, "angle": 3, "dihedral": 4}
_POINT_FUNCTIONS = {f"point{name}": name for name in _N_POINTS} | {"periodicdistance": "distance"}
_POINT_ARITY = {name: 3 * _N_POINTS[kind] for name, kind in _POINT_FUNCTIONS.items()}


def _of_coordinates(kind: str, box: Tensor | None) -> Any:
    """Return a function of points as one of their coordinates x1, y1, z1, x2, ..."""

    def evaluate(*coordinates: Operand) -> Tensor:
        like = next(c for c in coordinates if isinstance(c, Tensor))
        columns = torch.broadcast_tensors(*(torch.as_tensor(c).to(like) for c in coordinates))
        return getattr(geometry, kind)(*(torch.stack(columns[k : k + 3]) for k in range(0, len(columns), 3)), box)

    return evaluate


class CustomBonds(CustomTerm):
    """Energies of fixed sets of points, which are atoms or the centres of groups of atoms."""

    def __init__(
        self,
        *,
        atoms: Int[Tensor, "n_bonds n_points"],
        weights: Float[Tensor, "n_groups n_atoms"],
        parameter_values: Float[Tensor, "n_bonds n_parameters"],
        global_values: Float[Tensor, "n_globals"],
        table_values: Float[Tensor, "n_table_values"],
        expression: str,
        variables: dict[str, tuple],
        parameter_names: tuple[str, ...],
        global_names: tuple[str, ...],
        tables: dict[str, dict[str, Any]],
        periodic: bool = False,
    ) -> None:
        """Keep the sets.

        Args:
            atoms: the points of each set: atoms, or groups where there are any.
            weights: of the atoms in the centre of each group, each row summing to 1; empty without groups.
            parameter_values: of each set.
            global_values: of the global parameters.
            table_values: see `CustomTerm`.
            expression: of the energy in kJ/mol.
            variables: name of a variable -> what it is: a coordinate, ``("x", point)``, or ``("distance", i, j)``,
                ``("angle", i, j, k)`` or ``("dihedral", i, j, k, l)`` between the points of a set.
            parameter_names: see `CustomTerm`.
            global_names: see `CustomTerm`.
            tables: see `CustomTerm`.
            periodic: whether distances, angles and dihedrals are those of nearest images in a periodic box.
        """
        super().__init__(
            {
                "atoms": atoms,
                "weights": weights,
                "parameter_values": parameter_values,
                "global_values": global_values,
                "table_values": table_values,
            },
            parameter_names=parameter_names,
            global_names=global_names,
            tables=tables,
            expression=expression,
            variables=variables,
            periodic=periodic,
        )
        self._expression = self.parse(
            expression, {*variables, *parameter_names}, functions=_POINT_ARITY, symbols=_N_POINTS
        )

    def energy(
        self, x: Float[Tensor, "3 n_atoms batch"], r: Tensor | None, box: Tensor | None = None
    ) -> Float64[Tensor, "batch"]:
        """See `Term.energy`."""
        centres = torch.einsum("gn,cnb->cgb", self.weights, x) if len(self.weights) else x
        points = [centres.index_select(1, column) for column in self.atoms.T]
        values: dict[str, Operand] = dict(
            zip(self.options["parameter_names"], self.parameter_values.T[..., None], strict=True)
        )
        for name, (kind, *where) in self.options["variables"].items():
            if kind in _N_POINTS:
                values[name] = getattr(geometry, kind)(*(points[k] for k in where), box)
            else:
                values[name] = points[where[0]]["xyz".index(kind)]
        functions = {name: _of_coordinates(kind, box) for name, kind in _POINT_FUNCTIONS.items()}
        energy = self.evaluate(self._expression, values, functions)
        return self.settle(self.total(energy, x, len(self.atoms)), x)


def _term(
    force: Any,
    kind: str,
    rows: list,
    n_points: int,
    variables: dict[str, tuple],
    dtype: torch.dtype,
    weights: Float[Tensor, "n_groups n_atoms"] | None = None,
) -> Term:
    """Build the term from rows of (points, parameters)."""
    shared = read_custom(force, kind, dtype)
    return CustomBonds(
        atoms=tensor([row[0] for row in rows], None, (n_points,)),
        weights=torch.zeros(0, 0, dtype=dtype) if weights is None else weights,
        parameter_values=tensor([row[1] for row in rows], dtype, (len(shared["parameter_names"]),)),
        expression=force.getEnergyFunction(),
        variables=variables,
        periodic=force.usesPeriodicBoundaryConditions(),
        **shared,
    )


@register_force("CustomBondForce")
def _convert_bonds(force: Any, system: Any, dtype: torch.dtype) -> Term:
    # The distances of all pairs, which a Nonbonded term reads, pay for molecules, not for boxes of them.
    if not system.usesPeriodicBoundaryConditions():
        known = recognise_bonds(force, system.getNumParticles(), dtype)
        if known is not None:
            return known
    rows = [force.getBondParameters(k) for k in range(force.getNumBonds())]
    return _term(force, "Bond", [(row[:2], row[2]) for row in rows], 2, {"r": ("distance", 0, 1)}, dtype)


@register_force("CustomAngleForce")
def _convert_angles(force: Any, system: Any, dtype: torch.dtype) -> Term:
    rows = [force.getAngleParameters(k) for k in range(force.getNumAngles())]
    return _term(force, "Angle", [(row[:3], row[3]) for row in rows], 3, {"theta": ("angle", 0, 1, 2)}, dtype)


@register_force("CustomTorsionForce")
def _convert_torsions(force: Any, system: Any, dtype: torch.dtype) -> Term:
    rows = [force.getTorsionParameters(k) for k in range(force.getNumTorsions())]
    variables = {"theta": ("dihedral", 0, 1, 2, 3)}
    return _term(force, "Torsion", [(row[:4], row[4]) for row in rows], 4, variables, dtype)


@register_force("CustomExternalForce")
def _convert_external(force: Any, system: Any, dtype: torch.dtype) -> Term:
    rows = [force.getParticleParameters(k) for k in range(force.getNumParticles())]
    variables = {name: (name, 0) for name in "xyz"}
    return _term(force, "Particle", [(row[:1], row[1]) for row in rows], 1, variables, dtype)


def _point_variables(force: Any, n_points: int, letter: str) -> dict[str, tuple]:
    """Return what an expression uses of x1, y1, z1, x2, ... and of distance(p1,p2), angle and dihedral."""
    points = {f"{letter}{k + 1}": k for k in range(n_points)}
    known: dict[str, tuple] = {f"{axis}{k + 1}": (axis, k) for axis in "xyz" for k in range(n_points)}
    functions = _POINT_ARITY | {
        name: len(table["sizes"]) for name, table in read_tables(force, torch.float64)[0].items()
    }
    used = Expression(force.getEnergyFunction(), functions=functions, symbols=_N_POINTS).variables
    for name in used - set(known):
        kind, bracket, arguments = name.rstrip(")").partition("(")
        if bracket:
            unknown = sorted(set(arguments.split(",")) - set(points))
            if unknown:
                raise UnsupportedForceError(f"{name!r} names {unknown[0]!r}, which is none of {', '.join(points)}")
            known[name] = (kind, *(points[argument] for argument in arguments.split(",")))
    return {name: known[name] for name in sorted(used & set(known))}


@register_force("CustomCompoundBondForce")
def _convert_compounds(force: Any, system: Any, dtype: torch.dtype) -> Term:
    n = force.getNumParticlesPerBond()
    rows = [force.getBondParameters(k) for k in range(force.getNumBonds())]
    return _term(force, "Bond", rows, n, _point_variables(force, n, "p"), dtype)


@register_force("CustomCentroidBondForce")
def _convert_centroids(force: Any, system: Any, dtype: torch.dtype) -> Term:
    n, n_atoms = force.getNumGroupsPerBond(), system.getNumParticles()
    masses = tensor([system.getParticleMass(k) for k in range(n_atoms)], torch.float64)
    weights = torch.zeros(force.getNumGroups(), n_atoms, dtype=torch.float64)
    for row in range(force.getNumGroups()):
        atoms, given = force.getGroupParameters(row)
        weight = tensor(given, torch.float64) if given else masses[list(atoms)]
        weights[row].index_add_(0, tensor(atoms, None), weight / weight.sum())
    rows = [force.getBondParameters(k) for k in range(force.getNumBonds())]
    return _term(force, "Bond", rows, n, _point_variables(force, n, "g"), dtype, weights.to(dtype))
