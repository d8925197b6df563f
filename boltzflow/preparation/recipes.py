"""Run configurations for a new system, chosen by its number of dimensions."""

import textwrap
from dataclasses import dataclass

from boltzflow.errors import UnsupportedForceError
from boltzflow.io.config import SimulationConfig
from boltzflow.simulation.settings import LARGE, complete, forces_per_sweep, ladder, n_sweeps
from boltzflow.systems import System

__all__ = ["recipes_for"]

SMALL = 100
"""Up to here the flow of the shipped alanine dipeptide (60 dimensions) is used as it is."""

_COOLING = {"hot_steps": 350, "cooling_steps": 700, "steps": 1750, "batch_size": 256}
_BUFFERS = {"n": 45, "rows": 100_000, "steps": 200}
"""Of training from the energy alone: what alanine dipeptide took; steps are those on one buffer."""

_BOX = {"n": 2000, "chains": 4, "stride": 500, "burn_in": 20_000}
"""Of molecular dynamics in a box, where a step takes milliseconds and liquids forget within picoseconds."""


@dataclass(frozen=True)
class _Flow:
    """Sizes of a spline flow and of its two stages of training."""

    n_couplings: int
    hidden: int
    frames: int
    chains: int
    stride: int
    steps: int
    refinement_steps: int


_FLOWS = {
    "small": _Flow(8, 128, frames=200_000, chains=200, stride=3, steps=6000, refinement_steps=5000),
    "medium": _Flow(12, 256, frames=200_000, chains=100, stride=5, steps=20_000, refinement_steps=10_000),
}


def recipes_for(system: System) -> dict[str, str]:
    """Run configurations that suit the size of a system.

    Up to 250 dimensions: a spline flow by maximum likelihood on frames of parallel tempering ("likelihood"), a second
    stage on its own weighted samples ("self_weighted"), and "parallel_tempering" for those who need one ensemble only.
    Up to 100 dimensions also two stages without any simulation ("energy_only_1_cooling", "energy_only"): beyond, a
    training of such a size loses rare states (the capped hexapeptide those with αL). Above 250 dimensions a single
    flow has no effective samples left, and the only recipe is "parallel_tempering". In a periodic box, and where the
    torch force field does not know a force of the System, it is "molecular_dynamics".

    Args:
        system: In a folder; the recipes refer to it, so that they work wherever it is put.

    Returns:
        Name of the recipe → commented YAML, for `recipes/NAME.yaml` in the system's folder; the default comes first.
    """
    if system.box is not None:
        why = "every other sampler is for molecules in infinite space, and this system is in a periodic box."
        return {"molecular_dynamics": _molecular_dynamics(system, why, SimulationConfig(method="md", **_BOX))}
    try:
        system.potential  # noqa: B018 - whether it can be made is the question
    except UnsupportedForceError as error:
        why = f"the torch force field, which everything else needs, does not know all of its forces. {error}"
        return {"molecular_dynamics": _molecular_dynamics(system, why, SimulationConfig(method="md"))}
    if system.dimension > LARGE:
        return {"parallel_tempering": _parallel_tempering(system)}
    size = "small" if system.dimension <= SMALL else "medium"
    flow = _FLOWS[size]
    found = {"likelihood": _likelihood(system, flow, size), "self_weighted": _self_weighted(system, flow)}
    if size == "small":
        found |= {"energy_only_1_cooling": _cooling(system, flow), "energy_only": _buffers(system, flow)}
    return {**found, "parallel_tempering": _parallel_tempering(system)}


def _commented(*paragraphs: str) -> str:
    """Paragraphs as YAML comments; a line that starts with two spaces is a command and stays as it is."""
    lines = []
    for paragraph in paragraphs:
        for line in paragraph.splitlines():
            lines += [line] if line.startswith("  ") else textwrap.wrap(line, 100) or [""]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def _cost(system: System, settings: SimulationConfig) -> str:
    """Sweeps and rows of a parallel tempering in words."""
    settings = complete(settings, dimension=system.dimension)
    temperatures = ladder(system.temperature, settings.max_temperature, dimension=system.dimension)
    sweeps = n_sweeps(settings, dimension=system.dimension)
    return (
        f"{settings.chains} ladders of {len(temperatures)} temperatures from {temperatures[0]:g} to "
        f"{temperatures[-1]:.0f} K, {sweeps} sweeps, {sweeps * forces_per_sweep(system, settings):.1e} "
        "evaluations of energy and force"
    )


