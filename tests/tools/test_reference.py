"""The API reference is built without a warning, and has every public name."""

import re
from importlib import import_module
from inspect import isclass, isfunction
from pathlib import Path

import fxdp
from tools.reference import PAGES, build


def test_every_public_name_is_in_the_reference(tmp_path: Path) -> None:
    build(tmp_path)
    for page in PAGES:
        text = (tmp_path / page.replace(".", "/")).with_suffix(".html").read_text()
        names = set(getattr(import_module(page), "__all__", ()))
        assert names <= set(re.findall(r'<section id="(\w+)"', text))
        assert len(text) < 1_000_000  # tables of rules come by their names


def test_every_public_name_says_what_it_is() -> None:
    """No public name is without a docstring."""
    modules = [import_module(page) for page in PAGES]
    silent = [
        f"{module.__name__}.{name}"
        for module in modules
        for name in getattr(module, "__all__", ())
        if (isclass(found := getattr(module, name)) or isfunction(found)) and not found.__doc__
    ]
    assert not silent
    assert set(fxdp.MODULES.values()) <= set(PAGES)
