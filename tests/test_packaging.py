"""What a user installs: the wheel holds systems and data, versions are pinned, shipped files are what they were."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked, built from a copy so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("boltzflow", "systems", "data"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


@pytest.mark.slow
def test_wheel_holds_every_file(wheel):
    def files(folder):
        return {p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}

    assert files(ROOT / "systems") == files(wheel / "boltzflow/_systems")
    assert files(ROOT / "data") == files(wheel / "boltzflow/_data")
    shipped = {p for p in files(wheel / "boltzflow") if p.parts[0] not in {"_systems", "_data"}}
    assert files(ROOT / "boltzflow") == shipped


@pytest.mark.slow
def test_installed_package_finds_its_systems(wheel, tmp_path):
    code = """
import boltzflow as bf, sys
from pathlib import Path
system = bf.load_system("alanine_dipeptide")
assert Path(bf.__file__).is_relative_to(sys.argv[1]), bf.__file__
assert system.folder.is_relative_to(sys.argv[1]), system.folder
assert system.data_folder.is_relative_to(sys.argv[1]), system.data_folder
print(bf.list_systems(), float(system.potential(system.positions[None])[0]))
"""
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        f"import sys; sys.path.insert(0, {str(wheel)!r})\n{code}",
        str(wheel),
    ]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "'alanine_dipeptide', " in found.stdout
    assert "-173.165" in found.stdout


def test_every_dependency_is_pinned():
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert pins["torch"] == "2.13.0"
    optional = project()["optional-dependencies"]
    for requirement in [*project()["dependencies"], *optional["test"], *optional["dev"]]:
        name = canonical(re.match(r"[\w.-]+", requirement).group())
        assert name == "boltzflow" or name in pins, requirement


def test_version_is_said_once_more_in_the_package():
    import boltzflow

    assert boltzflow.__version__ == project()["version"]


@pytest.mark.parametrize("name", sorted(p.parent.name for p in (ROOT / "systems").glob("*/system.yaml")))
def test_shipped_files_are_what_they_were(name):
    folder = ROOT / "data" / name
    listed = {}
    if (folder / "SHA256SUMS").is_file():
        for line in (folder / "SHA256SUMS").read_text().splitlines():
            digest, file = line.split()
            listed[file.removeprefix("*")] = digest
    shipped = {p.name: p for p in folder.glob("*") if p.suffix in {".pt", ".h5", ".json"}}
    assert set(listed) == set(shipped)
    for file, path in shipped.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[file], file
    if shipped:
        assert (folder / "README.md").is_file()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_two_commands_do_everything():
    def commands(*words):
        # of a make that knows nothing of the one that may be running these tests
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "MFLAGS"}
        command = ["make", "-n", "-B", *words]
        found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        return found.stdout

    demo = commands("demo", "TORCH_INDEX=https://example.org/cpu", "PYTHON=python3.99")
    assert "python3.99 -m venv .venv" in demo
    assert "-c constraints.txt --index-url https://example.org/cpu torch" in demo
    order = [
        demo.index(words) for words in ("torch", "-e .", "sample alanine_dipeptide -n 20000", "analyze", "free-energy")
    ]
    assert order == sorted(order)
    assert "--index-url" not in commands("demo")
    assert "pytest" in commands("test")
    assert "ruff" in commands("lint")
