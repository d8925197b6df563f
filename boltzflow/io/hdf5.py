"""Ensembles on disk: an MDTraj-HDF5 file with exact samples, weights, energies and provenance."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from boltzflow.errors import FormatError
from boltzflow.io.atomic import atomic_path

__all__ = ["FORMAT", "FORMAT_VERSION", "EnsembleRecord", "read_ensemble", "write_ensemble"]

FORMAT = "boltzflow ensemble"
FORMAT_VERSION = 1
# compresses coordinates of floats by about a tenth at full speed; gzip levels gain no more
COMPRESSION = {"compression": "gzip", "compression_opts": 1, "shuffle": True}


@dataclass(frozen=True, eq=False)
class EnsembleRecord:
    """What a file holds.

    Args:
        samples: Field name to array (n, *event), in the dtype in which it was sampled.
        columns: One value per row: log_weights, reduced_energies, groups, chain, frame.
        tables: Arrays of other lengths: group_sizes.
        metadata: JSON values: target, spaces, context, normalisation, base, log_z_base, provenance.
        topology: MDTraj JSON, or None.
    """

    samples: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]
    tables: dict[str, np.ndarray]
    metadata: dict[str, Any]
    topology: str | None


def write_ensemble(path: str | os.PathLike[str], record: EnsembleRecord) -> None:
    """Write a record atomically.

    With a topology and a field "positions" (n, n_atoms, 3) in nm, the file is also a trajectory that `mdtraj.load`
    opens: coordinates in float32, the exact samples beside them if they are float64.

    References:
        MDTraj HDF5 format, convention "Pande" 1.1.
    """
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["metadata"] = json.dumps(record.metadata)
        samples = file.create_group("samples")
        for name, values in record.samples.items():
            samples.create_dataset(name, data=values, **COMPRESSION)
        for name, values in record.columns.items():
            file.create_dataset(name, data=values)
        tables = file.create_group("tables")
        for name, values in record.tables.items():
            tables.create_dataset(name, data=values)
        if record.topology is not None:
            _write_trajectory(file, record)


def _write_trajectory(file: h5py.File, record: EnsembleRecord) -> None:
    file.attrs["conventions"] = "Pande"
    file.attrs["conventionVersion"] = "1.1"
    file.attrs["program"] = "boltzflow"
    file.attrs["programVersion"] = record.metadata["provenance"]["versions"].get("boltzflow", "unknown")
    file.create_dataset("topology", data=np.array([record.topology.encode()]))
    positions = record.samples.get("positions")
    if positions is None:
        return
    if positions.dtype == np.float32:
        file["coordinates"] = file["samples/positions"]
    else:
        file.create_dataset("coordinates", data=positions.astype(np.float32), **COMPRESSION)
    file["coordinates"].attrs["units"] = "nanometers"


def read_ensemble(path: str | os.PathLike[str]) -> EnsembleRecord:
    """Read what `write_ensemble` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        FormatError: If the file is not an ensemble of this package, is of a later format, or is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such ensemble file.")
    try:
        with h5py.File(path, "r") as file:
            _check_format(path, file)
            return EnsembleRecord(
                samples={name: values[()] for name, values in file["samples"].items()},
                columns={
                    n: v[()]
                    for n, v in file.items()
                    if isinstance(v, h5py.Dataset) and n not in ("coordinates", "topology")
                },
                tables={name: values[()] for name, values in file["tables"].items()},
                metadata=json.loads(file.attrs["metadata"]),
                topology=file["topology"][0].decode() if "topology" in file else None,
            )
    except FormatError:
        raise
    except (OSError, KeyError, ValueError) as error:
        raise FormatError(
            f"{path}: the ensemble file cannot be read ({error}); it is damaged or was cut short, use another copy."
        ) from error


def _check_format(path: Path, file: h5py.File) -> None:
    found = file.attrs.get("format")
    if found != FORMAT:
        missing = [name for name in ("samples", "log_weights", "reduced_energies") if name not in file]
        if "coordinates" in file:
            remedy = (
                "It is a trajectory: read it with mdtraj.load and build Ensemble(samples={'positions': t.xyz}, "
                "log_weights=zeros, "
                "reduced_energies=…, normalisation='none')."
            )
        else:
            remedy = "Make one with Ensemble.save or `boltzflow sample`."
        raise FormatError(
            f"{path}: not an ensemble of boltzflow (attribute format={found!r}, missing {missing or 'nothing'}). "
            f"{remedy}"
        )
    version = int(file.attrs.get("format_version", -1))
    if not 1 <= version <= FORMAT_VERSION:
        raise FormatError(
            f"{path}: format version {version}, this boltzflow reads up to {FORMAT_VERSION}; update boltzflow to "
            "read it."
        )
