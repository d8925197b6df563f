"""Observables, free energies, reweighting, comparison with a reference, and plots of an Ensemble."""
