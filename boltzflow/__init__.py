"""boltzflow: unbiased equilibrium ensembles and free energies from energy functions."""

__version__ = "0.1.0"
