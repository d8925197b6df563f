"""pymbar, imported when it is first needed and without its banner."""

import logging
import types

__all__ = ["quiet_pymbar"]


def quiet_pymbar() -> types.ModuleType:
    """The pymbar module with `timeseries`; importing it takes most of a second and would log a box about JAX."""
    logging.getLogger("pymbar").setLevel(logging.ERROR)
    import pymbar
    import pymbar.timeseries

    return pymbar
