"""Source text with group norms for batch norms: what `fxdp.fix` does to a model, done to its file.

| in the file | becomes |
|---|---|
| `nn.BatchNorm2d(64, momentum=0.9)` | `nn.GroupNorm(32, 64)` |
| `nn.BatchNorm2d(width)` | `group_norm(width)`, a function that is added to the file |
| `norm_layer=nn.BatchNorm2d`, a default or `self.norm = nn.BatchNorm2d` | `norm_layer=group_norm` |
| `nn.InstanceNorm2d(64, track_running_stats=True)` | `nn.InstanceNorm2d(64)` |

What is not known to be torch's class, or is called with `*` or `**`, stays. All else of the text
stays as it is, byte by byte. This module needs libcst.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import libcst as cst
from libcst import matchers as m
from libcst.metadata import MetadataWrapper, QualifiedNameProvider

from fxdp.diagnostics.fix import BATCH_NORMS, INSTANCE_NORMS, groups_for

HELPER = '''
def {name}(channels, **options):
    """A norm within each sample, in as many groups as divide the channels, up to 32."""
    groups = [g for g in range(1, 33) if channels % g == 0 and channels // g > 1]
    return {norm}(max(groups, default=1), channels, **options)
'''
NAMES = ("group_norm", "group_norm_of", "group_norm_over")
ORDER = ("num_features", "eps", "momentum", "affine", "track_running_stats")
KEPT = {"eps", "affine", "device", "dtype"}
DROPPED = {"momentum", "track_running_stats"}


BATCH = frozenset(f"torch.nn.{kind.__name__}" for kind in BATCH_NORMS)
INSTANCE = frozenset(f"torch.nn.{kind.__name__}" for kind in INSTANCE_NORMS)


@dataclass(frozen=True)
class Rewritten:
    """A file with its norms replaced.

    Attributes:
        content: the whole file.
        changes: how many places are different.
    """

    content: bytes
    changes: int


def rewritten(content: bytes, classes: frozenset[str]) -> Rewritten:
    """A file with group norms for batch norms.

    Args:
        content: of the file.
        classes: names of the classes in which norms are replaced; outside of classes all are.

    Raises:
        SyntaxError: it is no Python that libcst can parse.
    """
    try:
        module = cst.parse_module(content)
    except (cst.ParserSyntaxError, UnicodeDecodeError, LookupError) as error:
        raise SyntaxError(str(error).splitlines()[0]) from error
    wrapper = MetadataWrapper(module)
    change = Norms(wrapper.module, classes)
    changed = wrapper.visit(change)
    if change.helper is not None:
        changed = with_helper(changed, change.helper)
    return Rewritten(changed.bytes, change.changes)


class Norms(m.MatcherDecoratableTransformer):
    """Replaces norms, and counts them."""

    METADATA_DEPENDENCIES = (QualifiedNameProvider,)

    def __init__(self, module: cst.Module, classes: frozenset[str]) -> None:
        super().__init__()
        self.module, self.classes = module, classes
        self.inside: list[str] = []
        self.changes = 0
        self.helper: str | None = None
        self.torch_nn = torch_nn(module.code)
        taken = set(re.findall(r"\bgroup_norm\w*", module.code))
        self.has_helper = (
            HELPER.format(name=NAMES[0], norm=f"{self.torch_nn}.GroupNorm") in module.code
        )
        free = [name for name in NAMES if name not in taken]
        self.name = NAMES[0] if self.has_helper else (free or NAMES)[0]
        self.is_free = self.has_helper or bool(free)

    def visit_ClassDef(self, node: cst.ClassDef) -> None:
        self.inside.append(node.name.value)

    def leave_ClassDef(
        self, original_node: cst.ClassDef, updated_node: cst.ClassDef
    ) -> cst.ClassDef:
        self.inside.pop()
        return updated_node

    @property
    def is_wanted(self) -> bool:
        """Is this in one of the classes, or in none?"""
        return not self.inside or self.inside[0] in self.classes

    def is_named(self, node: cst.CSTNode, known: frozenset[str]) -> bool:
        """Is an expression the name of one of torch's classes, and of nothing else?"""
        found = self.get_metadata(QualifiedNameProvider, node, frozenset())
        return bool(found) and all(q.name in known for q in found)

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.BaseExpression:
        if not self.is_wanted:
            return updated_node
        if self.is_named(original_node.func, INSTANCE):
            return self.untracked(updated_node)
        if not self.is_named(original_node.func, BATCH):
            return updated_node
        given = arguments(updated_node.args)
        if given is None or "num_features" not in given or set(given) - {*ORDER, *KEPT}:
            return updated_node
        channels = given["num_features"]
        kept = [named(k, v) for k, v in given.items() if k in KEPT]
        if isinstance(channels, cst.Integer):
            groups = cst.Arg(cst.Integer(str(groups_for(int(channels.value, 0)))))
            func, args = self.norm(updated_node.func), [groups, cst.Arg(channels), *kept]
        else:
            func, args = self.of_helper(updated_node.func), [cst.Arg(channels), *kept]
        if func is None:
            return updated_node
        self.changes += 1
        return updated_node.with_changes(func=func, args=spaced(args, updated_node.args))

    def norm(self, func: cst.BaseExpression) -> cst.BaseExpression | None:
        """`nn.GroupNorm` for `nn.BatchNorm2d`; None where torch.nn has no name in the file."""
        if isinstance(func, cst.Attribute):
            return func.with_changes(attr=cst.Name("GroupNorm"))
        return cst.parse_expression(f"{self.torch_nn}.GroupNorm") if self.torch_nn else None

    def of_helper(self, func: cst.BaseExpression) -> cst.BaseExpression | None:
        """The name of the function that finds the groups; None where it cannot be added."""
        if (norm := self.norm(func)) is None or not self.is_free:
            return None
        if not self.has_helper and self.helper is None:
            spelled = (
                f"{self.torch_nn}.GroupNorm" if self.torch_nn else self.module.code_for_node(norm)
            )
            self.helper = HELPER.format(name=self.name, norm=spelled)
        return cst.Name(self.name)

    def untracked(self, call: cst.Call) -> cst.Call:
        """An instance norm without running statistics."""
        kept = [
            a for a in call.args
            if not (a.keyword is not None and a.keyword.value == "track_running_stats"
                    and m.matches(a.value, m.Name("True")))
        ]  # fmt: skip
        if len(kept) == len(call.args):
            return call
        self.changes += 1
        return call.with_changes(args=spaced(kept, call.args))

    def leave_Param(self, original_node: cst.Param, updated_node: cst.Param) -> cst.Param:
        if original_node.default is None or not is_norm(original_node.name.value):
            return updated_node
        return updated_node.with_changes(
            default=self.value(original_node.default, updated_node.default)
        )

    def leave_Arg(self, original_node: cst.Arg, updated_node: cst.Arg) -> cst.Arg:
        if original_node.keyword is None or not is_norm(original_node.keyword.value):
            return updated_node
        return updated_node.with_changes(value=self.value(original_node.value, updated_node.value))

    def leave_Assign(self, original_node: cst.Assign, updated_node: cst.Assign) -> cst.Assign:
        words = [self.module.code_for_node(t.target) for t in original_node.targets]
        if not all(is_norm(word.rpartition(".")[2]) for word in words):
            return updated_node
        return updated_node.with_changes(value=self.value(original_node.value, updated_node.value))

    def value(
        self, original: cst.BaseExpression, now: cst.BaseExpression | None
    ) -> cst.BaseExpression:
        """An expression with the helper for a batch norm's class; also behind `or` and `if`."""
        assert now is not None
        match original, now:
            case cst.BooleanOperation(), cst.BooleanOperation():
                return now.with_changes(
                    left=self.value(original.left, now.left),
                    right=self.value(original.right, now.right),
                )
            case cst.IfExp(), cst.IfExp():
                return now.with_changes(
                    body=self.value(original.body, now.body),
                    orelse=self.value(original.orelse, now.orelse),
                )
            case ((cst.Attribute() | cst.Name()), _) if self.is_wanted and self.is_named(
                original, BATCH
            ):
                if (func := self.of_helper(original)) is not None:
                    self.changes += 1
                    return func
                return now
            case _:
                return now


