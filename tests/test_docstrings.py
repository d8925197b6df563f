"""Every public name is documented, and what its docstring says of the arguments is what it takes."""

import importlib
import inspect
import pkgutil
import re

import pytest

import boltzflow

MODULES = sorted(m.name for m in pkgutil.walk_packages(boltzflow.__path__, "boltzflow."))


def documented_arguments(docstring):
    """Names in the `Args:` section of a Google docstring."""
    others = "Returns|Raises|Yields|References|Example|Examples|Attributes|Note"
    pattern = rf"^[ \t]*Args:[ \t]*\n(.*?)(?=^\S|\Z|^[ \t]*(?:{others}):)"
    section = re.search(pattern, inspect.cleandoc(docstring), re.DOTALL | re.MULTILINE)
    if section is None:
        return None
    lines = section.group(1).splitlines()
    indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    names = []
    for line in lines:
        match = re.match(rf" {{{min(indents)}}}\*{{0,2}}(\w+)(?: \(.*?\))?(?:, \*{{0,2}}\w+)*:", line)
        if match:
            names += re.findall(r"\w+", line.partition(":")[0])
    return names


def parameters(thing):
    return [name for name in inspect.signature(thing).parameters if name not in {"self", "cls"}]


def public(module_name):
    module = importlib.import_module(module_name)
    return [
        (name, thing)
        for name in getattr(module, "__all__", [])
        if getattr(thing := getattr(module, name), "__module__", None) == module_name and callable(thing)
    ]


def complaints(name, thing):
    """What is wrong with the docstrings of a public function or class."""
    found = []
    if inspect.isclass(thing):
        if not thing.__doc__:
            return [f"{name}: no docstring"]
        class_arguments = documented_arguments(thing.__doc__)
        init_doc = vars(thing).get("__init__").__doc__ if "__init__" in vars(thing) else None
        listed = class_arguments or (documented_arguments(init_doc) if init_doc else None)
        if listed is not None:
            try:
                taken = parameters(thing)
            except ValueError:
                taken = listed
            found += [f"{name}: documents {a!r}, which it does not take" for a in listed if a not in taken]
            found += [f"{name}: takes {a!r}, which is not documented" for a in taken if a not in listed]
        for method_name, method in vars(thing).items():
            function = inspect.unwrap(getattr(method, "__func__", method))
            if not method_name.startswith("_") and inspect.isfunction(function):
                found += function_complaints(f"{name}.{method_name}", function)
        return found
    return function_complaints(name, thing) if inspect.isfunction(thing) else []


def function_complaints(name, function):
    if not function.__doc__:
        return [f"{name}: no docstring"]
    listed = documented_arguments(function.__doc__)
    if listed is None:
        return []
    taken = parameters(function)
    return [f"{name}: documents {a!r}, which it does not take" for a in listed if a not in taken]


@pytest.mark.parametrize("module_name", MODULES)
def test_docstrings_match_signatures(module_name):
    module = importlib.import_module(module_name)
    assert module.__doc__ or module_name.count(".") == 1, f"{module_name}: no docstring"
    wrong = [line for name, thing in public(module_name) for line in complaints(name, thing)]
    assert wrong == []


@pytest.mark.parametrize("module_name", MODULES)
def test_all_is_sorted_and_exists(module_name):
    module = importlib.import_module(module_name)
    names = list(getattr(module, "__all__", []))
    assert sorted(names) == sorted(set(names))
    assert [name for name in names if not hasattr(module, name)] == []


@pytest.mark.parametrize("name", sorted(m.name for m in pkgutil.iter_modules(boltzflow.__path__) if m.ispkg))
def test_every_folder_has_a_table_of_contents(name):
    assert importlib.import_module(f"boltzflow.{name}").__all__


def test_the_checker_sees_what_is_wrong():
    def good(a, *, b=1):
        """Do it.

        Args:
            a: One.
            b: Two, which is
                explained at length: here.

        Returns:
            c: Not an argument.
        """

    def stale(a):
        """Do it.

        Args:
            a: One.
            removed: Gone.
        """

    def bare():
        pass

    class Partial:
        """A thing.

        Args:
            a: One.
        """

        def __init__(self, a, b):
            pass

    assert documented_arguments(good.__doc__) == ["a", "b"]
    assert complaints("good", good) == []
    assert complaints("stale", stale) == ["stale: documents 'removed', which it does not take"]
    assert complaints("bare", bare) == ["bare: no docstring"]
    assert complaints("Partial", Partial) == ["Partial: takes 'b', which is not documented"]
