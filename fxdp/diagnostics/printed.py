"""Texts out of other people's files, as they may be printed.

A name, a message or a line of source may hold characters that a terminal obeys, that end a line
of a report and begin another, or that turn the order of what is read around. None of them gets
into a report: they are written as Python writes them in a string.
"""

import unicodedata

# Controls (C0, DEL, C1), formats (bidi overrides, zero width), surrogates, ends of lines.
UNPRINTED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
TABS = {"\t"}


def plain(text: str) -> str:
    """One line: what is not a printed character is escaped; tabs stay."""
    return "".join(escaped(c) if is_unprinted(c) else c for c in text)


def plain_lines(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(plain(line) for line in text.split("\n"))


def plain_source(line: str) -> str:
    """A line of source, where columns are counted: each such character becomes one other."""
    return "".join("\N{REPLACEMENT CHARACTER}" if is_unprinted(c) else c for c in line)


def is_unprinted(c: str) -> bool:
    """Is this a character that does something else than to be seen?"""
    return not " " <= c <= "~" and c not in TABS and unicodedata.category(c) in UNPRINTED


def escaped(c: str) -> str:
    r"""A character as `\x1b`."""
    return c.encode("unicode_escape").decode("ascii")
