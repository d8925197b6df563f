"""The equivariance kit: symmetry of functions of positions, and the closed forms of vector fields."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.networks.vector_field import VectorField
from boltzflow.testing._compare import TOLERANCE, fail

__all__ = ["assert_equivariant", "check_vector_field"]


def assert_equivariant(
    function: Callable[[Tensor], Tensor],
    positions: Float[Tensor, "batch n_atoms n_dimensions"],
    *,
    rng: torch.Generator,
    output: Literal["invariant", "equivariant"] = "invariant",
    rotation: bool = True,
    translation: bool = True,
    reflection: bool = False,
    permuted: Sequence[Sequence[int]] | None = None,
    box: Float[Tensor, " n_dimensions"] | None = None,
    tolerance: float | None = None,
) -> None:
    """Check that a function of positions respects rotations, translations and permutations of identical particles.

    Args:
        function: Maps positions to something per conformation ("invariant"), or to one vector per atom ("equivariant":
            it rotates and permutes with the atoms, and does not change under translations).
        positions: Shape (batch, n_atoms, n_dimensions).
        rng: Random stream of the transformations.
        output: How the result transforms.
        rotation: Whether to test rotations.
        translation: Whether to test translations.
        reflection: Whether mirror images count as rotations.
        permuted: Groups of interchangeable atoms; None tests no permutation.
        box: Edges of a periodic box, shape (n_dimensions,): then rotations are those that map the box on itself, and
            images of single atoms must not matter. None = open.
        tolerance: On |Δ| / (1 + max |result|); None = 1e-8 in float64, 1e-3 in float32.

    Raises:
        AssertionError: If the result transforms otherwise.
    """
    n_atoms, dim = positions.shape[1:]
    tolerance = TOLERANCE[positions.dtype] if tolerance is None else tolerance

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=positions.dtype, device=rng.device, generator=rng).to(positions.device)

    turn = torch.linalg.qr(normal(dim, dim)).Q if box is None else _of_the_box(box, rng).to(positions)
    if (torch.linalg.det(turn) < 0) != reflection:
        turn[:, 0] = -turn[:, 0]
    before = function(positions)
    if rotation:
        expected = before @ turn.T if output == "equivariant" else before
        what = "rotation with reflection" if reflection else "rotation"
        _compare(what, function(positions @ turn.T), expected, tolerance)
    if translation:
        _compare("translation", function(positions + normal(len(positions), 1, dim)), before, tolerance)
    if box is not None:
        turns = torch.randint(-1, 2, positions.shape, device=rng.device, generator=rng).to(positions)
        _compare("choice of images", function(positions + turns * box.to(positions)), before, tolerance)
    for group in permuted or ():
        order = torch.arange(n_atoms)
        members = torch.tensor(list(group))
        # a cycle moves every member, whatever the stream
        order[members] = members.roll(1)
        expected = before[:, order] if output == "equivariant" else before
        _compare(f"permutation of atoms {list(group)}", function(positions[:, order]), expected, tolerance)


def check_vector_field(
    field: VectorField,
    positions: Float[Tensor, "batch n_atoms n_dimensions"],
    *,
    rng: torch.Generator,
    rotation: bool = True,
    reflection: bool = True,
    permuted: Sequence[Sequence[int]] | None = None,
    box: Float[Tensor, " n_dimensions"] | None = None,
) -> None:
    """Run every check that applies to a vector field.

    Velocities are equivariant as in `assert_equivariant`; divergence and Jacobian are those of autograd, whether asked
    for alone or together; the Jacobian of a gradient is symmetric and its velocities have no mean; one time for all
    rows is the same as one each.

    Args:
        field: What is tested, with weights that are not zero, in the dtype of the positions.
        positions: Shape (batch, n_atoms, n_dimensions).
        rng: Random stream of the transformations and of the times.
        rotation: Whether the field goes with rotations.
        reflection: Whether the field goes with mirror images; False for fields that know left from right.
        permuted: Groups of interchangeable atoms.
        box: Edges of a periodic box; None = open.

    Raises:
        AssertionError: If a check fails.

    Example:
        >>> from boltzflow.networks import PairField
        >>> from boltzflow.run import make_rng
        >>> field = PairField([0, 0, 1], 2, reach=3.0).double()
        >>> _ = torch.nn.init.normal_(field.weights, generator=make_rng(0))
        >>> x = torch.randn(2, 3, 2, dtype=torch.float64, generator=make_rng(1))
        >>> check_vector_field(field, x, rng=make_rng(2), permuted=[[0, 1]])
    """
    name, tolerance = type(field).__name__, TOLERANCE[positions.dtype]
    times = torch.rand(len(positions), dtype=positions.dtype, device=rng.device, generator=rng).to(positions.device)
    with torch.no_grad():
        velocity = field(positions, times)
        if velocity.shape != positions.shape or velocity.dtype != positions.dtype:
            fail(f"{name}: velocities are {velocity.dtype} {tuple(velocity.shape)}, positions {positions.dtype}.")
        if not velocity.abs().max() > 0:
            fail(f"{name}: all velocities are zero, of which nothing can be checked; give it random weights.")
        one = field(positions[:1], float(times[0]))
        _compare(f"{name}: one time for all rows instead of one each", one, velocity[:1], tolerance)
        for mirrored in {False, reflection}:
            assert_equivariant(
                lambda x: field(x, times),
                positions,
                rng=rng,
                output="equivariant",
                rotation=rotation,
                reflection=mirrored,
                permuted=permuted,
                box=box,
            )
        jacobian, divergence = field.jacobian(positions, times), field.divergence(positions, times)
        both = field.velocity_and_jacobian(positions, times)
        with_divergence = field.velocity_and_divergence(positions, times)
        by_autograd = VectorField.jacobian(field, positions, times)
    trace = by_autograd.diagonal(dim1=1, dim2=2).sum(1)
    for what, found, expected in (
        ("jacobian instead of autograd", jacobian, by_autograd),
        ("divergence instead of autograd", divergence, trace),
        ("velocity_and_jacobian instead of forward", both[0], velocity),
        ("velocity_and_jacobian instead of jacobian", both[1], jacobian),
        ("velocity_and_divergence instead of forward", with_divergence[0], velocity),
        ("velocity_and_divergence instead of divergence", with_divergence[1], divergence),
    ):
        _compare(f"{name}: {what}", found, expected, tolerance)
    if field.is_gradient:
        _compare(f"{name}: transposing the Jacobian of a gradient", jacobian.mT, jacobian, tolerance)
        _compare(f"{name}: the mean of a gradient", velocity.mean(1), torch.zeros_like(velocity[:, 0]), tolerance)


def _of_the_box(box: Tensor, rng: torch.Generator) -> Tensor:
    """A signed permutation of the axes that exchanges edges of one length only and, if there is such, moves an axis."""
    dim = len(box)
    axes = list(range(dim))
    for a in range(dim):
        for b in range(a + 1, dim):
            if box[a] == box[b] and axes == list(range(dim)):
                axes[a], axes[b] = b, a
    signs = 1.0 - 2.0 * torch.randint(0, 2, (dim,), device=rng.device, generator=rng).cpu().double()
    return torch.eye(dim, dtype=torch.float64)[axes] * signs


def _compare(what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    off = ((found - expected).abs().max() / (1 + expected.abs().max())).item()
    if not off <= tolerance:
        article = "" if ":" in what else "a "
        fail(f"{article}{what} changes the result by {off:.3g} of its size (tolerance {tolerance:g}).")
