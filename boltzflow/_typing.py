"""Tensor annotations: jaxtyping where it is installed (tests enforce them), plain subscriptable stand-ins otherwise."""

from torch import Tensor

try:
    from jaxtyping import Bool, Float, Float64, Int
except ImportError:

    class _Annotation:
        def __class_getitem__(cls, item: tuple) -> type:
            return item[0]

    Bool = Float = Float64 = Int = _Annotation

__all__ = ["Bool", "Float", "Float64", "Int", "Tensor"]
