"""Tests of accounting share the distributions of privacy loss that they compose."""

import functools

from dp_accounting.pld import privacy_loss_distribution as pld


def pytest_collection_finish() -> None:
    """dp-accounting makes one a point of its grid at a time, a second long, and tests ask for a
    third of them again. None is changed once it is made."""
    pld.from_gaussian_mechanism = functools.lru_cache(64)(pld.from_gaussian_mechanism)
