"""`fxdp-lint --check`: a certificate against the model that it was given for."""

import argparse
from contextlib import ExitStack
from pathlib import Path

from fxdp.checker.check import Verdict, check_certificate
from fxdp.diagnostics.diagnostic import ProofError
from fxdp.diagnostics.printed import plain
from fxdp.lint.apart import apart, hush_at_exit
from fxdp.lint.config import Config
from fxdp.lint.failures import first_line, said
from fxdp.lint.models.building import Built
from fxdp.lint.models.step import step
from fxdp.lint.models.targets import models
from fxdp.lint.models.wanted import Wanted
from fxdp.lint.options import wanted
from fxdp.lint.proving import TimeUp, limit, shortened_in
from fxdp.lint.trouble import Trouble
from fxdp.proof.certificate import Certificate
from fxdp.torch_internals import dynamo_config, reset_dynamo


def check(options: argparse.Namespace, config: Config) -> bool:
    """Check a certificate and print what came of it.

    Returns:
        Is it accepted?

    Raises:
        Trouble: no certificate, no single model, or one that cannot be captured.
    """
    certificate = certificate_in(Path(options.check))
    targets: list[str] = options.targets
    if len(targets) != 1 or ":" not in targets[0]:
        raise Trouble("--check needs one model: PATH:OBJECT")
    (target,) = targets
    plan = wanted(options, config, target)
    try:
        with apart(target.partition(":")[0], options.verbose), limit(plan.timeout):
            verdict = checked(target, plan, certificate)
    except TimeUp:
        raise Trouble(f"it took longer than {plan.timeout:g} s") from None
    hush_at_exit_after(verdict)
    return bool(verdict)


def hush_at_exit_after(verdict: Verdict) -> None:
    """Print a verdict; what the linted file prints at exit goes to stderr."""
    for line in str(verdict).splitlines():
        print(shortened_in(plain(line)), flush=True)
    hush_at_exit()


def certificate_in(file: Path) -> Certificate:
    """The certificate that a file holds.

    Raises:
        Trouble: it cannot be read, or holds none or several.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Trouble(f"cannot read {file}: {error}") from error
    try:
        return Certificate.from_json(text)
    except ValueError as error:
        raise Trouble(f"{file}: {first_line(str(error))}") from error


def checked(target: str, plan: Wanted, certificate: Certificate) -> Verdict:
    """Build the model as for a proof, and check; with data where it cannot do without.

    Raises:
        Trouble: it cannot be built, or not be captured.
    """
    with ExitStack() as stack:
        built = next(iter(models(target, plan, stack)), None)
        if not isinstance(built, Built):
            raise Trouble(getattr(built, "trouble", "") or f"{target}: there is no such model")
        try:
            return verdict_of(built, plan, certificate)
        except (Exception, SystemExit) as error:
            if built.with_data is None:
                raise trouble(error) from error
        try:
            return verdict_of(built.with_data(), plan, certificate)
        except (Exception, SystemExit) as error:
            raise trouble(error) from error


def trouble(error: BaseException) -> Trouble:
    """Why a model cannot be captured, in a line."""
    if isinstance(error, ProofError):
        fault = next(iter(error.diagnostics))
        at = fault.location
        return Trouble(shortened_in(fault.why + (f" at {at.file}:{at.line}" if at else "")))
    return Trouble(shortened_in(said(error)))


def verdict_of(built: Built, plan: Wanted, certificate: Certificate) -> Verdict:
    """The verdict on a model as it is built; with its numbers as constants, as for a proof."""
    reset_dynamo()
    if not built.path.endswith(".pt2"):
        built.model.train(plan.train)
    todo = step(built, plan)
    with dynamo_config.patch(specialize_float=True):
        return check_certificate(
            certificate, built.model, *todo.args, loss_fn=todo.loss_fn,
            batch_dims=todo.batch_dims, **todo.kwargs,
        )  # fmt: skip
