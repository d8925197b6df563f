"""Evaluates force fields by the Triton kernels in Triton's interpreter: a process of its own, as TRITON_INTERPRET says.

python run_interpreted.py CASES RESULTS, both written by torch.save.
"""

import sys

import numpy as np
import torch

from boltzflow.forcefield import ForceField, triton_kernel


def evaluate(state, positions, chunk_bytes=2**30, programs=triton_kernel.PROGRAMS):
    triton_kernel.PROGRAMS = programs
    kernel = triton_kernel.TritonKernel(ForceField.from_state(state))
    energy, force = kernel(positions, chunk_bytes=chunk_bytes)
    return energy, force, kernel.rest is None


def main(cases, results):
    torch.set_num_threads(1)
    np.seterr(all="ignore")  # of clashes
    torch.save([evaluate(**case) for case in torch.load(cases)], results)


if __name__ == "__main__":
    main(*sys.argv[1:])
