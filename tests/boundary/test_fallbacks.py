"""Whatever torch runs in place of a private step, no plain gradient comes of it (P7)."""

import pytest

from tests.soundness.fallbacks import DOORS, FALLBACKS, Door, Fallback, outcome

# Where a release has to come of it, or the test would not see that everything is refused.
RUNS = {"nothing", "eval mode", "two passes, buffers kept"}


@pytest.mark.parametrize("door", DOORS[:2])
@pytest.mark.parametrize("fallback", FALLBACKS, ids=lambda f: f"{f.name}{', later' * f.warm}")
def test_released_or_refused(fallback: Fallback, door: Door) -> None:
    found = outcome(door, fallback)
    assert found == "released" if fallback.name in RUNS else found in ("released", "refused")


def test_the_table_sees_plain_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that hands out plain gradients is found: the tests above can fail."""
    plain = "tests.soundness.fallbacks.built"
    monkeypatch.setattr(plain, lambda door, model: (model, lambda: 0))
    assert outcome("fxdp.compile", FALLBACKS[0]).startswith("WRONG")
