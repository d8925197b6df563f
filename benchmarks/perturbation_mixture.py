"""The two wells of the flow-perturbation papers in 10 and 1000 dimensions, by FP++ and sequential Monte Carlo.

python benchmarks/perturbation_mixture.py [--dimensions 10 1000] [--runs runs/perturbation_mixture] [--output FILE]

A field of one hidden layer of gated linear units is trained in float32 on fresh exact samples, of both wells alike,
paired independently with a normal base, along trigonometric interpolants: with a base as wide as the data the mean
velocity then vanishes but for what tells the wells from each other, while straight paths contract and expand. 20
backward Euler steps along it are weighed by FP++, a direction for every step. Latent positions and noise are annealed
together: levels of constant conditional effective size and step sizes from a pilot, then populations with systematic
resampling and trajectories with gradients. The mean energy and the weight of the left well have exact answers. The
oracle is the log-determinant of the very steps at a few points, from the closed-form Jacobian of the network, with
which the weights of many directions are compared; the integral of its exact trace is what published baselines take for
it.

Everything is kept under --runs: the script can be stopped, started again, and started beside itself with --populations,
which makes only those and writes no JSON.
"""

import argparse
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from _record import record

from boltzflow.ensemble import Ensemble
from boltzflow.generators import Generator, Schedule, find_schedule, perturbed_smc
from boltzflow.networks import GatedField
from boltzflow.objectives import InterpolantMatching, Step
from boltzflow.paths import NoisyBase, perturbed_path
from boltzflow.run import Run, make_rng
from boltzflow.targets import CorrelatedMixture, Gaussian, perturbation_wells
from boltzflow.training import ExponentialMovingAverage
from boltzflow.transitions import FlowPerturbation, Interpolant, PerturbedFlow, RotationHMC

SCALE, N_STEPS, WARMUP, PILOT_ROTATIONS = 0.45, 20, 100, 2


@dataclass(frozen=True)
class Settings:
    """Sizes in one dimension."""

    hidden: int
    steps: int
    learning_rate: float
    pilot: int
    rounds: int
    cess: float
    population: int
    n_populations: int
    rotations: int
    points: int
    directions: int
    batch: int = 256


SETTINGS = {
    10: Settings(50, 3000, 5e-3, 200, 4, 0.9, 200, 20, 2, 16, 2000),
    1000: Settings(2000, 16000, 1e-3, 32, 3, 0.9, 128, 4, 3, 4, 500),
}
# authors' outputs, n = 1000: <u> at the end, and the fraction with x_1 < 0 where it is given
PUBLISHED = {
    "10": {"FP": {"left": 0.268}, "exact Jacobian": {"left": 0.282}, "Hutchinson, Rademacher": {"left": 0.207}},
    "1000": {
        "FP": {"u": 475.65},
        "exact Jacobian": {"u": 473.73},
        "Hutchinson, Rademacher": {"u": 491.49},
        "Hutchinson, normal": {"u": 498.94},
    },
}


