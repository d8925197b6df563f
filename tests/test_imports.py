"""Imports point one way, need only what is declared, and are cheap."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import boltzflow

PACKAGE = Path(boltzflow.__file__).parent
ROOT = PACKAGE.parent

# Who may import whom, directly; what those may import is allowed as well. This is the table of the design.
ARROWS = {
    "errors": set(),
    "_typing": set(),
    "native": set(),
    "state": {"errors", "_typing"},
    "run": {"state"},
    "estimate": {"errors"},
    "statistics": {"state", "run", "estimate"},
    "forcefield": {"errors", "_typing", "native"},
    "coordinates": {"errors", "_typing", "native"},
    "networks": {"errors", "_typing"},
    "targets": {"forcefield", "coordinates", "state", "run"},
    "transitions": {"coordinates", "networks", "state", "run"},
    "paths": {"targets", "transitions"},
    "io": {"errors", "_typing"},
    "ensemble": {"statistics", "io"},
    "generators": {"paths", "ensemble"},
    "simulation": {"paths", "ensemble"},
    "objectives": {"generators"},
    "training": {"objectives", "simulation", "io"},
    "analysis": {"ensemble", "simulation"},
    "systems": {"generators"},
    "citation": {"systems", "simulation"},
    "testing": {"generators"},
    "preparation": {"systems", "training"},
    "pilot": {"systems", "objectives"},
    "reference": {"systems", "training"},
    "workflow": {"systems", "training", "pilot", "reference"},
    "__main__": {"cli"},
    "cli": {"workflow", "analysis", "preparation", "citation"},
}


def reachable(part, table=ARROWS):
    found, stack = {part}, [part]
    while stack:
        for other in table[stack.pop()] - found:
            found.add(other)
            stack.append(other)
    return found


def executed(node):
    """All nodes of a syntax tree, but for the bodies of `if TYPE_CHECKING`, which never run."""
    yield node
    for child in ast.iter_child_nodes(node):
        type_checking = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        for part in child.orelse if type_checking else [child]:
            yield from executed(part)


def imported_parts(source, module):
    """Parts of boltzflow that a module imports anywhere in its source, in functions as well."""
    found = set()
    for node in executed(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "boltzflow" else [base]
        found |= {name.split(".")[1] for name in names if name.startswith("boltzflow.")}
    return found


def violations(files):
    """(module, part it must not import) over {module: source}."""
    wrong = []
    for module, source in files.items():
        part = module.split(".")[1]
        wrong += [(module, other) for other in sorted(imported_parts(source, module) - reachable(part))]
    return wrong


def package_files():
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("boltzflow", *path.relative_to(PACKAGE).with_suffix("").parts)
        if parts != ("boltzflow", "__init__"):
            files[".".join(parts)] = path.read_text(encoding="utf-8")
    return files


def test_arrows_have_no_circle():
    for part in ARROWS:
        assert not any(part in reachable(other) for other in ARROWS[part]), part


def test_every_part_is_in_the_table():
    assert {module.split(".")[1] for module in package_files()} <= set(ARROWS)


def test_imports_follow_the_arrows():
    assert violations(package_files()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("boltzflow.transitions.bad", "from boltzflow.targets.target import Target"),
        ("boltzflow.coordinates.bad", "import boltzflow.networks.mlp"),
        ("boltzflow.statistics.bad", "def f():\n    from boltzflow import ensemble"),
        ("boltzflow.forcefield.bad", "from ..state import State"),
        (
            "boltzflow.analysis.bad",
            "if TYPE_CHECKING:\n    pass\nelse:\n    from boltzflow.generators import Generator",
        ),
    ],
)
def test_a_planted_import_is_found(module, source):
    assert [wrong[0] for wrong in violations({module: source})] == [module]


@pytest.mark.parametrize(
    "source",
    [
        "from boltzflow.state import State\nfrom . import path",
        "if TYPE_CHECKING:\n    from boltzflow.systems import System",
    ],
)
def test_allowed_imports_pass(source):
    assert violations({"boltzflow.paths.good": source}) == []


def test_no_torchscript():
    used = [m for m, source in package_files().items() if re.search(r"torch\.jit|from torch import jit", source)]
    assert used == []


def run_python(code, *options):
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


def test_import_is_silent_and_light():
    code = """
import sys
import boltzflow
heavy = {"openmm", "mdtraj", "torch", "matplotlib", "pymbar", "h5py"} & set(sys.modules)
print(sorted(heavy))
"""
    found = run_python(code, "-W", "error")
    assert (found.returncode, found.stdout.strip(), found.stderr) == (0, "[]", "")


def test_spine_needs_neither_openmm_nor_mdtraj():
    code = """
import sys
sys.modules["openmm"] = sys.modules["mdtraj"] = None
import boltzflow as bf
bf.State, bf.Target, bf.Ensemble, bf.Estimate, bf.Generator, bf.forcefield.ForceField, bf.list_systems
print("fine")
"""
    found = run_python(code, "-W", "error")
    assert found.stdout.strip() == "fine", found.stderr


DISTRIBUTION_OF = {"arviz_stats": "arviz-stats", "yaml": "pyyaml", "torch_geometric": "torch-geometric"}


def declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {re.match(r"[\w-]+", requirement).group().lower() for requirement in project["dependencies"]}


def test_package_imports_only_what_it_declares():
    found = {}
    for module, source in package_files().items():
        for node in ast.walk(ast.parse(source)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                found.setdefault(name.partition(".")[0], module)
    foreign = {name: where for name, where in found.items() if name not in sys.stdlib_module_names | {"boltzflow"}}
    undeclared = {n: m for n, m in foreign.items() if DISTRIBUTION_OF.get(n, n) not in declared()}
    # annotations use jaxtyping, a GPU Triton and adaptive solvers torchdiffeq, where they are installed, see below
    assert set(undeclared) <= {"jaxtyping", "triton", "torchdiffeq"}, undeclared


def test_every_module_imports_without_the_packages_of_the_tests():
    code = f"""
import importlib, sys
for name in ("jaxtyping", "beartype", "zuko", "roma", "hypothesis", "pytest", "nbmake", "torchdiffeq", "py3Dmol",
             "tensorboard", "normflows", "nflows", "xdist", "triton"):
    sys.modules[name] = None
for module in {sorted(package_files())!r}:
    importlib.import_module(module.removesuffix(".__init__"))
print("fine")
"""
    found = run_python(code)
    assert found.stdout.strip() == "fine", found.stderr


def test_public_names_exist():
    for name in boltzflow.__all__:
        assert getattr(boltzflow, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        boltzflow.nonsense  # noqa: B018


def code_lines(source):
    """Lines of a file without docstrings and blank lines."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    strings = [node.body[0] for node in ast.walk(ast.parse(source)) if isinstance(node, documented) and node.body]
    strings = [s for s in strings if isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)]
    inside = {line for s in strings for line in range(s.lineno, s.end_lineno + 1)}
    return sum(1 for number, line in enumerate(source.splitlines(), 1) if line.strip() and number not in inside)


def test_no_file_is_two_concepts():
    assert {m: n for m, source in package_files().items() if (n := code_lines(source)) > 400} == {}
