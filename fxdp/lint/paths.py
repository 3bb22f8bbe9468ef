"""Paths as the user would write them."""

import os
from pathlib import Path


def shortened(path: str) -> str:
    """A path as the user would write it: relative, where it is below the current directory."""
    relative = os.path.relpath(path) if Path(path).is_absolute() else path
    return path if relative.startswith("..") else relative


def shortened_in(text: str) -> str:
    """A text with the current directory left out of its paths."""
    return text.replace(f"{Path.cwd()}{os.sep}", "")