def trained(d: int, target: CorrelatedMixture, folder: Path) -> dict:
    """The field after flow matching, and what it cost; kept in the folder."""
    path, settings = folder / f"field-{d}.pt", SETTINGS[d]
    if path.is_file():
        return torch.load(path, weights_only=True)
    torch.manual_seed(1)
    flow = PerturbedFlow(GatedField(d, settings.hidden), n_steps=N_STEPS, name="x")
    objective = InterpolantMatching(
        Generator(Gaussian(d, scale=SCALE), [flow]), interpolant=Interpolant("trigonometric")
    )
    optimizer = torch.optim.Adam(flow.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
    ramps = (
        torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, WARMUP),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps - WARMUP, 0.01 * settings.learning_rate),
    )
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, list(ramps), [WARMUP])
    wells = CorrelatedMixture(target.means, target.rotations, target.variances)
    average, started, losses = ExponentialMovingAverage(flow, decay=0.998), time.process_time(), []
    for k in range(settings.steps):
        loss, _ = objective(Step(make_rng(2, k), data=wells.sample(settings.batch, make_rng(1, k)), index=k))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update()
        losses.append(loss.detach())
        if (k + 1) % 250 == 0:
            print(f"d = {d}, step {k + 1}: loss {torch.stack(losses[-250:]).mean():.5f}", flush=True)
    found = {
        "field": {name.removeprefix("field."): value for name, value in average.shadow.items()},
        "cpu_seconds": time.process_time() - started,
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(found, path)
    return found


def perturbed(d: int, field: dict) -> tuple[Gaussian, FlowPerturbation]:
    """The base, and the flow along a trained field."""
    flow = FlowPerturbation(GatedField(d, SETTINGS[d].hidden), n_steps=N_STEPS, name="x")
    flow.field.load_state_dict(field)
    return Gaussian(d, scale=SCALE), flow.requires_grad_(requires_grad=False)


def kernel(n_rotations: int) -> RotationHMC:
    """Trajectories of positions and noise, whose base is normal."""
    return RotationHMC(0.4, n_rotations=n_rotations, scales={"x": SCALE})


def sampler(d: int, base: Gaussian, flow: FlowPerturbation, found: dict) -> Generator:
    """Annealing with the levels and step sizes of a pilot."""
    schedule = Schedule(tuple(found["levels"]), tuple(map(tuple, found["step_sizes"])), seed=found["seed"])
    return perturbed_smc(base, flow, kernel(SETTINGS[d].rotations), schedule)


def pilot(d: int, target: CorrelatedMixture, base: Gaussian, flow: FlowPerturbation, folder: Path) -> dict:
    """Levels and step sizes, and what they cost; kept in the folder."""
    path, settings = folder / f"schedule-{d}.pt", SETTINGS[d]
    if path.is_file():
        return torch.load(path, weights_only=True)
    started = time.process_time()
    found = find_schedule(
        NoisyBase(base, flow),
        target,
        kernel(PILOT_ROTATIONS),
        path=perturbed_path(flow),
        cess=settings.cess,
        n=settings.pilot,
        n_rounds=settings.rounds,
        seed=3,
    )
    kept = {
        "levels": found.levels,
        "step_sizes": found.step_sizes,
        "acceptance": found.acceptance,
        "seed": found.seed,
        "cpu_seconds": time.process_time() - started,
        "n_energy": found.ledger.n_energy(target.name),
    }
    torch.save(kept, path)
    return kept


def population(k: int, d: int, generator: Generator, target: CorrelatedMixture, folder: Path) -> Path:
    """One population, kept in the folder."""
    path, settings = folder / f"population-{d}-{k}.h5", SETTINGS[d]
    if not path.is_file():
        n, size = settings.population * settings.n_populations, settings.population
        started = time.process_time()
        shard = next(generator.sample_shards(n, target, 4, batch_size=size, first=k, every=settings.n_populations))
        seconds = time.process_time() - started
        path.with_suffix(".seconds").write_text(str(seconds))
        shard.save(path)
        print(f"d = {d}, population {k}: {seconds:.0f} s", flush=True)
    return path


@torch.no_grad()
def flow_alone(d: int, target: CorrelatedMixture, base: Gaussian, flow: FlowPerturbation) -> dict:
    """What the flow makes without annealing, and its log-weights with noise."""
    n = 64
    state = NoisyBase(base, flow).sample(n, make_rng(5))
    end, ratio = flow(state, Run(make_rng(6)))
    u = target.reduced_energy(end).double()
    log_w = base.reduced_energy(state).double() - u + ratio
    return {
        "n": n,
        "mean_u": float(u.mean()),
        "mean_log_w": float(log_w.mean()),
        "variance_log_w": float(log_w.var()),
    }


@torch.no_grad()
def oracle(d: int, base: Gaussian, flow: FlowPerturbation) -> dict:
    """FP++ against the log-determinant of the very steps, and the integral of the trace against it, point by point."""
    settings, field = SETTINGS[d], flow.field.double()
    space, run = base.fields["x"], Run(make_rng(7))
    x = base.sample(settings.points, make_rng(8))["x"].double()
    eye = torch.eye(d, dtype=torch.float64)
    exact = torch.zeros(len(x), dtype=torch.float64)
    trace, noisy = exact.clone(), torch.zeros(len(x), settings.directions, dtype=torch.float64)
    for k in range(N_STEPS):
        x, _ = flow.step(x, k, space)
        t = (k + 1) / N_STEPS
        exact -= torch.stack([torch.linalg.slogdet(eye - field.jacobian(y[None], t)[0] / N_STEPS).logabsdet for y in x])
        trace += field.divergence(x, t) / N_STEPS
        for i, y in enumerate(x):
            e = run.normal(x.new_empty(settings.directions, d))
            pulled = flow.pull(y[None].expand_as(e), e, k, space)
            noisy[i] -= d * (pulled.norm(dim=1) / e.norm(dim=1)).log()
    w = (noisy - exact[:, None]).exp()
    flow.float()
    return {
        "points": settings.points,
        "directions": settings.directions,
        "mean_relative_weight": float(w.mean()),
        "mean_relative_weight_error": float(w.mean(1).std() / math.sqrt(len(w))),
        "z_scores": ((w.mean(1) - 1.0) / (w.std(1) / math.sqrt(w.shape[1]))).tolist(),
        "variance_log_w": float(noisy.var(1).mean()),
        "trace_minus_log_det": float((trace - exact).mean()),
    }


def _share(ensemble: Ensemble) -> dict:
    """The weight of the left well; without an error where every row is in the same."""
    inside = ensemble.samples["x"][:, 0] < 0
    if inside.all() or not inside.any():
        return {"left": float(inside[0]), "left_error": None}
    found = ensemble.expectation(lambda state: (state["x"][:, 0] < 0).double())
    return {"left": found.value, "left_error": found.error}


def measured(d: int, folder: Path) -> dict:
    """Everything about one dimension."""
    settings, target = SETTINGS[d], perturbation_wells(d)
    training = trained(d, target, folder)
    base, flow = perturbed(d, training["field"])
    levels = pilot(d, target, base, flow, folder)
    generator = sampler(d, base, flow, levels)
    paths = [population(k, d, generator, target, folder) for k in range(settings.n_populations)]
    ensemble = Ensemble.merge([Ensemble.load(path) for path in paths])
    u = ensemble.expectation(target.reduced_energy)
    left = _share(ensemble)
    log_z = ensemble.log_z()
    populations = [Ensemble.load(path) for path in paths]
    return {
        **asdict(settings),
        "exact_u": target.separated_mean_energy(),
        "mean_u": u.value,
        "mean_u_error": u.error,
        **left,
        "log_z": log_z.value,
        "log_z_error": log_z.error,
        "log_z_method": log_z.method,
        "mean_u_by_population": [float(p.weights @ p.values(target.reduced_energy)) for p in populations],
        "ess_fraction": ensemble.ess_fraction(),
        "n_levels": len(levels["levels"]),
        "pilot_acceptance": sum(a for (a,) in levels["acceptance"]) / len(levels["levels"]),
        "training_cpu_seconds": training["cpu_seconds"],
        "pilot_cpu_seconds": levels["cpu_seconds"],
        "populations_cpu_seconds": sum(float(path.with_suffix(".seconds").read_text()) for path in paths),
        "flow_alone": flow_alone(d, target, base, flow),
        "oracle": oracle(d, base, flow),
    }


def main() -> None:
    """Train, sample and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--runs", type=Path, default=Path("runs/perturbation_mixture"))
    parser.add_argument("--populations", type=int, nargs="*", help="make these of one dimension, and no JSON")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.populations is not None:
        (d,) = arguments.dimensions
        target, folder = perturbation_wells(d), arguments.runs
        base, flow = perturbed(d, trained(d, target, folder)["field"])
        generator = sampler(d, base, flow, pilot(d, target, base, flow, folder))
        for k in arguments.populations:
            population(k, d, generator, target, folder)
        return
    results = {"base_scale": SCALE, "n_steps": N_STEPS, "published": PUBLISHED}
    results["dimensions"] = {str(d): measured(d, arguments.runs) for d in arguments.dimensions}
    print(record("perturbation_mixture", results, arguments.output))


if __name__ == "__main__":
    main()
