"""The time that a model may take."""

import signal
import time

import pytest

from fxdp.lint.proving import TimeUp, limit


def test_time_is_up() -> None:
    with pytest.raises(TimeUp), limit(0.05):
        time.sleep(5)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_what_was_interrupted_may_say_something_else() -> None:
    """Python's parser answers an interruption by an error of its own."""

    def interrupted() -> None:
        try:
            time.sleep(5)
        except TimeUp:
            raise SystemError from None

    with pytest.raises(TimeUp), limit(0.05):
        interrupted()


def test_errors_in_time_are_what_they_are() -> None:
    with pytest.raises(SystemError), limit(5.0):
        raise SystemError
