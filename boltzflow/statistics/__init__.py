"""Estimators: log-weights and energies in, Estimates with errors between independent groups out."""
