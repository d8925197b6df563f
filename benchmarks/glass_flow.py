"""Annealed flow, population annealing and parallel tempering of a supercooled liquid at equal numbers of target calls.

python benchmarks/glass_flow.py [--part plain|swaps] [--populations 10] [--size 400] [--sweeps 25] [--threads 1]

All of them start from the same frames at T = 1, made by swap Monte Carlo, and go down to 0.23 by moves of single
particles, in one part without and in the other with exchanges of species. Every target call counts: hot frames, pilot
of the step sizes, the population on which the maps are fitted, burn-in. A call is one energy of the 43 particles; a
particle that is moved counts by its share of the pairs. A part is added to the results of the other.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _record import record

from boltzflow.generators import Generator, Schedule, find_schedule, smc
from boltzflow.networks import PairField
from boltzflow.objectives import fit_transport
from boltzflow.paths import TemperedPath
from boltzflow.run import Ledger, make_rng
from boltzflow.simulation import ChainResult, ParallelTempering
from boltzflow.targets import FramesBase, TernaryLiquid
from boltzflow.transitions import BatchStep, EulerFlow, swap_monte_carlo

HOT = 1.0
# fmt: off
TEMPERATURES = (
    0.93, 0.865, 0.805, 0.75, 0.70, 0.65, 0.605, 0.565, 0.525, 0.485, 0.45,
    0.425, 0.40, 0.372, 0.347, 0.323, 0.30, 0.285, 0.27, 0.25, 0.23,
)
# fmt: on
RUNGS = (0.23, 0.25, 0.27, 0.30, 0.347, 0.40, 0.45, 0.525, 0.605, 0.70, 0.805, 0.93, 1.0)
PARTS = {"plain": 0.0, "swaps": 0.2}
"""Fraction of the moves that exchange species."""


@dataclass
class Levels:
    """Of every population at every temperature: log-mean weight since the last one, effective fraction, energies."""

    log_mean: dict[float, list[float]] = field(default_factory=dict)
    effective: dict[float, list[float]] = field(default_factory=dict)
    moments: dict[float, list[tuple[float, float]]] = field(default_factory=dict)

    def watch(self, generator: Generator, temperatures: tuple[float, ...], target: TernaryLiquid) -> None:
        """Look on while the generator runs: weights when it resamples, energies after the moves of a level."""
        at = {level: t for level, t in zip(_levels(temperatures), temperatures, strict=True)}
        for step in generator.transitions:
            if isinstance(step, BatchStep):
                step.choose = partial(self._weights, at[step.level], step.choose)
        # the last move of every level
        for step in {step.level: step for step in generator.transitions if step.level is not None}.values():
            step.register_forward_hook(partial(self._energies, at[step.level], target))

    def _weights(self, t: float, choose, log_weights, rng):
        self.add_weights(t, log_weights)
        return choose(log_weights, rng)

    def add_weights(self, t: float, log_weights: torch.Tensor) -> None:
        n = len(log_weights)
        log_sum = torch.logsumexp(log_weights, 0)
        self.log_mean.setdefault(t, []).append(float(log_sum) - math.log(n))
        effective = torch.exp(2 * log_sum - torch.logsumexp(2 * log_weights, 0)) / n
        self.effective.setdefault(t, []).append(float(effective))

    def _energies(self, t: float, target: TernaryLiquid, step, arguments, output) -> None:
        state, _ = output
        per_particle = state.evaluations[target].energy * target.temperature / target.n_particles
        self.moments.setdefault(t, []).append((float(per_particle.mean()), float(per_particle.square().mean())))


def _levels(temperatures: tuple[float, ...]) -> list[float]:
    coldest = temperatures[-1]
    return [1.0 - math.log(t / coldest) / math.log(HOT / coldest) if t > coldest else 1.0 for t in temperatures]


def energy_and_capacity(
    moments: np.ndarray, log_weights: np.ndarray, t: float, n_particles: int
) -> tuple[float, float, float, float]:
    """E/N and c_V/N with their jackknife errors over populations or chains of given mean energies and squares."""

    def both(keep: np.ndarray) -> np.ndarray:
        w = np.exp(log_weights[keep] - log_weights[keep].max())
        mean, square = (w[:, None] * moments[keep]).sum(0) / w.sum()
        return np.array([mean, n_particles * (square - mean**2) / t**2])

    n = len(moments)
    left_out = np.array([both(np.arange(n) != k) for k in range(n)])
    error = np.sqrt((n - 1) / n * ((left_out - left_out.mean(0)) ** 2).sum(0))
    value = both(np.ones(n, dtype=bool))
    return float(value[0]), float(error[0]), float(value[1]), float(error[1])


def hot_frames(target: TernaryLiquid, n_frames: int, seed: int) -> tuple[FramesBase, int]:
    """Frames at the highest temperature, and the calls that they cost.

    By swap Monte Carlo: without exchanges the mixture needs thousands of sweeps even there.
    """
    liquid, n_chains = TernaryLiquid(temperature=HOT).double(), 200
    chains = ParallelTempering(
        liquid, liquid.start(n_chains, make_rng(seed)), temperatures=[HOT], n_chains=n_chains,
        kernels=swap_monte_carlo(liquid.species), seed=seed,
    )  # fmt: skip
    chains.burn_in(500)
    x = chains.run(n_frames // n_chains, sweeps_per_record=25).samples["positions"]
    return FramesBase(target.state(x.flatten(0, 1)), liquid), chains.ledger.n_energy()


def sampler(base: FramesBase, target: TernaryLiquid, schedule: Schedule, kernels: list, *, maps: bool) -> Generator:
    """Population annealing, with or without maps between the temperatures."""
    path = partial(TemperedPath, beta_0=target.temperature / HOT)
    fields = [PairField(target.species.tolist(), 2, box=target.length, start=0.6, n_basis=10) for _ in schedule.levels]
    return smc(
        base, kernels, schedule, threshold=1.0, path=path,
        maps=[EulerFlow(one) for one in fields] if maps else None,
    ).double()  # fmt: skip


def _kernels(target: TernaryLiquid, sweeps: int, swap_fraction: float) -> list:
    return swap_monte_carlo(target.species, step_size=0.07, swap_fraction=swap_fraction, n_sweeps=sweeps)


def anneal(generator: Generator, target: TernaryLiquid, populations: int, size: int, spent: int, seed: int) -> dict:
    """Run populations and report every temperature."""
    began = time.process_time()
    levels = Levels()
    levels.watch(generator, TEMPERATURES, target)
    ensembles = list(generator.sample_shards(populations * size, target, seed, batch_size=size))
    ledger, coldest = Ledger(), TEMPERATURES[-1]
    levels.moments[coldest] = []
    for p, one in enumerate(ensembles):
        # the rows of the last temperature are not resampled; what came before is the same for all of them
        before = sum(levels.log_mean[t][p] for t in TEMPERATURES[:-1])
        log_weights = torch.as_tensor(one.log_weights)
        levels.add_weights(coldest, log_weights - before)
        w = torch.softmax(log_weights, 0)
        e = torch.as_tensor(one.reduced_energies) * coldest / target.n_particles
        levels.moments[coldest].append((float(w @ e), float(w @ e.square())))
        ledger.merge(Ledger.from_dict(one.provenance.ledger))
    rho = [p["rho_t"] for e in ensembles for p in e.provenance.extra["populations"]]
    rows, log_weights = {}, np.zeros(populations)
    for t in TEMPERATURES:
        log_weights = log_weights + np.array(levels.log_mean[t])
        e, de, c, dc = energy_and_capacity(np.array(levels.moments[t]), log_weights, t, target.n_particles)
        rows[f"{t:g}"] = {
            "E/N": e, "E/N error": de, "c_V/N": c, "c_V/N error": dc,
            "effective fraction since the last temperature": float(np.mean(levels.effective[t])),
        }  # fmt: skip
    return {
        "populations": populations,
        "size": size,
        "target calls": ledger.n_energy() + spent,
        "force calls among them": ledger.n_force(),
        "failed rows": int(sum(e.provenance.n_failed for e in ensembles)),
        "rho_t, mean": float(np.mean(rho)),
        "independent families, n/rho_t": float(np.sum(size / np.array(rho))),
        "effective populations": float(np.exp(2 * _lse(log_weights) - _lse(2 * log_weights))),
        "log mean weight, standard deviation over populations": float(log_weights.std(ddof=1)),
        "CPU seconds": time.process_time() - began,
        "temperatures": rows,
    }


def _lse(x: np.ndarray) -> float:
    return float(x.max() + np.log(np.exp(x - x.max()).sum()))


def temper(
    base: FramesBase, target: TernaryLiquid, calls: int, ladders: int, seed: int, *, swap_fraction: float
) -> dict:
    """Parallel tempering of so many target calls, a fifth of them burn-in, from the hot frames."""
    began = time.process_time()
    start = target.state(base.sample(ladders, make_rng(seed))["positions"])
    chains = ParallelTempering(
        target, start, temperatures=list(RUNGS), n_chains=ladders,
        kernels=swap_monte_carlo(target.species, step_size=0.07, swap_fraction=swap_fraction), seed=seed,
    )  # fmt: skip
    chains.burn_in(50)
    per_sweep = chains.ledger.n_energy() / 50
    chains.burn_in(max(1, round(0.2 * calls / per_sweep)))
    stride = 5
    n_records = max(20, round((calls - chains.ledger.n_energy()) / per_sweep / stride))
    energies, rungs = [], []

    def keep(frames: ChainResult) -> None:
        energies.append(frames.reduced_energies)
        rungs.append(frames.rungs)

    # the positions are not wanted
    result = chains.run(n_records, sweeps_per_record=stride, keep="all", chunk=20, on_chunk=keep)
    u = torch.cat(energies).numpy() * target.temperature / target.n_particles
    rows = {}
    for rung, t in enumerate(RUNGS):
        mine = u[:, rungs[0].numpy() == rung]
        moments = np.stack([mine.mean(0), (mine**2).mean(0)], 1)
        e, de, c, dc = energy_and_capacity(moments, np.zeros(ladders), t, target.n_particles)
        rows[f"{t:g}"] = {"E/N": e, "E/N error": de, "c_V/N": c, "c_V/N error": dc}
    return {
        "ladders": ladders,
        "sweeps": n_records * stride,
        "target calls": chains.ledger.n_energy(),
        "exchange rates": result.diagnostics["swap_rates"],
        "round trips": result.diagnostics.get("round_trips"),
        "CPU seconds": time.process_time() - began,
        "temperatures": rows,
    }


def main() -> None:
    """Run all, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="default: both")
    parser.add_argument("--populations", type=int, default=10, help="of the annealed flow")
    parser.add_argument("--size", type=int, default=400)
    parser.add_argument("--sweeps", type=int, default=25, help="of all particles at every temperature")
    parser.add_argument("--fit", type=int, default=1000, help="rows of the population on which the maps are fitted")
    parser.add_argument("--ladders", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = Path(options.output) if options.output else Path(__file__).parent / "results" / "glass_flow.json"
    results = json.loads(path.read_text())["results"] if path.is_file() else {}
    for part in [options.part] if options.part else PARTS:
        results[part] = compare(options, PARTS[part])
        print(record("glass_flow", results, options.output))


def compare(options: argparse.Namespace, swap_fraction: float) -> dict:
    """The three samplers with the same moves and the same number of calls."""
    target = TernaryLiquid(temperature=TEMPERATURES[-1]).double()
    base, hot_calls = hot_frames(target, 4000, seed=1)
    path = partial(TemperedPath, beta_0=target.temperature / HOT)
    kernels = _kernels(target, options.sweeps, swap_fraction)
    pilot = find_schedule(
        base, target, _kernels(target, 1, 0.0), path=path, levels=_levels(TEMPERATURES), n=100, n_rounds=10, seed=2
    )
    # exchanges have no step size
    schedule = Schedule(pilot.levels, tuple((*s, *[math.nan] * (len(kernels) - 1)) for s in pilot.step_sizes))
    shared = hot_calls + pilot.ledger.n_energy()
    flow, began = sampler(base, target, schedule, kernels, maps=True), time.process_time()
    fitted = fit_transport(flow, target, n=options.fit, seed=3)
    results = {"hot frames, calls": hot_calls, "pilot of step sizes, calls": pilot.ledger.n_energy()}
    results["fit"] = {
        "rows": options.fit,
        "target calls": fitted.ledger.n_energy(),
        "explained": {f"{t:g}": e for t, e in zip(TEMPERATURES, fitted.explained, strict=True)},
        "smallest scale": min(fitted.scales),
        "CPU seconds": time.process_time() - began,
    }
    print(results, flush=True)
    spent = shared + fitted.ledger.n_energy()
    results["annealed flow"] = anneal(flow, target, options.populations, options.size, spent, seed=4)
    calls = results["annealed flow"]["target calls"]
    print("annealed flow", results["annealed flow"], flush=True)
    plain = sampler(base, target, schedule, kernels, maps=False)
    # a map costs one energy of its image more
    per_row = (calls - spent) / (options.populations * options.size) - len(TEMPERATURES)
    more = max(options.populations, round((calls - shared) / per_row / options.size))
    results["population annealing"] = anneal(plain, target, more, options.size, shared, seed=4)
    print("population annealing", results["population annealing"], flush=True)
    tempered = temper(base, target, calls - hot_calls, options.ladders, seed=5, swap_fraction=swap_fraction)
    results["parallel tempering"] = tempered | {"target calls": tempered["target calls"] + hot_calls}
    print("parallel tempering", results["parallel tempering"], flush=True)
    return results


if __name__ == "__main__":
    main()
