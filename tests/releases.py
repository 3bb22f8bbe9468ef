"""What only later releases of torch can do, as marks of tests."""

import pytest
import torch


def since(release: tuple[int, int], before: str) -> pytest.MarkDecorator:
    """Skip where torch is older.

    Args:
        before: what such a torch does, as the reason.
    """
    told = ".".join(map(str, release))
    return pytest.mark.skipif(torch.__version__ < release, reason=f"before torch {told}: {before}")