def _likelihood(system: System, flow: _Flow, size: str) -> str:
    name = system.folder.name
    settings = SimulationConfig(n=flow.frames, chains=flow.chains, stride=flow.stride)
    head = _commented(
        f"{system.name}, {system.dimension} dimensions ({size}): stage 1 of 2, a spline flow by maximum likelihood on "
        "frames of parallel tempering. It learns every mode that the simulation visited.",
        f"Cost: {_cost(system, settings)}; then {flow.steps} optimisation steps of 512 frames. In hours on your "
        f"machine: boltzflow forecast {name}",
        "Commands, in the folder that holds this system's; the first makes the data, the last is stage 2:",
        f"  boltzflow simulate {name}/recipes/likelihood.yaml",
        f"  boltzflow train {name}/recipes/likelihood.yaml",
        f"  boltzflow sample runs/{name}-likelihood -n 20000 -o ensemble.h5    # weighted, usable already",
        f"  boltzflow train {name}/recipes/self_weighted.yaml --initial runs/{name}-likelihood/checkpoint.pt",
    )
    return (
        head
        + f"""system: ..
simulation: # what `boltzflow simulate` runs; it writes objective.data
  method: pt
  n: {flow.frames}
  chains: {flow.chains}
  stride: {flow.stride}
  burn_in: 500
  max_temperature: {settings.max_temperature}
{_generator(flow)}objective:
  likelihood: 1.0
  data: ../data/reference.h5 # relative to this file
training:
  steps: {flow.steps}
  batch_size: 512
  learning_rate: {2.0e-3 if size == "small" else 1.0e-3}
  final_learning_rate_fraction: 0.05
  threads: 1
"""
    )


def _self_weighted(system: System, flow: _Flow) -> str:
    name = system.folder.name
    head = _commented(
        f"{system.name}, {system.dimension} dimensions: stage 2 of 2, on the model's own weighted samples, with a term "
        "for the frames to which it gives too little density. It removes the noise that the likelihood leaves.",
        f"Cost: {flow.refinement_steps} optimisation steps of 1024 own samples and 2048 frames, each with one energy: "
        f"{flow.refinement_steps * 3072:.1e} energies without forces. In hours: boltzflow forecast {name}",
        "Commands; stage 1 comes before, see likelihood.yaml, and its generator must be the same:",
        f"  boltzflow train {name}/recipes/self_weighted.yaml --initial runs/{name}-likelihood/checkpoint.pt",
        f"  boltzflow sample runs/{name}-self_weighted -n 20000 -o ensemble.h5",
        "  boltzflow analyze ensemble.h5",
        "  boltzflow report ensemble.h5 -o report.html",
    )
    return (
        head
        + f"""system: ..
{_generator(flow)}objective:
  likelihood: 0.0
  coverage: 1.0
  self_forward_kl: 1.0
  self_reverse_kl: 0.2
  data: ../data/reference.h5 # relative to this file
training:
  steps: {flow.refinement_steps}
  batch_size: 2048
  reverse_batch_size: 1024
  learning_rate: {1.0e-3 if flow is _FLOWS["small"] else 5.0e-4}
  final_learning_rate_fraction: 0.01
  threads: 1
sampling:
  n: 20000
"""
    )


def _cooling(system: System, flow: _Flow) -> str:
    name, steps, batch = system.folder.name, _COOLING["steps"], _COOLING["batch_size"]
    head = _commented(
        f"{system.name}, {system.dimension} dimensions: from the energy alone, stage 1 of 2. No data: an untrained "
        "flow, path gradients towards the target, and a temperature that falls from "
        f"{4 * system.temperature:.0f} to {system.temperature:g} K. For a molecule that no simulation can sample, or "
        "to check one that did.",
        f"Cost: {steps} optimisation steps of {batch} samples, each with an energy and a force: {steps * batch:.1e}. "
        f"In hours on your machine: boltzflow forecast {name}",
        "Commands:",
        f"  boltzflow train {name}/recipes/energy_only_1_cooling.yaml",
        f"  boltzflow train {name}/recipes/energy_only.yaml --initial runs/{name}-energy_only_1_cooling/checkpoint.pt",
        "`power` in the metrics should rise to 1: it is the exponent by which the weights of a batch are flattened. If "
        "it stands still, lower the learning rate or enlarge the batch.",
    )
    return (
        head
        + f"""system: ..
{_generator(flow)}objective:
  likelihood: 0.0
  path_forward_kl: 1.0
  path_min_efficiency: 0.2
  annealing:
    method: cooling
    hottest: 4.0 # relative to the system's temperature
    hot_steps: {_COOLING["hot_steps"]}
    cooling_steps: {_COOLING["cooling_steps"]}
training:
  steps: {steps}
  reverse_batch_size: {batch}
  learning_rate: 1.0e-3
  final_learning_rate_fraction: 0.02
  warmup_steps: 100
  ema_decay: 0.998
  threads: 1
"""
    )


