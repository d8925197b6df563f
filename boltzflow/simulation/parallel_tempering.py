"""Batched parallel tempering of any Target: all temperatures and independent ladders in one batch."""

import copy
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.errors import CheckpointMismatchError, UnsupportedForceError
from boltzflow.io.provenance import method_names
from boltzflow.run import Context, Ledger, Level, Run, make_rng, new_seed
from boltzflow.simulation.adaptation import Adaptation
from boltzflow.simulation.diagnostics import series_diagnostics
from boltzflow.simulation.relaxation import relax
from boltzflow.simulation.result import ChainResult
from boltzflow.state import Evaluation, State
from boltzflow.targets.target import Target
from boltzflow.transitions.acceptance import FEWEST_ACCEPTED, rejects_everything
from boltzflow.transitions.leapfrog import Massive
from boltzflow.transitions.metropolis import MetropolisKernel
from boltzflow.transitions.swap import swap_neighbours

__all__ = ["ParallelTempering", "TemperedRows"]

_log = logging.getLogger(__name__)

Observable = Callable[[State], Tensor]


@dataclass(frozen=True, eq=False)
class TemperedRows:
    """A level at which every row has an inverse temperature of its own: energy β u, force β f.

    Args:
        target: The Target at β = 1.
        beta: β of every row, shape (batch,), float64.
    """

    target: Target
    beta: Tensor

    @property
    def terms(self) -> tuple[tuple[Tensor, Target], ...]:
        """The leaf Target, weighted by β of every row."""
        return ((self.beta, self.target),)

    def energy(self, state: State, run: Run) -> tuple[Float64[Tensor, " batch"], State]:
        """β u and the State that carries u."""
        u, state = run.evaluate(self.target, state)
        return self.beta * u, state

    def energy_and_force(self, state: State, run: Run) -> tuple[Float64[Tensor, " batch"], dict[str, Tensor], State]:
        """β u, β f and the State that carries u and f."""
        u, force, state = run.evaluate_with_force(self.target, state)
        scaled = {k: self.beta.to(f.dtype).reshape(-1, *[1] * (f.ndim - 1)) * f for k, f in force.items()}
        return self.beta * u, scaled, state


