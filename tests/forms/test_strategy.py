"""The rows of the table of strategies are complete, and people read the same of them."""

from pathlib import Path
from typing import get_args

import pytest

from fxdp.forms import Conv, Outer, Reduce, Scatter, Tied
from fxdp.forms.strategy import STRATEGIES, Strategy

README = Path(__file__).parents[2] / "fxdp" / "forms" / "README.md"


def test_each_name_has_a_row() -> None:
    assert tuple(STRATEGIES) == get_args(Strategy)


def test_the_readme_has_the_sentences() -> None:
    rows = [f'| `"{name}"` | {traits.sentence} |' for name, traits in STRATEGIES.items()]
    assert not set(rows) - set(README.read_text().splitlines())


@pytest.mark.parametrize("form", [Conv, Outer, Reduce, Scatter, Tied])
def test_a_form_offers_what_is_known_and_something_that_is_modelled(form: type) -> None:
    offered: tuple[Strategy, ...] = form.strategies  # type: ignore[attr-defined]
    assert not set(offered) - set(STRATEGIES)
    # What takes the place of strategies that a form lacks, or that a sum does not allow.
    assert "instantiate" in offered
    assert STRATEGIES["instantiate"].modelled
    assert STRATEGIES["instantiate"].materialises


def test_what_the_report_shows_was_predicted() -> None:
    assert all(traits.modelled for traits in STRATEGIES.values() if traits.shown)
