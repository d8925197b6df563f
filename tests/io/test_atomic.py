"""Atomic writes: what was there survives every failure, and nothing is left behind."""

import os
import stat
import subprocess
import sys

import pytest

from boltzflow.io.atomic import atomic_path, write_bytes, write_text


def test_a_failure_in_the_middle_leaves_the_previous_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old ±")

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert path.read_text() == "old ±"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_an_interrupt_leaves_the_previous_file(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def interrupt():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert path.read_bytes() == b"old"


def test_a_kill_in_the_middle_leaves_the_previous_file(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    code = (
        "import os, signal, sys\n"
        "from boltzflow.io.atomic import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(b'new')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode < 0
    assert path.read_bytes() == b"old"
    write_bytes(path, b"newer")
    assert path.read_bytes() == b"newer"


def test_a_full_disk_is_an_error_and_keeps_the_previous_file(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    import signal

    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_bytes(path, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_folders_are_made_and_permissions_follow_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        write_text(tmp_path / "b" / "c" / "d.txt", "x")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "b" / "c" / "d.txt").stat().st_mode) == 0o640
