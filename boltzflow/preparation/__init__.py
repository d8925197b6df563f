"""From files of a chemist to a system folder: `prepare` reads, checks, builds, minimises and writes."""

from boltzflow.preparation.prepare import prepare

__all__ = ["prepare"]
