"""The command line of fxdp-lint."""

import argparse
from typing import Any

from fxdp.diagnostics.version import own_version
from fxdp.lint.config import Config
from fxdp.lint.formats.table import FORMATS
from fxdp.lint.models.wanted import LOSSES, Wanted, arguments, axes, configuration, keywords
from fxdp.lint.trouble import Trouble

DESCRIPTION = """\
Prove that models can be trained with per-example differential privacy, without data or weights,
or say which line of theirs mixes samples.

Linting a Python file or module IMPORTS AND RUNS it. A saved program (.pt2) is checked and runs
no code of its own."""
EPILOG = """\
targets:
  models/net.py              every model that the file defines and that needs no arguments
  models/net.py:Net          a class, a factory or an instance
  transformers:BertModel     a name in a module; with --config '{"hidden_size": 64}'
  program.pt2                saved by torch.export.save
  models/                    every Python file that defines an nn.Module

A file may define example_inputs() or example_inputs(model), which return the arguments of a step
(one, a tuple, or a dict by name), or fxdp_example(), which returns (model, inputs) or
(model, inputs, loss_fn).

exit status: 0 nothing found, 1 findings, 2 a model could not be linted, 130 interrupted"""


def parser() -> argparse.ArgumentParser:
    """Everything that can be said."""
    p = argparse.ArgumentParser(
        "fxdp-lint", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("targets", nargs="*", metavar="PATH[:OBJECT]", help="what to lint")
    p.add_argument(
        "--exclude", action="append", metavar="PATTERN",
        help="files and folders of a directory that are left out, tests,*_old.py",
    )  # fmt: skip
    model = p.add_argument_group("the model and its step")
    model.add_argument(
        "--input", action="append", metavar="SPEC",
        help='an input, "f32[N,3,32,32]": N is the batch, other names any size (T=128 for one); '
        '"mask=bool[N,T]" for a keyword',
    )  # fmt: skip
    model.add_argument("--target", metavar="SPEC", help='the target of the loss, "i64[N]"')
    model.add_argument(
        "--loss", metavar="NAME",
        help=f"{', '.join(LOSSES)}, PATH:FUNCTION; none where the model returns its loss",
    )  # fmt: skip
    mode = model.add_mutually_exclusive_group()
    mode.add_argument("--train", action="store_true", default=None, help="training mode (default)")
    mode.add_argument("--eval", action="store_false", dest="train", help="evaluation mode")
    model.add_argument("--args", metavar="LITERAL", help='of the constructor, "(3, 10)"')
    model.add_argument("--kwargs", metavar="LITERAL", help='of the constructor, "width=64"')
    model.add_argument("--config", metavar="JSON", help="of a configuration class, or its file")
    model.add_argument("--batch-dims", metavar="LITERAL", help="axis of the samples, \"{'x': 1}\"")
    model.add_argument("--timeout", type=seconds, metavar="SECONDS", help="for each model")
    fix = p.add_argument_group("the files")
    fix.add_argument("--diff", action="store_true", help="show what could be fixed; writes nothing")
    fix.add_argument("--fix", action="store_true", help="write fixes to the files, and lint again")
    fix.add_argument(
        "--unsafe-fixes", action="store_true",
        help="also those that change what a model computes: group norm for batch norm",
    )  # fmt: skip
    out = p.add_argument_group("the report")
    out.add_argument(
        "--output-format", choices=tuple(FORMATS),
        help="default: full on a terminal, text elsewhere",
    )  # fmt: skip
    out.add_argument("--output-file", metavar="FILE", help="write the report there")
    out.add_argument("--select", action="append", metavar="CODES", help="codes, names, FXD1, ...")
    out.add_argument("--ignore", action="append", metavar="CODES", help="likewise")
    out.add_argument(
        "--per-file-ignores", action="append", metavar="PATTERN:CODE",
        help="codes that are not reported of some files, models/*.py:FXD303",
    )  # fmt: skip
    out.add_argument("--statistics", action="store_true", help="count the findings by code")
    out.add_argument("--certificate", metavar="FILE", help="certificates of proven models, JSON")
    out.add_argument("--check", metavar="FILE", help="check a certificate of the model instead")
    out.add_argument("--explain", metavar="CODE", help="say what a code means; all lists them")
    out.add_argument("-e", "--exit-zero", action="store_true", help="exit with 0 on findings")
    out.add_argument("-w", "--watch", action="store_true", help="lint again when a file changes")
    out.add_argument("-n", "--no-cache", action="store_true", help="lint what is known, too")
    out.add_argument("--cache-dir", metavar="FOLDER", help="default: .fxdp_lint_cache")
    out.add_argument("--isolated", action="store_true", help="do not read pyproject.toml")
    out.add_argument("-v", "--verbose", action="store_true", help="tracebacks and warnings")
    out.add_argument("-q", "--quiet", action="store_true", help="findings only")
    p.add_argument("--version", action="version", version=f"fxdp-lint {own_version()}")
    return p


def seconds(text: str) -> float:
    """A time that is not negative."""
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value


def words(values: list[str] | None) -> list[str]:
    """`--select A,B --select C` as a list."""
    return [w.strip() for value in values or () for w in value.split(",") if w.strip()]


def per_file(values: list[str] | None) -> dict[str, list[str]]:
    """`--per-file-ignores PATTERN:CODE,PATTERN:CODE` by pattern.

    Raises:
        Trouble: a word is not like that.
    """
    found: dict[str, list[str]] = {}
    for word in words(values):
        pattern, colon, code = word.rpartition(":")
        if not colon or not pattern or not code:
            raise Trouble(f"--per-file-ignores {word!r} is not like models/*.py:FXD303")
        found.setdefault(pattern, []).append(code)
    return found


def wanted(options: argparse.Namespace, config: Config, target: str) -> Wanted:
    """How a target is to be linted: by the command line, else by pyproject.toml.

    Raises:
        Trouble: a value that means nothing.
    """
    said: dict[str, Any] = config.of(target)
    for key in ("input", "target", "loss", "train", "args", "kwargs", "config", "timeout"):
        if (value := getattr(options, key)) is not None:
            said[key] = value
    if options.batch_dims is not None:
        said["batch-dims"] = options.batch_dims
    for key, kind in (("target", str), ("loss", str), ("train", bool), ("timeout", int | float)):
        if key in said and not isinstance(said[key], kind):
            raise Trouble(f"{key} cannot be {said[key]!r}")
    return Wanted(
        said=repeated(options),
        inputs=tuple(said.get("input", ())),
        target=said.get("target"),
        loss=said.get("loss"),
        train=said.get("train", True),
        args=arguments(said["args"]) if "args" in said else (),
        kwargs=keywords(said["kwargs"]) if "kwargs" in said else {},
        config=configuration(said["config"]) if "config" in said else {},
        batch_dims=axes(said["batch-dims"]) if "batch-dims" in said else None,
        timeout=float(said.get("timeout", 0)),
    )


def repeated(options: argparse.Namespace) -> tuple[str, ...]:
    """The options about the model as the user typed them: names and values, "" for none."""
    found: list[str] = []
    for key in ("input", "target", "loss", "args", "kwargs", "config", "batch_dims", "timeout"):
        value: Any = getattr(options, key)
        for text in value if isinstance(value, list) else [value]:
            if text is not None:
                found += [f"--{key.replace('_', '-')}", str(text)]
    return (*found, *(("--eval", "") if options.train is False else ()))
