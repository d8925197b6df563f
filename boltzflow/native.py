"""Compiles C++ sources on the user's machine, once per machine and version, and shares their work among threads."""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

__all__ = ["build", "share"]

_log = logging.getLogger(__name__)

# Neither -ffast-math nor -ffinite-math-only: NaN positions must give NaN energies.
_FLAGS = (
    *("-std=c++20", "-O3", "-march=native", "-fopenmp-simd", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
)


def build(sources: Sequence[Path], what: str, otherwise: str) -> ctypes.CDLL | None:
    """Compile a C++ source into a shared library and load it; None without a C++ compiler, with a warning.

    The compiler is ``$CXX``, or the first of g++, clang++ and c++ on the path. The result is kept in
    ``$BOLTZFLOW_CACHE_DIR`` (default ``~/.cache/boltzflow``) under a key of the source, the compiler and the
    processor's instruction set.

    Args:
        sources: The file to compile, and those that it includes.
        what: It is, for messages.
        otherwise: What happens without it, for the warning.
    """
    compiler = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        _log.warning("no C++ compiler found (CXX, g++, clang++, c++): %s, several times slower", otherwise)
        return None
    try:
        # The predefined macros name the compiler's version and every instruction set that -march=native switches on.
        macros = subprocess.run(
            [compiler, *_FLAGS[:3], "-dM", "-E", "-x", "c++", os.devnull], check=True, capture_output=True
        ).stdout
        key = hashlib.sha256(b"".join([macros, *(source.read_bytes() for source in sources), repr(_FLAGS).encode()]))
        path = _cache_directory() / f"{key.hexdigest()[:24]}.so"
        if not path.exists():
            path = _compile(compiler, sources[0], path)
            _log.info("compiled %s with %s into %s", what, compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", None)
        reason = detail.decode(errors="replace").strip().splitlines()[:1] if detail else error
        _log.warning("%s could not compile %s (%s): %s", compiler, what, reason, otherwise)
        return None


def _cache_directory() -> Path:
    return Path(os.environ.get("BOLTZFLOW_CACHE_DIR", "~/.cache/boltzflow")).expanduser() / "kernels"


def _compile(compiler: str, source: Path, path: Path) -> Path:
    """Compile into ``path``, or into a temporary folder where the cache cannot be written; complete or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(suffix=".so", dir=path.parent)
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="boltzflow-")) / path.name
        handle, temporary = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        subprocess.run([compiler, *_FLAGS, str(source), "-o", temporary], check=True, capture_output=True)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def share(part: Callable[[int, int], None], n_rows: int) -> None:
    """Call part(start, end) over all rows, in pieces of 64 or more on up to `torch.get_num_threads` threads."""
    n = min(torch.get_num_threads(), n_rows // 64)
    if n <= 1:
        part(0, n_rows)
    else:
        cuts = [k * n_rows // n for k in range(n + 1)]
        # ctypes releases the interpreter's lock during the call.
        list(_threads(os.getpid()).map(part, cuts[:-1], cuts[1:]))


@functools.lru_cache(maxsize=1)
def _threads(process: int) -> ThreadPoolExecutor:  # a forked child needs threads of its own
    return ThreadPoolExecutor(thread_name_prefix="boltzflow")
