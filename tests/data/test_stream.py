"""Streams of words: published values, and that steps do not overlap."""

import numpy as np

from fxdp.data.stream import ChaCha20, Philox


def test_chacha20_is_the_published_cipher() -> None:
    # RFC 8439, appendix A.1, test vector 1: key and nonce of zeros, block counter 0.
    words = ChaCha20(bytes(32)).at(0)(8)
    published = (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )
    assert words.astype("<u8").tobytes().hex() == published


def test_philox_is_numpys() -> None:
    key = bytes(range(16))
    of_numpy = np.random.Philox(key=int.from_bytes(key, "little"), counter=5 << 128)
    assert np.array_equal(Philox(key).at(5)(10), of_numpy.random_raw(10))


def test_steps_do_not_overlap() -> None:
    for stream in (Philox(bytes(16)), ChaCha20(bytes(32))):
        words = np.concatenate([stream.at(step)(1000) for step in (0, 1, 2, 2**40)])
        assert len(np.unique(words)) == len(words)


def test_words_do_not_depend_on_how_they_are_asked_for() -> None:
    for stream in (Philox(bytes(16)), ChaCha20(bytes(32))):
        pieces = stream.at(3)
        in_pieces = np.concatenate([pieces(count) for count in (1, 7, 0, 100)])
        assert np.array_equal(in_pieces, stream.at(3)(108))
