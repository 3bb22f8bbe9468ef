"""Which codes are wanted, and what each of them means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fxdp.diagnostics.codes import CODES, Code
from fxdp.lint.models.walking import is_excluded
from fxdp.lint.result import Finding, Result
from fxdp.lint.trouble import Trouble


def matching(word: str) -> list[Code]:
    """The codes that a name, a code or the beginning of codes stands for.

    Raises:
        Trouble: none.
    """
    word = word.strip()
    named = [c for c in CODES.values() if c.name == word.lower()]
    found = named or [c for c in CODES.values() if word.upper().startswith("FXD") and
                      c.code.startswith(word.upper())]  # fmt: skip
    if word.upper() == "ALL":
        return list(CODES.values())
    if not found:
        raise Trouble(
            f"no code is called {word!r}, or begins so; fxdp-lint --explain all lists all"
        )
    return found


def precision(word: str, code: Code) -> int:
    """How closely a word names a code: the closest of select and ignore decides, as in ruff."""
    if word.strip().lower() == code.name:
        return len(code.code)
    return 0 if word.strip().upper() == "ALL" else len(word.strip())


def wanted_codes(select: Sequence[str], ignore: Sequence[str]) -> set[str]:
    """The codes that are reported.

    Raises:
        Trouble: a word stands for none.
    """
    chosen: dict[str, int] = dict.fromkeys((c.code for c in CODES.values()), -1)
    if select:
        chosen = {}
        for word in select:
            for c in matching(word):
                chosen[c.code] = max(chosen.get(c.code, -1), precision(word, c))
    for word in ignore:
        for c in matching(word):
            if c.code in chosen and chosen[c.code] <= precision(word, c):
                del chosen[c.code]
    return set(chosen)


@dataclass(frozen=True)
class Selection:
    """Which findings are reported.

    Attributes:
        codes: of all files.
        ignored: patterns of files, and the codes that are not reported of those.
    """

    codes: frozenset[str]
    ignored: tuple[tuple[str, frozenset[str]], ...] = ()

    @classmethod
    def of(
        cls, select: Sequence[str], ignore: Sequence[str], per_file: Mapping[str, Sequence[str]]
    ) -> "Selection":
        """From words.

        Raises:
            Trouble: a word stands for no code.
        """
        ignored = [
            (pattern, frozenset(c.code for word in words for c in matching(word)))
            for pattern, words in per_file.items()
        ]
        return cls(frozenset(wanted_codes(select, ignore)), tuple(ignored))

    def takes(self, f: Finding) -> bool:
        """Is a finding reported? `!tests/*` stands for all files that are no tests."""
        file = Path(f.path)
        for pattern, codes in self.ignored:
            plain = pattern.removeprefix("!")
            if f.code.code in codes and is_excluded(file, [plain]) == (plain == pattern):
                return False
        return f.code.code in self.codes

    def of_result(self, result: Result) -> Result:
        """A result with those findings only."""
        return replace(result, findings=tuple(f for f in result.findings if self.takes(f)))


def explain(word: str, console: Console) -> None:
    """What a code means, or several.

    Raises:
        Trouble: the word stands for none.
    """
    codes = matching(word)
    if len(codes) > 2:
        for c in codes:
            console.print(Text(c.code, "bold red").append(f" {c.name}", "bold"), end=": ")
            console.print(Text(c.what), soft_wrap=True)
        return
    for c in codes:
        console.print(Text(c.code, "bold red").append(f" {c.name}\n", "bold"))
        console.print(Text(f"{c.what[:1].upper()}{c.what[1:]}. {c.why}"))
        console.print(
            Text("\nInstead of\n", "bold").append(f"    {c.bad}", "not bold red"), soft_wrap=True
        )
        console.print(
            Text("write\n", "bold").append(f"    {c.good}\n", "not bold green"), soft_wrap=True
        )
        console.print(Text(f"{c.remedy[:1].upper()}{c.remedy[1:]}."))
        if c.allowable:
            console.print(Text(f"A line may allow it: # fxdp: allow[{c.code}] reason"))
