"""Steps that know their own log-ratio: couplings, splines, coordinate maps, Metropolis kernels, resampling."""
