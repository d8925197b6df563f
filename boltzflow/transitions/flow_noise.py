"""Noise of flow perturbation as an auxiliary field: drawn at the start of a path and given up at its end."""

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import Space, State
from boltzflow.transitions.metropolis import moves_centre
from boltzflow.transitions.step_size import at_least_one
from boltzflow.transitions.transition import Drop, Transition
from boltzflow.transitions.velocities import normal_energy

__all__ = ["NOISE", "DrawNoise", "DropNoise", "centred_directions", "noise_of", "noise_space", "require_isotropic"]

NOISE = "_noise"
"""Suffix of the name of a field of noise."""


def require_isotropic(what: str, noise: str) -> None:
    """Check the distribution of perturbation noise.

    Raises:
        ValueError: If it is not isotropic: E[|A e|^−d] = |det A|⁻¹ holds for no other.
    """
    if noise == "normal":
        return
    why = " E[|A e|^-d] is then not 1/|det A|, and every weight is biased." if noise == "rademacher" else ""
    raise ValueError(
        f"{what} noise: expected 'normal', got {noise!r}.{why} Flow perturbation needs isotropic noise; only "
        "ApproximateHutchinsonFlow takes Rademacher probes."
    )


def centred_directions(
    like: Float[Tensor, "batch *event"], space: Space, n: int, run: Run
) -> Float[Tensor, "batch n *event"]:
    """Standard normal directions in the space of a field: without their means where it excludes translations."""
    noise = run.normal(like.detach()[:, None].expand(-1, n, *like.shape[1:]))
    return noise if moves_centre(space) else noise - noise.mean(-2, keepdim=True)


def noise_space(space: Space, n: int) -> Space:
    """Where n directions in the space of a field live, of as many degrees of freedom each."""
    return Space("line", (n, *space.shape), n * space.dimension)


def noise_of(state: State, name: str, n: int, what: str) -> Float[Tensor, "batch n *event"]:
    """The noise that a step takes.

    Raises:
        ValueError: If the State has none, or another number of directions.
    """
    expected = (n, *state.spaces[name].shape)
    if name + NOISE not in state or state.spaces[name + NOISE].shape != expected:
        raise ValueError(
            f"{what}: expected a field {name + NOISE!r} of shape (batch, {', '.join(map(str, expected))}); put "
            f"DrawNoise({n}, name={name!r}) before it."
        )
    return state[name + NOISE]


class DrawNoise(Transition):
    """Add to field x the field "x_noise" of n directions e ~ N(0, I), (batch, n, *event): r = −log N(e).

    `FlowPerturbation` follows, then `DropNoise`: together they add u_aux(e_0) − u_aux(e_T) to the log-weight, so that
    the paths are those of the joint density of positions and noise. Where the space of x excludes translations, so does
    that of every direction.

    Args:
        n: Directions; `FlowPerturbation.n_noises`.
        name: Name of the field x.
        noise: Its distribution: "normal".

    Raises:
        ValueError: If n is not positive, or the noise is not isotropic.

    References:
        Flow Perturbation++ (2026), https://arxiv.org/abs/2601.21177
    """

    def __init__(self, n: int = 1, *, name: str = "positions", noise: str = "normal") -> None:
        super().__init__()
        require_isotropic("DrawNoise", noise)
        self.n, self.name = at_least_one("DrawNoise n", n), name

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Draw the noise."""
        joint = _with_noise(state, self.name, self.n, run)
        return joint, normal_energy(joint, [self.name + NOISE])

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Give it up."""
        return _without_noise(state, self.name), -normal_energy(state, [self.name + NOISE])

    def log_ratio(self, before: State, after: State, run: Run) -> Float64[Tensor, " batch"]:
        """The forward ratio of a given pair: that of the noise of `after`."""
        return normal_energy(after, [self.name + NOISE])

    def extra_repr(self) -> str:
        """Directions and the field of the State."""
        return f"n={self.n}, name={self.name!r}"


class DropNoise(Drop):
    """Take the noise off the State; r = log N(e), the density with which the way back draws it.

    Args:
        n: Directions, as in `DrawNoise`.
        name: Name of the field x.
    """

    def __init__(self, n: int = 1, *, name: str = "positions") -> None:
        super().__init__()
        self.n, self.name = at_least_one("DropNoise n", n), name

    def forward(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Give the noise up."""
        return _without_noise(state, self.name), -normal_energy(state, [self.name + NOISE])

    def reverse(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Draw it."""
        joint = _with_noise(state, self.name, self.n, run)
        return joint, normal_energy(joint, [self.name + NOISE])

    def extra_repr(self) -> str:
        """Directions and the field of the State."""
        return f"n={self.n}, name={self.name!r}"


def _with_noise(state: State, name: str, n: int, run: Run) -> State:
    if name + NOISE in state:
        raise ValueError(f"DrawNoise: the State has a field {name + NOISE!r} already; drop it first.")
    space = state.spaces[name]
    noise = centred_directions(state[name], space, n, run)
    joint = state.with_fields({name + NOISE: noise}, {name + NOISE: noise_space(space, n)})
    # Targets do not read the noise, so what they evaluated stays true
    return State(joint.fields, joint.spaces, state.evaluations)


def _without_noise(state: State, name: str) -> State:
    if name + NOISE not in state:
        raise ValueError(f"DropNoise: the State has no field {name + NOISE!r}; put DrawNoise before it.")
    kept = state.with_fields({}, {}, drop=(name + NOISE,))
    return State(kept.fields, kept.spaces, state.evaluations)
