"""Files: HDF5 ensembles, run configurations, checkpoints; written atomically, checked when they are read."""