def is_norm(word: str) -> bool:
    """Is this what a variable for a norm's class is called?"""
    return "norm" in word.lower() or word.lower() == "bn"


def torch_nn(code: str) -> str:
    """What torch.nn is called in a file; "" where it has no name."""
    for pattern, word in ((r"^import torch\.nn as (\w+)$", r"\1"),
                          (r"^from torch import .*\bnn as (\w+)", r"\1"),
                          (r"^from torch import (?:.*\W)?nn\b", "nn"),
                          (r"^import torch\b(?! as)", "torch.nn")):  # fmt: skip
        if found := re.search(pattern, code, re.MULTILINE):
            return found.expand(word)
    return ""


def arguments(args: Sequence[cst.Arg]) -> dict[str, cst.BaseExpression] | None:
    """The arguments of a batch norm by name; None where they cannot be told."""
    found: dict[str, cst.BaseExpression] = {}
    for i, arg in enumerate(args):
        if arg.star or (arg.keyword is None and i >= len(ORDER)):
            return None
        found[arg.keyword.value if arg.keyword is not None else ORDER[i]] = arg.value
    return found


def named(keyword: str, value: cst.BaseExpression) -> cst.Arg:
    """`eps=1e-3`."""
    bare = cst.SimpleWhitespace("")
    equal = cst.AssignEqual(whitespace_before=bare, whitespace_after=bare)
    return cst.Arg(value, keyword=cst.Name(keyword), equal=equal)


def spaced(args: Sequence[cst.Arg], before: Sequence[cst.Arg]) -> list[cst.Arg]:
    """Arguments with a comma and a space between them, and the end of those before."""
    comma = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
    last = before[-1]
    return [*(a.with_changes(comma=comma) for a in args[:-1]),
            *(a.with_changes(comma=last.comma, whitespace_after_arg=last.whitespace_after_arg)
              for a in args[-1:])]  # fmt: skip


def with_helper(module: cst.Module, helper: str) -> cst.Module:
    """A module with a function behind its first imports."""
    body = list(module.body)
    first = next((i for i, s in enumerate(body) if isinstance(s, cst.ClassDef | cst.FunctionDef)),
                 len(body))  # fmt: skip
    imports = [i for i, s in enumerate(body[:first]) if m.matches(
        s, m.SimpleStatementLine(body=[m.ZeroOrMore(), m.Import() | m.ImportFrom(),
                                       m.ZeroOrMore()]))]  # fmt: skip
    at = imports[-1] + 1 if imports else first
    added = cst.parse_module(helper, module.config_for_parsing).body[0]
    added = added.with_changes(leading_lines=[cst.EmptyLine(indent=False)] * 2)
    rest = body[at:]
    if rest:
        lines = list(rest[0].leading_lines)
        while lines and lines[0].comment is None:
            lines.pop(0)
        above = [cst.EmptyLine(indent=False)] * 2 + lines
        rest[0] = rest[0].with_changes(leading_lines=above)
    return module.with_changes(body=[*body[:at], added, *rest])
