"""Where the folders of systems are: those that ship, and those of users."""

from pathlib import Path

from boltzflow.errors import FormatError, UnknownNameError, nearest

__all__ = ["find_folder", "list_systems", "shipped_folder"]

_PACKAGE = Path(__file__).parent.parent


def list_systems() -> list[str]:
    """Names of the systems that ship with the package."""
    return sorted(path.parent.name for path in shipped_folder("systems").glob("*/system.yaml"))


def shipped_folder(kind: str) -> Path:
    """`systems` or `data`: package data in a wheel, beside the package in a checkout."""
    installed = _PACKAGE / f"_{kind}"
    return installed if installed.is_dir() else _PACKAGE.parent / kind


def find_folder(text: str) -> Path:
    """The folder of a system.

    Args:
        text: A name of `list_systems()`, or a folder with a `system.yaml`.

    Raises:
        UnknownNameError: If there is none (the nearest are named).
        FormatError: If the folder has no `system.yaml`.
    """
    if text in list_systems():
        return shipped_folder("systems") / text
    folder = Path(text)
    if (folder / "system.yaml").is_file():
        return folder.resolve()
    if folder.is_dir():
        raise FormatError(f"system folder {folder}: no system.yaml in it.")
    hint = nearest(text, list_systems())
    raise UnknownNameError(f"unknown system {text!r}; {hint} A folder with a system.yaml works, too.")