def _buffers(system: System, flow: _Flow) -> str:
    name, buffers, rows = system.folder.name, _BUFFERS["n"], _BUFFERS["rows"]
    steps = buffers * _BUFFERS["steps"]
    head = _commented(
        f"{system.name}, {system.dimension} dimensions: from the energy alone, stage 2 of 2, on buffers of the model's "
        "own weighted samples, with a share of the chi-squared divergence for rare states.",
        f"Cost: {buffers} buffers of {rows} energies without forces, {buffers * rows:.1e} in all, and {steps} "
        f"optimisation steps of 1024 of their rows. In hours: boltzflow forecast {name}",
        "Commands; stage 1 comes before, see energy_only_1_cooling.yaml, and its generator must be the same. The "
        "second continues, as often as it helps:",
        f"  boltzflow train {name}/recipes/energy_only.yaml --initial runs/{name}-energy_only_1_cooling/checkpoint.pt",
        f"  boltzflow train {name}/recipes/energy_only.yaml --initial runs/{name}-energy_only/checkpoint.pt -o runs/on",
        f"  boltzflow sample runs/{name}-energy_only -n 20000 -o ensemble.h5",
        "  boltzflow report ensemble.h5 -o report.html",
        "A state that the model lost has no samples, so nothing here shows it. Compare with a second run of another "
        "training.seed, or with parallel_tempering.yaml.",
    )
    return (
        head
        + f"""system: ..
{_generator(flow)}objective:
  likelihood: 0.0
  path_forward_kl: 1.0 # after the last buffer, if more steps are asked for
  annealing:
    method: cooling
    hot_steps: 0
    cooling_steps: 0
    cold_stages: {buffers}
    stage_steps: {_BUFFERS["steps"]}
    buffer_size: {rows}
    clip_fraction: 0.0
    chi_squared: 0.3
training:
  steps: {steps}
  batch_size: 1024
  learning_rate: 2.0e-4
  final_learning_rate_fraction: 0.0
  warmup_steps: 50
  ema_decay: 0.998
  threads: 1
sampling:
  n: 20000
"""
    )


def _generator(flow: _Flow) -> str:
    return f"""generator:
  family: internal_spline_flow
  n_couplings: {flow.n_couplings}
  hidden: [{flow.hidden}, {flow.hidden}]
  n_bins: 8
"""


def _parallel_tempering(system: System) -> str:
    name = system.folder.name
    large = system.dimension > LARGE
    settings = complete(SimulationConfig(keep="all", stride=None if large else 50), dimension=system.dimension)
    why = (
        "the default at this size: a single flow over all coordinates loses its effective samples exponentially with "
        "the dimension."
        if large
        else "if one ensemble is all you need; a trained flow pays when you need many."
    )
    moves = (
        "Moves that a trained flow proposes (simulation.moves) are no help at this size: their acceptance falls "
        "exponentially with the dimension, too."
        if large
        else "Once a flow is trained, it can propose moves; that is exact whatever the flow is worth, and the "
        f"acceptance is printed:\n  boltzflow simulate {name}/recipes/parallel_tempering.yaml --moves "
        f"runs/{name}-likelihood -o ensemble.h5"
    )
    head = _commented(
        f"{system.name}, {system.dimension} dimensions: parallel tempering, {why} Frames of all temperatures are kept "
        f"and weighted for {system.temperature:g} K by MBAR.",
        f"Cost: {_cost(system, settings)}. In hours on your machine: boltzflow forecast {name}",
        "Commands; Ctrl-C keeps the frames that are finished, and a longer run has a larger burn_in and stride:",
        f"  boltzflow simulate {name}/recipes/parallel_tempering.yaml -o ensemble.h5",
        "  boltzflow analyze ensemble.h5",
        "  boltzflow report ensemble.h5 -o report.html",
        "Believe it when R-hat of the energy is below 1.01 and walkers make round trips on every ladder: folding takes "
        "longer than any of these runs, and states that no ladder reached are not in the error bars.",
        moves,
    )
    return (
        head
        + f"""system: ..
simulation:
  method: pt
  n: {settings.n} # frames in the file, over all ladders and temperatures
  chains: {settings.chains} # independent ladders; error bars are between them
  stride: {settings.stride} # sweeps between frames
  burn_in: {settings.burn_in} # sweeps; step sizes are adapted, then frozen
  max_temperature: {settings.max_temperature} # of the hottest replica, relative to the system's
  keep: all # cold = frames of the system's temperature only, with equal weights
"""
    )


def _molecular_dynamics(system: System, reason: str, settings: SimulationConfig) -> str:
    name = system.folder.name
    settings = complete(settings, dimension=system.dimension)
    steps = n_sweeps(settings, dimension=system.dimension)
    head = _commented(
        f"{system.name}: OpenMM molecular dynamics, because {' '.join(reason.split())}",
        f"Cost: {settings.chains} replicas of {steps} steps. In hours on your machine: boltzflow forecast {name}",
        f"  boltzflow simulate {name}/recipes/molecular_dynamics.yaml -o ensemble.h5",
    )
    return (
        head
        + f"""system: ..
simulation:
  method: md
  n: {settings.n} # frames in the file, over all replicas
  chains: {settings.chains}
  stride: {settings.stride} # steps between frames
  burn_in: {settings.burn_in} # steps
"""
    )
