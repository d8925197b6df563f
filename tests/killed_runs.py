"""Runs commands to their end, and the same ones with kill -9 at random moments; test_kill.py starts it.

Commands are forks of one process, so that torch is imported once.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from boltzflow.cli import main
from boltzflow.systems import load_system

KILLS = 3


def start(words):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        sys.argv = ["boltzflow", "--quiet", *words]
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        os._exit(code)


def finish(words):
    began = time.monotonic()
    _, status = os.waitpid(start(words), 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{words} failed")
    return time.monotonic() - began


def kill(words, seconds, sign):
    """Kill a command so many seconds after `sign` was written; whether it was still running."""
    before = sign.stat().st_mtime_ns if sign.exists() else 0
    pid = start(words)
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if sign.exists() and sign.stat().st_mtime_ns != before:
            time.sleep(seconds)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            return os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        time.sleep(0.001)
    return False


def run(words, output, sign, moments):
    """A command as it is, and again with kills; the files are whole-NAME and killed-NAME."""
    seconds = finish([*words, "-o", f"whole-{output}"])
    killed = [*words, "-o", f"killed-{output}"]
    sign = Path(sign.format(f"killed-{output}"))
    kills = 0
    for resume in [[]] + [["--resume"]] * (KILLS - 1):
        kills += kill([*killed, *resume], 0.25 * seconds * moments.random(), sign)
    finish([*killed, "--resume"])
    return kills


if __name__ == "__main__":
    torch.set_num_threads(1)
    system = load_system("alanine_dipeptide")
    system.target.reduced_energy(system.target.state(system.positions[None]))  # what is compiled is compiled now
    moments = random.Random(int(sys.argv[1]))
    print(json.dumps([run(*job, moments) for job in json.loads(sys.argv[2])]))
