"""The kinds of fault that fxdp refuses a model for, and what each means.

FXD1xx: samples meet. FXD2xx: the loss is not one loss for each sample. FXD3xx: something made of
samples leaves the step without noise. FXD4xx: fxdp cannot follow. FXD5xx: torch cannot capture.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """A kind of fault.

    Attributes:
        code: FXD and three digits.
        name: what it flags, in two or three words.
        remedy: what would make it right, when nothing is known of the op in particular.
        what: what it flags, in a sentence.
        why: why it matters.
        bad: code that has the fault.
        good: code to write instead.
        allowable: whether a comment `# fxdp: allow[CODE] reason` on the line lifts it.
    """

    code: str
    name: str
    remedy: str
    what: str = ""
    why: str = ""
    bad: str = ""
    good: str = ""
    allowable: bool = False


CODES: dict[str, Code] = {
    c.name: c
    for c in (
        Code(
            "FXD101",
            "mixes-samples",
            "let every sample be computed from itself and parameters",
            "a value of one sample depends on other samples, or on its place in the batch",
            "The gradient of one sample then holds parts of others. Clipping it bounds nothing: "
            "whoever is added or removed changes everybody's gradient.",
            "x = nn.BatchNorm1d(64)(x)",
            "x = nn.GroupNorm(32, 64)(x)",
        ),
        Code(
            "FXD102",
            "uses-batch-total",
            "normalise within a sample, or in the loss alone",
            "a total over the batch, or the number of samples, is used to compute something else",
            "A total holds every sample. In the loss, fxdp gives each sample its own total; "
            "elsewhere there is no such reading.",
            "x = x / x.norm()",
            "x = x / x.norm(dim=-1, keepdim=True)",
        ),
        Code(
            "FXD103",
            "undeclared-input",
            "pass samples as arguments, and name their axis in batch_dims",
            "no argument holds samples, or one may hold them and nothing says on which axis",
            "The proof starts at the arguments. An axis guessed from its size can be wrong.",
            "loss = step()  # the model reads its samples from an attribute",
            "loss = step(x)",
        ),
        Code(
            "FXD104",
            "depends-on-batch-size",
            "do the same for batches of every size",
            "what is computed changes with the number of samples",
            "The proof is about one program. If one sample more means another program, that "
            "sample changes what all the others contribute.",
            "scale = 2.0 if len(x) > 4 else 1.0",
            "scale = 2.0",
        ),
        Code(
            "FXD105",
            "fixed-batch-size",
            "take sizes from x.shape, and run no layer along the batch axis",
            "the program works for one number of samples only",
            "An axis of the samples was tied to a number or to another axis: mostly a batch axis "
            "that was lost in a transpose or a view, and always a program that the proof cannot "
            "carry over to batches of other sizes.",
            "x = x.view(8, -1)",
            "x = x.flatten(1)",
        ),
        Code(
            "FXD201",
            "loss-not-separable",
            "return one loss a sample, or their mean or sum; if this is the model's output and no "
            "loss, pass loss_fn to fxdp.compile, or loss_reduction='mean' and make it yourself",
            "the loss is not one number for each sample, nor their mean or sum",
            "The privacy of DP-SGD is that of one sample's loss. A loss in which samples meet, or "
            "one for each token, has no such thing.",
            "loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction='none')",
            "loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())",
        ),
        Code(
            "FXD202",
            "no-loss",
            "let the model return a loss, or pass loss_fn to fxdp.compile",
            "there is no loss to take gradients of, or no gradient of it",
            "Clipping and noise are put where the loss leaves the model.",
            "return {'logits': logits}",
            "return {'loss': F.cross_entropy(logits, y), 'logits': logits}",
        ),
        Code(
            "FXD301",
            "writes-samples",
            "keep no statistics of samples in buffers",
            "a buffer or parameter is written from samples",
            "It is saved with the model and leaves without noise, however well the gradients are "
            "protected.",
            "self.running_mean.lerp_(x.mean(0), 0.1)",
            "x = nn.GroupNorm(32, 64)(x)  # no running statistics",
        ),
        Code(
            "FXD302",
            "input-gradient",
            "detach the input, or ask for no gradient of it",
            "a gradient of an input is asked for",
            "It is a gradient of one sample, not clipped and without noise.",
            "step(x.requires_grad_(), y)",
            "step(x.detach(), y)",
        ),
        Code(
            "FXD303",
            "keeps-samples",
            "return the value from forward, or do not keep it",
            "the model keeps a value made of samples in an attribute, a list or a global",
            "It outlives the step, without noise, and later steps may be computed from it. Where "
            "it is only looked at, for debugging, the line that computes it may allow it.",
            "self.last = h = self.fc(x)",
            "self.last = h = self.fc(x)  # fxdp: allow[FXD303] for the debugger, never saved",
            allowable=True,
        ),
        Code(
            "FXD304",
            "keeps-count",
            "take the number of samples from x.shape at each step, in a variable of forward; keep "
            "none of it in an attribute, a list, a global or a hook, and return none",
            "a number made of the number of samples outlives the step",
            "How many there are tells of a sample that was added or left out: later steps may be "
            "computed from it, without noise.",
            "self.seen += len(x)",
            "n = len(x)",
        ),
        Code(
            "FXD401",
            "no-rule",
            "write the model with other ops, or pass a Rule for this one",
            "fxdp has no rule for this op",
            "What is not understood is refused: most silent violations of other libraries come "
            "from layers that they took for ordinary ones.",
            "x = x + torch.histc(x, 4)",
            "fxdp.compile(model, rules=fxdp.RULES | {my_op: fxdp.Rule(place)}, **options)",
        ),
        Code(
            "FXD402",
            "unexplained-gradient",
            "give the rule of the op that sums over samples a form, with SumRule",
            "a parameter's gradient is a sum over samples that cannot be split into samples",
            "A use of a parameter that the norm misses is a use that is not clipped.",
            "fxdp.Rule(place)  # place returns Partial for operands that hold samples",
            "fxdp.SumRule(place, form=form)",
        ),
        Code(
            "FXD501",
            "graph-break",
            "keep side effects and branches on data out of forward",
            "torch.compile cannot capture the model as one graph",
            "What is outside of the graph is outside of the proof.",
            "if x.sum() > 0: ...",
            "x = torch.where(x > 0, a, b)",
        ),
    )
}


def table() -> str:
    """All codes as a table in Markdown, for README."""
    rows = [
        "| code | name | flags | instead of | write |",
        "|---|---|---|---|---|",
        *(
            f"| {c.code} | {c.name} | {c.what} | {cell(c.bad)} | {cell(c.good)} |"
            for c in CODES.values()
        ),
    ]
    return "\n".join(rows)


def cell(code: str) -> str:
    """A line of code in a cell; a comment behind it becomes text."""
    code = code.replace("|", "\\|")
    line, _, comment = code.partition("  # ")
    if comment.startswith("fxdp:"):
        return f"`{code}`"
    return f"`{line}`" + (f" ({comment})" if comment else "")
