"""Every code is explained, and README shows them as they are."""

import ast
from pathlib import Path

import pytest

from fxdp.diagnostics.codes import CODES, Code, table

README = (Path(__file__).parents[2] / "fxdp" / "lint" / "README.md").read_text()


@pytest.mark.parametrize("code", CODES.values(), ids=lambda c: c.code)
def test_it_is_explained(code: Code):
    assert CODES[code.name] is code
    assert code.what
    assert code.why.endswith(".")
    assert code.remedy
    for text in (code.bad, code.good):
        ast.parse(text)  # what is shown as code is code


def test_codes_are_in_order_and_unique():
    codes = [c.code for c in CODES.values()]
    assert codes == sorted(set(codes))


def test_only_what_is_merely_kept_may_be_allowed():
    assert [c.code for c in CODES.values() if c.allowable] == ["FXD303"]


def test_the_table_in_readme_is_fresh():
    """To renew it: python -c "from fxdp.diagnostics.codes import table; print(table())"."""
    assert table() in README
