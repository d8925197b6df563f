"""Generator: a base and a sequence of Transitions, whose samples carry the exact weight of the path they made."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from boltzflow._typing import Bool, Float64, Int, Tensor
from boltzflow.ensemble import Ensemble
from boltzflow.errors import NonFiniteEnergyError
from boltzflow.generators.log_q_error import log_q_errors, warn_of_log_q_errors
from boltzflow.generators.path_density import PathDensity
from boltzflow.generators.shards import shard_ensemble
from boltzflow.io.provenance import method_names
from boltzflow.paths import GeometricPath, Path
from boltzflow.run import Context, Ledger, Run, make_rng, new_seed
from boltzflow.state import State
from boltzflow.targets.target import Base, Target
from boltzflow.transitions.acceptance import reset_acceptance, warn_of_rejection
from boltzflow.transitions.transition import BatchStep, Bijection, Drop, Transition

__all__ = ["Generator", "GeneratorTarget", "Trajectory"]


@dataclass
class Trajectory:
    """One batch of paths from the base to the target, or traced back from it; row i of everything is one path.

    Attributes:
        start: State x_0 under the base, as drawn; with BatchSteps path i starts in row `lineage[i]` of it.
        end: State x_T under the target.
        log_ratios: r of every Transition in forward order, each (batch,) float64; BatchSteps have none.
        decisions: log P of the discrete choices (accepted, rejected) that each of those Transitions made, (batch,), for
            the gradients of objectives; None where there were none, or autograd was off.
        base_energy: u_base(x_0) of the rows of `start`, (batch,) float64.
        target_energy: u(x_T), (batch,) float64, +inf outside the support or where it was NaN.
        log_weights: u_base(x_0) − u(x_T) + Σ r, (batch,) float64; −inf where the energy is not finite or the model
            failed. With BatchSteps it is A − u(x_T), A = u_base(x_0) + Σ r up to the first resampling, which sets it
            to u_λ(x) + log-mean-exp(A − u_λ) of the population.
        lineage: Row of `start` from which each path descends; None without BatchSteps.
        failed: Rows where the model (not the energy) gave NaN or inf.
        n_failed: Their number; rows that failed before a resampling that left them out are counted, too.
        ledger: Evaluations of this batch.
        path_log_prob: log q(x_T), (batch,) float64, whose derivative is that through x_T at fixed parameters of q; None
            unless it was asked for.
        path_point: The samples behind the last Bijection in training, of which x_T is a function; None likewise.
    """

    start: State
    end: State
    log_ratios: list[Tensor]
    decisions: list[Tensor | None]
    base_energy: Tensor
    target_energy: Tensor
    log_weights: Float64[Tensor, " batch"]
    lineage: Int[Tensor, " batch"] | None
    failed: Bool[Tensor, " batch"]
    n_failed: Int[Tensor, ""]
    ledger: Ledger = field(default_factory=Ledger)
    path_log_prob: Tensor | None = None
    path_point: State | None = None

    @property
    def finite(self) -> Tensor:
        """Rows of finite weight, as a mask: what objectives may differentiate."""
        return torch.isfinite(self.log_weights.detach())


class Generator(torch.nn.Module):
    """A base and a sequence of Transitions (and BatchSteps).

    log w = u_base(x_0) − u(x_T) + Σ r, so that E[w] = Z_target / Z_base (Wu, Köhler, Noé 2020, eq. 8).

    Args:
        base: Where paths start. It is not a submodule: checkpoints hold Transitions only.
        transitions: In generative order (base → target).
        path: Makes the annealing path between base and target for Transitions that stand at a level; a module (such as
            `paths.LearnedSchedule`) is trained and saved with them.

    Attributes:
        trained_by: What trained it, by the names that `boltzflow.cite` knows; recorded in its ensembles.
    """

    def __init__(
        self,
        base: Base,
        transitions: Sequence[Transition | BatchStep],
        *,
        path: Callable[[Target, Target], Path] = GeometricPath,
    ) -> None:
        super().__init__()
        self.transitions = torch.nn.ModuleList(transitions)
        self.path = path
        self.trained_by: tuple[str, ...] = ()
        # A plain tuple hides the base from nn.Module registration.
        self._base = (base,)

    @property
    def base(self) -> Base:
        """The base."""
        return self._base[0]

    def _apply(self, fn: Callable, recurse: bool = True) -> "Generator":  # noqa: FBT001, FBT002  (nn.Module's signature)
        """Move the base together with the parameters."""
        self.base._apply(fn)
        return super()._apply(fn, recurse)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds the references of its parts, its path and its training."""
        levels = any(t.level is not None for t in self.transitions)
        # a path with arguments is a functools.partial, a learned one has methods
        path = [self.path if hasattr(self.path, "methods") else getattr(self.path, "func", self.path).__name__]
        path = path if levels else []
        return tuple(method_names("Generator", self.base, *self.transitions, *path, *self.trained_by))

    @property
    def is_bijective(self) -> bool:
        """Whether every step is a Bijection, so that `log_prob` exists."""
        return all(isinstance(t, Bijection) for t in self.transitions)

    def rollout(
        self,
        n: int,
        target: Target,
        rng: torch.Generator,
        *,
        context: Context | None = None,
        path_density: bool = False,
    ) -> Trajectory:
        """Run n paths from the base to the target; differentiable where autograd is on.

        Args:
            n: Number of paths.
            target: What the weights are for.
            rng: Random stream.
            context: Passed on to every Target and Transition.
            path_density: Carry the score of the density along, for `Trajectory.path_log_prob`; bijective Generators.

        Raises:
            ValueError: If n is not positive.
            TypeError: If `path_density` is asked of a Generator with a step that is not a Bijection.
        """
        if n < 1:
            raise ValueError(f"rollout: expected n >= 1, got {n}.")
        run = self._run(rng, context, target)
        start = self.base.sample(n, rng, context)
        base_energy, start = run.evaluate(self.base, start)
        path = self.path(self.base, target)
        density = PathDensity(self.base, list(self.transitions), start, run) if path_density else None
        state, total, ratios, decisions = start, base_energy, [], []
        failed = torch.zeros(n, dtype=torch.bool, device=start.device)
        # row of `start` from which each row descends, and how many failed rows left no descendant
        lineage, n_dropped = (
            torch.arange(n, device=start.device),
            torch.zeros((), dtype=torch.int64, device=start.device),
        )
        for transition in self.transitions:
            here = _at_level(run, path, transition)
            if not isinstance(transition, BatchStep):
                state, ratio = transition(state, here) if density is None else density.step(transition, state, here)
                ratios.append(ratio)
                decisions.append(_decided(here))
                total = total + ratio
                continue
            u, state = here.energy(state)
            failed = failed | _failures(total)
            log_w = _masked(total - u, failed)
            ancestors = transition.choose(log_w, rng)
            if ancestors is None:
                continue
            n_dropped = n_dropped + failed.sum()
            total = u[ancestors] + torch.logsumexp(log_w, 0) - math.log(n)
            state, failed, lineage = state.index(ancestors), failed[ancestors], lineage[ancestors]
            ratios = [r[ancestors] for r in ratios]
            decisions = [None if d is None else d[ancestors] for d in decisions]
        target_energy, state = run.evaluate(target, state)
        failed = failed | _failures(total) | _nonfinite_rows(state)
        log_weights = _masked(total - target_energy, failed)
        if not any(isinstance(t, BatchStep) for t in self.transitions):
            lineage = None
        n_failed = n_dropped + failed.sum()
        return Trajectory(
            start,
            state,
            ratios,
            decisions,
            base_energy,
            target_energy,
            log_weights,
            lineage,
            failed,
            n_failed,
            run.ledger,
            None if density is None else density.log_prob(),
            None if density is None else density.point,
        )

    def _run(self, rng: torch.Generator, context: Context | None, target: Target) -> Run:
        # the density of a base of closed form costs nothing; frames of another Target cost that Target's energy
        free = self.base.log_z is not None and self.base is not target
        return Run(rng, context, free=(self.base,) if free else ())

    def trace_back(
        self,
        samples: Ensemble | State,
        target: Target,
        rng: torch.Generator | None = None,
        *,
        context: Context | None = None,
        resampling: str = "raise",
    ) -> Trajectory:
        """Run the reverse path from given samples; log w = u_base(x_0) − u(x_T) − Σ(reverse ratios).

        With samples of the target, mean log w is the EUBO and 1/E[1/w] estimates Z. Differentiable where autograd is
        on, in the samples as well if they require it.

        Args:
            samples: An Ensemble or a State with the target's fields.
            target: Whose energies enter the weight.
            rng: Random stream; needed by stochastic Transitions.
            context: Passed on to every Target and Transition.
            resampling: "raise", or "ignore" to bound the path without its BatchSteps.

        Raises:
            ValueError: If a BatchStep is met and `resampling` is "raise".
        """
        state = samples.to_state(device=self.device, dtype=self.dtype) if isinstance(samples, Ensemble) else samples
        run = self._run(rng if rng is not None else make_rng(new_seed(), device=state.device), context, target)
        path = self.path(self.base, target)
        target_energy, state = run.evaluate(target, state)
        end = state
        total = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        ratios: list[Tensor] = []
        decisions: list[Tensor | None] = []
        for transition in reversed(self.transitions):
            if isinstance(transition, BatchStep):
                if resampling != "ignore":
                    raise ValueError(
                        f"trace_back: {type(transition).__name__} has no reverse; pass resampling='ignore' to bound "
                        "the path without it."
                    )
                continue
            here = _at_level(run, path, transition)
            state, minus_ratio = transition.reverse(state, here)
            ratios.insert(0, -minus_ratio)
            decisions.insert(0, _decided(here))
            total = total - minus_ratio
        base_energy, state = run.evaluate(self.base, state)
        failed = torch.isnan(total.detach()) | _nonfinite_rows(state)
        log_weights = _masked(base_energy - target_energy + total, failed)
        n_failed = failed.sum()
        return Trajectory(
            state, end, ratios, decisions, base_energy, target_energy, log_weights, None, failed, n_failed, run.ledger
        )

    def log_prob(self, state: State, *, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """Log-density of the generated samples in the measure of the fields of `state`; needs a bijective Generator.

        Raises:
            TypeError: If a step is not a Bijection: use `trace_back`.
        """
        if not self.is_bijective:
            stochastic = [type(t).__name__ for t in self.transitions if not isinstance(t, Bijection)]
            raise TypeError(
                f"log_prob: {', '.join(stochastic)} is not a Bijection, so only path weights exist; use trace_back."
            )
        run = Run(make_rng(0, device=state.device), context)
        total = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        for transition in reversed(self.transitions):
            state, ladj = transition.reverse(state, run)
            total = total + ladj
        return self.base.log_prob(state, context) + total

    def joint(self) -> tuple["Generator", tuple[Drop, ...]]:
        """The Generator before its last steps that drop auxiliary variables, and these steps.

        Its samples have the auxiliary variables; if it is bijective, its `log_prob` is the density of both together.
        """
        n = len(self.transitions)
        while n and isinstance(self.transitions[n - 1], Drop):
            n -= 1
        joint = Generator(self.base, list(self.transitions)[:n], path=self.path)
        joint.trained_by = self.trained_by
        return joint, tuple(list(self.transitions)[n:])

    def as_target(self) -> "GeneratorTarget":
        """The density of a bijective Generator as a Target: u = −log q, log Z = 0."""
        return GeneratorTarget(self)

    @property
    def device(self) -> torch.device:
        """Where it runs: the device of its parameters or, without any, of its base."""
        return next((t.device for t in self._floating()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Of its samples: the dtype of its parameters or, without any, of its base."""
        return next((t.dtype for t in self._floating()), torch.get_default_dtype())

    def _floating(self) -> Iterator[Tensor]:
        yield from self.parameters()
        yield from (b for b in self.base.buffers() if b.is_floating_point())

    def sample(
        self,
        n: int,
        target: Target,
        seed: int | None = None,
        *,
        context: Context | None = None,
        batch_size: int = 1000,
        max_failed_fraction: float = 0.01,
    ) -> Ensemble:
        """Draw n weighted samples.

        Args:
            n: Number of samples.
            target: What the weights are for.
            seed: Random by default; recorded.
            context: Passed on to every Target and Transition.
            batch_size: Rows per shard; with BatchSteps this is the population size.
            max_failed_fraction: More model failures than this raise, since they bias.

        Returns:
            An Ensemble of n rows; shards are keyed by (seed, shard index).

        Raises:
            ValueError: If n or batch_size is not positive.
            NonFiniteEnergyError: If a log-weight is +inf, or too many rows failed.
        """
        seed = new_seed() if seed is None else seed
        shards = list(self.sample_shards(n, target, seed, context=context, batch_size=batch_size))
        ensemble = Ensemble.merge(shards)
        failed = ensemble.provenance.n_failed / n
        if failed > max_failed_fraction:
            raise NonFiniteEnergyError(
                f"sample: the model gave NaN or inf for {failed:.2%} of {n} rows, more than "
                f"max_failed_fraction={max_failed_fraction:.2%}; dropping them would bias every estimate. Train "
                "further, or in float64."
            )
        return ensemble

    def sample_shards(
        self,
        n: int,
        target: Target,
        seed: int,
        *,
        context: Context | None = None,
        batch_size: int = 1000,
        first: int = 0,
        every: int = 1,
    ) -> Iterator[Ensemble]:
        """Yield the shards that `sample` merges, one Ensemble of at most `batch_size` rows at a time.

        Args:
            n: Number of samples over all shards.
            target: What the weights are for.
            seed: Keys the streams, as (seed, shard index).
            context: Passed on to every Target and Transition.
            batch_size: Rows per shard.
            first: Index of the first shard, to continue an interrupted run.
            every: Distance of the indices, where several processes share the shards.
        """
        if n < 1:
            raise ValueError(f"sample: expected n >= 1, got {n}.")
        if batch_size < 1:
            raise ValueError(f"sample: expected batch_size >= 1, got {batch_size}.")
        n_shards = -(-n // batch_size)
        populations = n_shards >= 20
        all_errors: list[float] = []
        reset_acceptance(self.transitions)
        for shard in range(first, n_shards, every):
            rows = min(batch_size, n - shard * batch_size)
            started = time.perf_counter()
            # not a decorator: around a function that yields it depends on what else is wrapped around it
            with torch.no_grad():
                trajectory = self.rollout(rows, target, make_rng(seed, shard, device=self.device), context=context)
                errors = log_q_errors(self, trajectory, context)
            all_errors += errors or []
            yield shard_ensemble(
                trajectory,
                self.base,
                target,
                seed=seed,
                group_by_population=populations,
                context=context,
                seconds=time.perf_counter() - started,
                methods=method_names(self, target),
                log_q_errors=errors,
            )
        warn_of_log_q_errors(all_errors)
        warn_of_rejection(self.transitions)


class GeneratorTarget(Target):
    """Density of a bijective Generator as a Target (u = −log q, log Z = 0).

    Args:
        generator: The Generator; kept out of the module tree.
    """

    def __init__(self, generator: Generator) -> None:
        if not generator.is_bijective:
            raise TypeError("as_target: the Generator has a step that is not a Bijection, so its density is unknown.")
        device = generator.device
        with torch.no_grad():
            state = generator.base.sample(1, make_rng(0, device=device))
            run = Run(make_rng(0, device=device))
            for transition in generator.transitions:
                state, _ = transition(state, run)
        super().__init__(state.spaces, name="generator", log_z=0.0)
        self._generator = (generator,)

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """Minus the log-density of the samples, float64; computed in the dtype of the Generator."""
        generator = self._generator[0]
        state = State({k: state[k] for k in self.fields}, self.fields).to(dtype=generator.dtype)
        return -generator.log_prob(state, context=context)

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Exact samples of the Generator's own density."""
        generator = self._generator[0]
        with torch.no_grad():
            state, run = generator.base.sample(n, rng, context), Run(rng, context)
            for transition in generator.transitions:
                state, _ = transition(state, run)
        return state


def _at_level(run: Run, path: Path, transition: Transition | BatchStep) -> Run:
    """The run at the level of one step, with decisions of its own."""
    return replace(run, level=None if transition.level is None else path.at(transition.level), decisions=[])


def _decided(run: Run) -> Tensor | None:
    return sum(run.decisions[1:], run.decisions[0]) if run.decisions else None


def _failures(total: Tensor) -> Tensor:
    # NaN and +inf of any ratio stay in the sum; −inf alone is a weight of zero that the path earned
    return torch.isnan(total.detach()) | (total.detach() == torch.inf)


def _nonfinite_rows(state: State) -> Tensor:
    bad = torch.zeros(len(state), dtype=torch.bool, device=state.device)
    for value in state.fields.values():
        if value.is_floating_point():
            bad = bad | ~torch.isfinite(value.detach()).flatten(1).all(1)
    return bad


def _masked(log_weights: Tensor, failed: Tensor) -> Tensor:
    # NaN energies were mapped to +inf before; what is still NaN comes from the model or from inf − inf: weight zero.
    return torch.where(failed | torch.isnan(log_weights), -torch.inf, log_weights)
