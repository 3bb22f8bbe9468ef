"""The versions that a report or a certificate names."""

import sys
from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """fxdp's version, as installed."""
    try:
        return version("fxdp")
    except PackageNotFoundError:
        return "0"


def torch_version() -> str:
    """torch's version; it is not imported for it."""
    torch = sys.modules.get("torch")
    return torch.__version__ if torch is not None else version("torch")
