"""The normal distribution in the coordinates of an analytic energy, from which its Generators start."""

from boltzflow.errors import UnsupportedForceError
from boltzflow.targets.bases import Gaussian, MeanFreeGaussian
from boltzflow.targets.target import Base, Target

__all__ = ["normal_base"]


def normal_base(target: Target, *, scale: float = 1.0) -> Base:
    """A normal distribution of the one field of a Target, on the subspace without centre of mass where it has none.

    Args:
        target: Of one field on lines, of measure "lebesgue" or "mean-free".
        scale: Standard deviation per degree of freedom.

    Raises:
        UnsupportedForceError: If the target has other fields, or lives on something else than lines.

    Example:
        >>> from boltzflow.targets import DoubleWellCluster
        >>> type(normal_base(DoubleWellCluster())).__name__
        'MeanFreeGaussian'
    """
    (name, space), *others = target.fields.items()
    if not others and space.kind == "line":
        if target.measure == "mean-free":
            return MeanFreeGaussian(*space.shape, scale=scale, name=name)
        if target.measure == "lebesgue":
            return Gaussian(space.shape, scale=scale, name=name)
    kinds = ", ".join(f"{key} ({value.kind})" for key, value in target.fields.items())
    raise UnsupportedForceError(
        f"system {target.name}: a normal distribution from which paths start is of one field on lines; its fields are "
        f"{kinds}, of measure {target.measure!r}"
    )
