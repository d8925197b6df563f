"""What README and docs/ show is true: snippets run, commands parse, links exist, texts and numbers are real."""

import ast
import doctest
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "data").rglob("*.md")),
    *sorted((ROOT / "systems").rglob("*.md")),
    ROOT / "benchmarks" / "README.md",
]
# what takes long is made small; every key must occur somewhere, so that none is forgotten
SMALLER = {"20_000": "400", "5_000": "300"}


def blocks(page, language):
    """Contents of the fenced blocks of a language, with the line where each starts."""
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, m.start(1)), m.group(1)) for m in pattern.finditer(text)]


def name(page):
    return str(page.relative_to(ROOT))


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_snippets_run(page, tmp_path, monkeypatch):
    """All blocks of a page in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    registry = importlib.import_module("boltzflow.forcefield.registry")
    monkeypatch.setattr(registry, "CONVERTERS", dict(registry.CONVERTERS))  # a page registers a force
    namespace = {"__name__": "snippet"}
    for line, source in blocks(page, "python"):
        for large, small in SMALLER.items():
            source = source.replace(large, small)
        exec(compile("\n" * line + source, str(page), "exec"), namespace)


def test_snippets_are_many_and_the_smaller_numbers_are_used():
    source = "".join(text for page in WITH_PYTHON for _, text in blocks(page, "python"))
    assert len(WITH_PYTHON) >= 5
    assert [large for large in SMALLER if large not in source] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_fence_has_a_language_that_is_checked(page):
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert set(fences[::2]) <= {"python", "bash", "text", "yaml"}


def commands():
    """The `boltzflow` command lines of all pages."""
    for page in PAGES:
        for line, source in blocks(page, "bash"):
            for text in source.replace("\\\n", " ").splitlines():
                words = shlex.split(text, comments=True)
                if words[:1] == ["torchrun"]:
                    words = words[words.index("boltzflow") :]
                if words[:1] == ["boltzflow"]:
                    yield pytest.param(words[1:], id=f"{name(page)}:{line} {' '.join(words[:3])}")


@pytest.mark.parametrize("words", list(commands()))
def test_commands_parse(words):
    importlib.import_module("boltzflow.cli.app")
    for path in (ROOT / "boltzflow" / "cli").glob("[a-z]*.py"):
        importlib.import_module(f"boltzflow.cli.{path.stem}")
    from boltzflow.cli.app import app

    group = typer.main.get_command(app)
    subcommand = next(i for i, word in enumerate(words) if not word.startswith("-"))
    group.make_context("boltzflow", words[:subcommand], resilient_parsing=True)
    group.commands[words[subcommand]].make_context(words[subcommand], words[subcommand + 1 :])


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=name)
def test_configurations_are_valid(page):
    import yaml

    from boltzflow.io.config import parse_config

    for _, source in blocks(page, "yaml"):
        parse_config(yaml.safe_load(source), origin=str(page))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_makefile_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {
        word for page in PAGES for _, source in blocks(page, "bash") for word in re.findall(r"\bmake ([a-z]+)", source)
    }
    assert {"demo", "test"} <= shown <= targets


def messages():
    """Every piece of every string literal of the package; adjacent literals are one."""
    found = []
    for path in sorted((ROOT / "boltzflow").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_error_texts_are_those_of_the_code():
    page = ROOT / "docs" / "troubleshooting.md"
    headings = re.findall(r"^### `(.+)`$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) > 20
    literals = messages()
    stale = [
        (heading, part)
        for heading in headings
        for part in re.split(r"…", heading)
        if part.strip() and not any(part in literal for literal in literals)
    ]
    assert stale == []


def test_tables_are_those_of_the_benchmarks():
    """`python docs/make_results.py` writes them."""
    command = [sys.executable, str(ROOT / "docs" / "make_results.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "boltzflow").rglob("*.py")
    if re.search(r"^ *>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
)


@pytest.mark.parametrize("module", EXAMPLES)
def test_docstring_examples_run(module, monkeypatch):
    registry = importlib.import_module("boltzflow.forcefield.registry")
    monkeypatch.setattr(registry, "CONVERTERS", dict(registry.CONVERTERS))  # an example registers a force
    found = doctest.testmod(importlib.import_module(module.removesuffix(".__init__")))
    assert found.attempted > 0
    assert found.failed == 0