class ParallelTempering:
    """Replica exchange with n_chains independent ladders of n_temperatures walkers, all rows of one batch.

    A sweep applies every kernel once to every row and then tries to swap neighbouring temperatures, even and odd pairs
    in turn. A walker keeps its row (configuration, energy, force) and changes its temperature. Where a kernel has a
    `step_size`, `burn_in` adapts it for every temperature towards the kernel's `target_acceptance`, and if wanted the
    masses of kernels that have any (`HMC`) to the variances; afterwards both are frozen, so that the recorded chain has
    the exact stationary distribution. A kernel with `every` and `n_rungs` (`LearnedMove`) is applied in every so many
    sweeps, and on so many of the lowest rungs.

    Args:
        target: Sampled at the first temperature, which must be its own.
        start: One row, one per ladder, or one per walker (temperatures slowest); relaxed before use. Its device and
            dtype are those of the simulation.
        temperatures: Rising; only ratios matter: β_k = T_0 / T_k multiplies u. A single one gives plain chains.
        n_chains: Independent ladders.
        kernels: Applied in this order in every sweep; copied.
        observables: Name to a function of the State of the cold walkers, (n_chains,), recorded at every record.
        context: Passed on to the Target.
        n_relax: Relaxation steps of the start.
        seed: Random by default, and kept.

    Raises:
        ValueError: If temperatures, n_chains or the rows of the start do not fit.
        NonFiniteEnergyError: If the relaxed start has a non-finite energy.
        UnsupportedForceError: If the target has constraints.

    References:
        Hukushima and Nemoto, J. Phys. Soc. Jpn. 65, 1604 (1996); Hoffman and Gelman, J. Mach. Learn. Res. 15, 1593
        (2014), section 3.2.
    """

    def __init__(
        self,
        target: Target,
        start: State,
        *,
        temperatures: Sequence[float],
        n_chains: int,
        kernels: Sequence[MetropolisKernel],
        observables: Mapping[str, Observable] | None = None,
        context: Context | None = None,
        n_relax: int = 100,
        seed: int | None = None,
    ) -> None:
        ladder = torch.tensor([float(t) for t in temperatures], dtype=torch.float64)
        if len(ladder) == 0 or not bool((ladder > 0).all() and (ladder.diff() > 0).all()):
            raise ValueError(
                f"temperatures: expected rising positive numbers, the target's first; got {list(temperatures)}."
            )
        self.temperatures = ladder.tolist()
        self._betas = (ladder[0] / ladder).to(start.device)
        self._start(target, start, len(ladder), n_chains, kernels, observables, context, n_relax, seed)

    def _start(
        self,
        target: Target,
        start: State,
        n_rungs: int,
        n_chains: int,
        kernels: Sequence[MetropolisKernel],
        observables: Mapping[str, Observable] | None,
        context: Context | None,
        n_relax: int,
        seed: int | None,
    ) -> None:
        """Everything but the energies of the rungs: relaxed walkers, copies of the kernels, counters at zero."""
        if n_chains < 1:
            raise ValueError(f"n_chains: expected at least 1, got {n_chains}.")
        if not kernels:
            raise ValueError("kernels: expected at least one, got none.")
        if getattr(target, "constraints", None) is not None:
            raise UnsupportedForceError(
                f"{target.name}: has {len(target.constraints)} constraints, and Monte Carlo in Cartesian coordinates "
                "would leave them. Use molecular dynamics (`boltzflow simulate --method md`) or a generator over "
                "internal coordinates, or make the System with constraints=None, rigidWater=False."
            )
        self.target, self.n_chains, self.n_rungs = target, n_chains, n_rungs
        self.kernels = [copy.deepcopy(k) for k in kernels]
        self.observables = dict(observables or {})
        self.seed = new_seed() if seed is None else seed
        self._device = start.device
        self._run = Run(make_rng(self.seed, device=self._device), context=context)
        n_rows = self.n_rungs * n_chains
        if len(start) not in (1, n_chains, n_rows):
            raise ValueError(f"start: expected 1, {n_chains} or {n_rows} rows, got {len(start)}.")
        start = State({k: start[k] for k in target.fields}, target.fields).detach()
        relaxed = relax(target, start, self._run, n_steps=n_relax)
        self._state = relaxed.index(torch.arange(n_rows, device=self._device) % len(start))
        self._walker_at = torch.arange(self.n_rungs, device=self._device)[:, None].repeat(1, n_chains)
        self._label = torch.zeros_like(self._walker_at)
        self._tuned = [i for i, k in enumerate(self.kernels) if hasattr(k, "step_size")]
        self._learning = [k for k in self.kernels if hasattr(k, "learn")]
        self.step_sizes = {
            i: self.kernels[i].step_size.double().expand(self.n_rungs).to(self._device) for i in self._tuned
        }
        self._sweeps = 0
        # of kernels whose masses were adapted
        self.masses: dict[int, dict[str, Tensor]] = {}
        # of a burn-in that has begun
        self._adaptation: Adaptation | None = None
        self._reset()

    @property
    def needs_burn_in(self) -> bool:
        """Whether no sweep was made yet, or only a part of those of `burn_in`."""
        return self._adaptation is not None or not self._sweeps

    @property
    def n_sweeps(self) -> int:
        """Sweeps up to now, those of the burn-in included."""
        return self._sweeps

    @property
    def ledger(self) -> Ledger:
        """Evaluations up to now."""
        return self._run.ledger

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds the references of what it does; with one temperature no exchanges."""
        exchange = (type(self).__name__,) if self.n_rungs > 1 else ()
        adapted = ("dual averaging",) if self._tuned else ()
        adapted += ("mass adaptation",) if self.masses else ()
        return tuple(method_names(*exchange, *adapted, *self.kernels, self.target))

    def _reset(self) -> None:
        """Start counting anew."""
        zeros = torch.zeros(max(self.n_rungs - 1, 0), dtype=torch.float64, device=self._device)
        self._swaps, self._tried = zeros, zeros.clone()
        self._trips = torch.zeros((), dtype=torch.int64, device=self._device)
        self._accepted = torch.zeros(len(self.kernels), self.n_rungs, dtype=torch.float64, device=self._device)
        self._applied = torch.zeros_like(self._accepted)
        self._counted = 0

    def _counters(self) -> tuple[Tensor, ...]:
        return self._swaps, self._tried, self._trips, self._accepted, self._applied

    def _rungs(self) -> dict[str, Any]:
        """What tells the rungs apart, in plain numbers."""
        return {"temperatures": self.temperatures}

    def _level(self, rows: Tensor) -> Level:
        """The energy of every walker, given the rung that it is on."""
        return TemperedRows(self.target, self._betas[rows])

    def _sweep(self) -> Tensor:
        """All kernels, then swaps of one parity; returns the mean acceptance by kernel and rung."""
        rung = self._walker_at.argsort(0)
        rows = rung.flatten()
        run = self._run.at(self._level(rows))
        acceptance = torch.zeros_like(self._accepted)
        for i, kernel in enumerate(self.kernels):
            if self._sweeps % getattr(kernel, "every", 1):
                continue
            n_rungs = min(getattr(kernel, "n_rungs", self.n_rungs), self.n_rungs)
            self._applied[i, :n_rungs] += 1
            if n_rungs < self.n_rungs:
                acceptance[i] = self._step_lowest(kernel, rows, n_rungs)
                continue
            if i in self.step_sizes:
                kernel.step_size = self.step_sizes[i][rows]
            self._state = kernel.step(self._state, run)
            acceptance[i].index_add_(0, rows, kernel.last_acceptance / self.n_chains)
        self._accepted += acceptance
        self._counted += 1
        self._sweeps += 1
        if self.n_rungs > 1:
            self._swap(self._sweeps % 2)
        return acceptance

    def _step_lowest(self, kernel: MetropolisKernel, rows: Tensor, n_rungs: int) -> Tensor:
        """A kernel on the walkers of the lowest rungs; returns its mean acceptance by rung, 0 elsewhere."""
        low = rows < n_rungs
        moved = kernel.step(self._state.index(low), self._run.at(self._level(rows[low])))
        place = (low.cumsum(0) - 1).clamp(min=0)  # of every low row among them
        self._state = moved.index(place).where(low, self._state)
        acceptance = self._accepted.new_zeros(self.n_rungs)
        return acceptance.index_add_(0, rows[low], kernel.last_acceptance / self.n_chains)

    def _exchange(self, parity: int) -> tuple[Tensor, Tensor]:
        """Walkers by rung after trial swaps of one parity, and which were accepted."""
        u, self._state = self._run.evaluate(self.target, self._state)
        u = u.reshape(self.n_rungs, self.n_chains)
        return swap_neighbours(self._walker_at, u, self._betas, parity=parity, rng=self._run.rng)

    def _swap(self, parity: int) -> None:
        self._walker_at, accept = self._exchange(parity)
        self._swaps[parity::2] += accept.double().mean(1)
        self._tried[parity::2] += 1
        rung = self._walker_at.argsort(0)
        bottom, top = rung == 0, rung == self.n_rungs - 1
        # a round trip: from the bottom to the top and back; label 1 after the bottom, 2 after the top that follows
        self._trips += (bottom & (self._label == 2)).sum()
        self._label = torch.where(bottom, 1, torch.where(top & (self._label == 1), 2, self._label))

    def burn_in(self, n_sweeps: int, *, masses: bool = False, on_sweep: Callable[[], None] | None = None) -> None:
        """Equilibrate, and adapt the step sizes to every temperature by dual averaging; then freeze them.

        Generators of learned moves learn, where they are to (`LearnedKernel`), and are frozen earlier. A burn-in in
        which `state_dict` was taken goes on where it was.

        Args:
            n_sweeps: At least a few dozen for the adaptation to settle.
            masses: Whether HMC gets the inverse variances of the coldest walkers as masses, by field on a line. They
                are estimated in windows of doubling length (`slow_windows`), each of which starts the adaptation of the
                step sizes anew. Not for molecules in Cartesian coordinates, whose variances are those of tumbling.
            on_sweep: Called after every sweep, e.g. to move a progress bar.
        """
        adaptation = self._adaptation = self._adaptation or self._new_adaptation(masses=masses)
        while adaptation.done < n_sweeps:
            acceptance = self._sweep()
            cold = self._state.index(self._lowest(1))
            mass = adaptation.update(acceptance, cold, n_sweeps)
            for kernel in self._learning:
                kernel.learn(cold, self._run, progress=adaptation.done / n_sweeps)
            for i, step in adaptation.steps.items():
                if mass is not None and isinstance(self.kernels[i], Massive):
                    step.restart(step.mean * self._set_masses(i, mass))
                self.step_sizes[i] = step.log_step.exp()
            if on_sweep is not None:
                on_sweep()
        if n_sweeps:
            self.step_sizes = {i: step.mean for i, step in adaptation.steps.items()}
        self._adaptation = None
        self._reset()
        _log.debug("step sizes after burn-in: %s", {i: s.tolist() for i, s in self.step_sizes.items()})

    def _new_adaptation(self, *, masses: bool) -> Adaptation:
        targets = {i: self.kernels[i].target_acceptance for i in self._tuned}
        return Adaptation(self.step_sizes, targets, masses=masses)

    def _set_masses(self, i: int, masses: dict[str, Tensor]) -> float:
        """Give a kernel other masses; returns the factor on its step size that keeps that of its stiffest coordinate.

        The masses are inverse variances, so that the frequency of a coordinate was √(new mass / old mass).
        """
        kernel = self.kernels[i]
        stiffest = max(float((m / kernel.mass(name, m[None])).max()) for name, m in masses.items()) ** 0.5
        kernel.register_masses(masses, learnable=False)
        self.masses[i] = masses
        return stiffest

    def run(
        self,
        n_records: int,
        *,
        sweeps_per_record: int = 1,
        records_per_frame: int = 1,
        keep: Literal["cold", "all"] = "cold",
        chunk: int = 1000,
        on_chunk: Callable[[ChainResult], None] | None = None,
        on_sweep: Callable[[], None] | None = None,
    ) -> ChainResult:
        """Sample with frozen step sizes.

        Args:
            n_records: How often energies and observables of the cold walkers are recorded.
            sweeps_per_record: Sweeps between records.
            records_per_frame: Configurations are kept at every such record, the last of each group.
            keep: Configurations of the cold walkers only, or of all rungs: then the columns of the result are rungs
                times ladders, rungs slowest, and `rungs` says which. `observables` are always those of the cold ones.
            chunk: Frames per call of `on_chunk`.
            on_chunk: Is handed finished frames (a ChainResult without observables and diagnostics), e.g. to write
                them; they are then not kept in memory. The state of the simulation at that moment is `state_dict()`.
            on_sweep: Called after every sweep, e.g. to move a progress bar.

        Returns:
            Frames, series and diagnostics. Counters run on from call to call since the burn-in.
        """
        for name, value in (
            ("n_records", n_records),
            ("sweeps_per_record", sweeps_per_record),
            ("records_per_frame", records_per_frame),
            ("chunk", chunk),
        ):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}.")
        began = time.perf_counter()
        series: dict[str, list[Tensor]] = {"reduced_energy": [], **{name: [] for name in self.observables}}
        frames: list[tuple[int, Tensor, State]] = []
        for record in range(1, n_records + 1):
            for _ in range(sweeps_per_record):
                self._sweep()
                if on_sweep is not None:
                    on_sweep()
            u, cold = self._walkers(1)
            series["reduced_energy"].append(u)
            for name, observable in self.observables.items():
                series[name].append(observable(cold).double())
            if record % records_per_frame == 0:
                kept = (u, cold) if keep == "cold" else self._walkers(self.n_rungs)
                frames.append((self._counted, *kept))
                if on_chunk is not None and len(frames) == chunk:
                    on_chunk(self._result(frames, {}, {}, began))
                    frames = []
        if on_chunk is not None and frames:
            on_chunk(self._result(frames, {}, {}, began))
            frames = []
        self._warn_of_rejection()
        observables = {name: torch.stack(values).cpu() for name, values in series.items()}
        return self._result(
            frames, observables, self.diagnostics() | {"series": series_diagnostics(observables)}, began
        )

    def _walkers(self, n_rungs: int) -> tuple[Tensor, State]:
        """Energies and configurations of the walkers on the first rungs, rungs slowest."""
        rows = self._lowest(n_rungs)
        u, self._state = self._run.evaluate(self.target, self._state)
        return u[rows], self._state.index(rows)

    def _lowest(self, n_rungs: int) -> Tensor:
        """Rows of the walkers on the first rungs, rungs slowest."""
        return (self._walker_at[:n_rungs] * self.n_chains + torch.arange(self.n_chains, device=self._device)).flatten()

    def _result(
        self,
        frames: list[tuple[int, Tensor, State]],
        observables: dict[str, Tensor],
        diagnostics: dict[str, Any],
        began: float,
    ) -> ChainResult:
        names = frames[0][2].fields if frames else ()
        samples = {k: torch.stack([s[k] for _, _, s in frames]).cpu() for k in names}
        energies = torch.zeros(0, self.n_chains, dtype=torch.float64)
        if frames:
            energies = torch.stack([u for _, u, _ in frames]).cpu()
        ladders, n_kept = torch.arange(self.n_chains), energies.shape[1] // self.n_chains
        return ChainResult(
            samples,
            energies,
            torch.tensor([sweep for sweep, _, _ in frames], dtype=torch.int64),
            ladders.repeat(n_kept),
            observables,
            diagnostics,
            copy.deepcopy(self.ledger),
            time.perf_counter() - began,
            self.methods,
            torch.arange(n_kept).repeat_interleave(self.n_chains) if n_kept > 1 else None,
        )

    def diagnostics(self) -> dict[str, Any]:
        """Since the burn-in: swap rate by pair, round trips, acceptance and step size by kernel and temperature."""
        return {
            **self._rungs(),
            "n_sweeps": self._counted,
            "swap_rates": (self._swaps / self._tried.clamp(min=1)).tolist(),
            "round_trips": int(self._trips),
            "kernels": [type(kernel).__name__ for kernel in self.kernels],
            "acceptance": (self._accepted / self._applied.clamp(min=1)).tolist(),
            "step_sizes": {i: s.tolist() for i, s in self.step_sizes.items()},
            "seed": self.seed,
        }

    def _warn_of_rejection(self) -> None:
        """Log a warning for the kernel and rung whose frozen step stands still the most."""
        if not self._tuned:
            return
        rates = torch.where(self._applied > 0, self._accepted / self._applied, 1.0)[self._tuned]
        worst = int(rates.argmin())
        i, rung = self._tuned[worst // self.n_rungs], worst % self.n_rungs
        rate, step_size = float(rates.min()), float(self.step_sizes[i][rung])
        if rate < FEWEST_ACCEPTED:
            text = rejects_everything(self.kernels[i], rate, where=f"rung {rung}", step_size=step_size)
            _log.warning("%s, or give the burn-in that adapts it more sweeps.", text)

    def _identity(self) -> dict[str, Any]:
        return {
            "target": self.target.name,
            **self._rungs(),
            "n_chains": self.n_chains,
            "kernels": [type(k).__name__ for k in self.kernels],
            "seed": self.seed,
        }

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which a simulation built with the same arguments goes on bit for bit."""
        # with the force only where it is known: another evaluation might round differently, and would be counted
        u, self._state = self._run.evaluate(self.target, self._state)
        return {
            "identity": self._identity(),
            "fields": dict(self._state.fields),
            "energy": u,
            "force": self._state.evaluations[self.target].force,
            "walker_at": self._walker_at,
            "label": self._label,
            "step_sizes": dict(self.step_sizes),
            "counters": [t.clone() for t in self._counters()],
            "sweeps": [self._sweeps, self._counted],
            "rng": self._run.rng.get_state(),
            "ledger": self.ledger.as_dict(),
            "masses": {i: dict(m) for i, m in self.masses.items()},
            "adaptation": None if self._adaptation is None else self._adaptation.state_dict(),
            "learned": [kernel.memory() for kernel in self._learning],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            CheckpointMismatchError: If it belongs to another target, ladder, number of chains, list of kernels or seed.
        """
        mine = self._identity()
        wrong = {k: (v, saved["identity"].get(k)) for k, v in mine.items() if saved["identity"].get(k) != v}
        if wrong:
            listed = "; ".join(f"{k}: here {a!r}, saved {b!r}" for k, (a, b) in wrong.items())
            raise CheckpointMismatchError(
                f"This checkpoint belongs to another simulation ({listed}); build it with the saved settings."
            )
        device = self._device
        force = None if saved["force"] is None else {k: f.to(device) for k, f in saved["force"].items()}
        evaluation = Evaluation(saved["energy"].to(device), force, self._run.context)
        state = State(dict(saved["fields"]), self.target.fields).to(device)
        self._state = state.with_evaluation(self.target, evaluation)
        self._walker_at, self._label = saved["walker_at"].to(device), saved["label"].to(device)
        self.step_sizes = {i: step.to(device) for i, step in saved["step_sizes"].items()}
        for mine, counter in zip(self._counters(), saved["counters"], strict=True):
            mine.copy_(counter)
        self._sweeps, self._counted = saved["sweeps"]
        for i, masses in saved["masses"].items():
            self._set_masses(i, {name: m.to(device) for name, m in masses.items()})
        for kernel, memory in zip(self._learning, saved["learned"], strict=True):
            kernel.recall(memory)
        self._adaptation = None
        if saved["adaptation"] is not None:
            self._adaptation = self._new_adaptation(masses=False)
            self._adaptation.load_state_dict(saved["adaptation"], device)
        self._run.rng.set_state(saved["rng"])
        for counter, values in zip(
            (self.ledger.energies, self.ledger.forces, self.ledger.nonfinite), saved["ledger"].values(), strict=True
        ):
            counter.clear()
            counter.update(Counter(values))
