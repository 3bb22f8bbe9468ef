"""Random programs, written as Python source.

A program is made line by line. Every line runs at once on two batches of different size, so
that its axes are known to hold samples or not, and a line that fails on either is dropped. The
sizes of other axes often equal the batch's. Most lines leave the samples alone, some mix them.
"""

import random
from collections.abc import Callable

import torch

from tools.soundness.made import Made

ROWS = 9  # of the tables that are looked up


def pointwise(m: Made, v: str) -> str:
    plain = (
        "torch.tanh({})", "torch.sigmoid({})", "F.relu({})", "F.gelu({})", "torch.sin({})",
        "{}.square()", "F.silu({})", "F.softplus({})", "{} * 0.5", "1 - {}", "{}.abs() + 0.1",
        "{0} / (1 + {0}.abs())", "torch.exp({}.clamp(max=2))", "{}.detach()",
        "torch.where({0} > 0, {0}, 0.1 * {0})", "F.hardtanh({})", "torch.atan2({0}, {0} + 3)",
    )  # fmt: skip
    return m.dice.choice(plain).format(v)


def weight(m: Made, *shape: int) -> str:
    """A parameter, or what is made of one by several ways."""
    p = m.parameter(*shape)
    if m.dice.random() < 0.7:
        return p
    ways = [f"({p} + {p})", f"({p} - {p}.flip(0))", f"({p} + {p}.roll(1, 0) * 0.5)"]
    ways += [f"({p} + {p}.reshape(-1).flip(0).reshape({shape}))", f"torch.add({p}, {p}[:1])"]
    if len(shape) == 2 and shape[0] == shape[1]:
        ways += [f"({p} + {p}.mT)", f"({p} - {p}.mT)", f"({p} @ {p})"] * 2
    used = [n for n in m.names if n.startswith("p") and m.shape(n) == shape]
    return m.dice.choice([*ways, f"({p} + {m.dice.choice(used)})"])


def linear(m: Made, v: str) -> str:
    out, last = m.dice.choice((2, 3, m.sizes[0])), m.shape(v)[-1]
    bias = f", {weight(m, out)}" if m.dice.random() < 0.5 else ""
    return f"F.linear({v}, {weight(m, out, last)}{bias})"


def from_left(m: Made, v: str) -> str:
    return f"{weight(m, m.dice.choice((2, 3)), m.shape(v)[-2])} @ {v}"


def with_parameter(m: Made, v: str) -> str:
    shape = [
        s if d in m.fixed(v) and m.dice.random() < 0.7 else 1 for d, s in enumerate(m.shape(v))
    ]
    shape = shape[m.dice.randrange(len(shape)) :]
    return f"{v} {m.dice.choice('+*-')} {weight(m, *shape)}"


def with_another(m: Made, v: str) -> str:
    w = m.dice.choice(m.live)
    form = m.dice.choice(
        ("{} + {}", "{} * {}", "torch.maximum({}, {})", "{} - {}", "{} @ {}", "{} + {}.mT",
         "{} @ {}.mT", "torch.where({} > 0, {}, 0.5)", "torch.hypot({}, {})")
    )  # fmt: skip
    return form.format(v, w)


def contraction(m: Made, v: str) -> str:
    equations = {
        2: ("ab,ab->a", "ab,cb->ac", "ab,ac->bc", "ab,ab->b", "ab,ab->ab"),
        3: ("abc,adc->abd", "abc,abd->acd", "abc,dbc->abd", "abc,abc->ab", "abc,abd->cd",
            "abc,dbc->bad", "abc,abc->ca"),
    }  # fmt: skip
    rank = len(m.shape(v))
    if rank not in equations:
        return f"{v} @ {v}.mT"
    if m.dice.random() < 0.4:
        axis, out = m.axis(v), m.dice.choice((2, 3))
        letters = "abcd"[:rank]
        result = letters.replace(letters[axis], "z")
        p = m.parameter(m.shape(v)[axis], out)
        return f"torch.einsum('{letters},{letters[axis]}z->{result}', {v}, {p})"
    return f"torch.einsum('{m.dice.choice(equations[rank])}', {v}, {v})"


def reduction(m: Made, v: str) -> str:
    axis, keep = m.axis(v), m.dice.random() < 0.5
    how = m.dice.choice(("sum", "mean", "amax", "logsumexp", "norm", "var", "prod", "amin"))
    if how == "norm":
        return f"torch.linalg.vector_norm({v}, 2, {axis}, {keep})"
    if how == "var":
        return f"{v}.var({axis}, keepdim={keep})"
    return f"{v}.{how}({axis}, {keep})"


def normal(m: Made, v: str) -> str:
    axis, shape = m.axis(v), m.shape(v)
    channels = shape[1] if len(shape) > 1 else 1
    groups = m.dice.choice([g for g in range(1, channels + 1) if channels % g == 0])
    return m.dice.choice(
        (
            f"torch.softmax({v}, {axis})", f"torch.log_softmax({v}, {axis})",
            f"{v} - {v}.mean({axis}, keepdim=True)", f"F.layer_norm({v}, {v}.shape[-1:])",
            f"F.layer_norm({v}, ({shape[-1]},), {m.parameter(shape[-1])})",
            f"F.group_norm({v}, {groups})", f"F.instance_norm({v})",
            f"F.batch_norm({v}, None, None, training=True)", f"F.normalize({v}, dim={axis})",
        )
    )  # fmt: skip


def along(m: Made, v: str) -> str:
    a = m.axis(v)
    return m.dice.choice(
        (
            f"{v}.cumsum({a})", f"{v}.sort({a}).values", f"{v}.flip({a})", f"{v}.roll(1, {a})",
            f"{v}.cummax({a}).values", f"{v}.argmax({a})", f"{v}.topk(1, {a}).values",
            f"{v}.argsort({a})", f"torch.cumprod({v}, {a})", f"torch.logcumsumexp({v}, {a})",
            f"{v}.roll(1)", f"{v}.tril()", f"{v}.diff(dim={a})",
            # torch 2.13's own median reads wrong memory where an axis is repeated without a copy.
            f"{v}.contiguous().median({a}).values",
        )
    )  # fmt: skip


def view(m: Made, v: str) -> str:
    shape, rank = m.shape(v), len(m.shape(v))
    order = m.dice.sample(range(rank), rank)
    a = m.dice.randrange(rank)
    size = m.dice.choice([k for k in range(1, shape[a] + 1) if shape[a] % k == 0])
    sizes = [m.size(v, d) for d in range(rank)]
    forms = [
        f"{v}.permute({order})", f"{v}.transpose(0, {a})", f"{v}.unsqueeze({a})",
        f"{v}.unflatten({a}, (-1, {size}))", f"{v}.unflatten({a}, ({size}, -1))",
        f"{v}.reshape({', '.join(sizes[d] for d in order)})", f"{v}.reshape(-1, {sizes[-1]})",
        f"{v}.unsqueeze({a}).expand({', '.join([*sizes[:a], '3', *sizes[a:]])})",
        f"{v}.reshape({sizes[0]}, -1)", f"{v}.mT",
    ]  # fmt: skip
    if rank > 1:
        b = m.dice.randrange(rank - 1)
        forms += [f"{v}.flatten({b}, {b + 1})"] * 3
    return m.dice.choice(forms)


def pieces(m: Made, v: str) -> str:
    a, w = m.axis(v), m.dice.choice(m.live)
    rank, last = len(m.shape(v)), m.shape(v)[a] - 1
    repeats = [2 if d == a else 1 for d in range(rank)]
    return m.dice.choice(
        (
            f"torch.cat([{v}, {w}], {a})", f"torch.stack([{v}, {w}], {a})",
            f"torch.cat([{v}, -{v}], {a})", f"{v}.chunk(2, {a})[0]", f"{v}.select({a}, {last})",
            f"{v}.narrow({a}, 0, {max(last, 1)})", f"{v}[..., 1:]", f"{v}[..., ::2]",
            f"F.pad({v}, (1, 0))", f"F.pad({v}, (0, 0, 1, 1))", f"{v}.repeat({repeats})",
            f"{v}.split({max(last, 1)}, {a})[0]", f"{v}.unbind({a})[0]", f"{v}[1:]",
            f"{v}.repeat_interleave(2, {a})", f"{v}.unfold({a}, 2, 1)", f"{v}.diagonal()",
            f"F.pad({v}, (1, 1), mode='replicate')", f"torch.flatten({v}, {a})",
        )
    )  # fmt: skip


def positions(m: Made, v: str) -> str:
    a, shape = m.axis(v), m.shape(v)
    count, behind = f"torch.arange({v}.shape[{a}])", ", 1" * (len(shape) - 1 - a)
    table = m.parameter(ROWS, shape[-1])
    return m.dice.choice(
        (
            f"{v} + F.embedding({count}, {table})", f"{v} * {count}.reshape(-1{behind})",
            f"{v}[torch.arange({v}.shape[0])]", f"{v}.index_select({a}, {count}.flip(0))",
            f"{v}[torch.arange({v}.shape[0]), ids]", f"F.embedding(ids, {table})",
            f"{v} + F.embedding(ids, {table})", f"{v}[ids]", f"{v}.gather(-1, ids.unsqueeze(-1))",
            f"F.one_hot(ids, {ROWS}) @ {table}", f"{v}.masked_fill(ids.unsqueeze(-1) > 2, 0.0)",
            f"{v} * (ids > 1).unsqueeze(-1)", f"{v}[:, ids]", f"{table}[ids]",
            f"torch.zeros_like({v}).scatter_add({a}, torch.zeros_like({v}).long(), {v})",
            f"torch.zeros_like({v}).index_add({a}, {count}, {v})",
        )
    )  # fmt: skip


def nearest(m: Made, v: str) -> str:
    """Distances, codes, tables that are looked up by place, and solves."""
    shape = m.shape(v)
    last, square = shape[-1], shape[-2] if len(shape) > 1 else shape[-1]
    codes, flat, matrix = m.parameter(4, last), m.parameter(ROWS), m.parameter(square, square)
    code = f"{codes}[torch.cdist({v}, {codes}).argmin(-1)]"
    apart = f"({matrix} + 4 * torch.eye({square}, dtype={v}.dtype))"
    return m.dice.choice(
        (
            f"torch.cdist({v}, {codes})", f"torch.cdist({v}, {v})", f"torch.take({flat}, ids)",
            f"{v} * torch.take({flat}, ids).unsqueeze(-1)", code, f"{v} + ({code} - {v}).detach()",
            f"({code} - {v}).square()", f"torch.linalg.solve({apart}, {v})",
            f"torch.linalg.solve_triangular({apart}.tril(), {v}, upper=False)",
            f"torch.linalg.solve({v} @ {v}.mT + 3 * torch.eye({square}), {v})",
        )
    )  # fmt: skip


def within(m: Made, v: str) -> str:
    """Gradients, tangents and maps that a model takes itself."""
    a, p = m.axis(v), m.parameter(m.shape(v)[-1])
    return m.dice.choice(
        (
            f"torch.func.grad(lambda z, p={p}: (z.tanh() * p).sum())({v})",
            f"torch.func.grad(lambda z, p={p}: F.softmax(z * p, {a}).square().sum())({v})",
            f"torch.func.grad(lambda z: z.mean().square())({v})",
            f"torch.func.jvp(torch.sin, ({v},), ({v} * {p},))[1]",
            f"torch.func.jvp(lambda z: z.softmax({a}), ({v},), (torch.ones_like({v}),))[1]",
            f"torch.func.vjp(lambda z, p={p}: z * p, {v})[1]({v})[0]",
            f"torch.func.vmap(lambda z: z * z.sum(), in_dims={a}, out_dims={a})({v})",
            f"torch.func.vmap(lambda z, p={p}: z + p.sum(), in_dims={a})({v})",
        )
    )  # fmt: skip


def counts(m: Made, v: str) -> str:
    a = m.axis(v)
    return m.dice.choice(
        (
            f"{v} / {v}.shape[{a}]", f"{v}.sum({a}) / {v}.shape[{a}]", f"{v} * ids.shape[0]",
            f"{v} / {v}.sum({a}, keepdim=True).abs().add(1)", f"{v} - {v}.max()",
            f"{v} / (1 + {v}.abs().mean())", f"{v} * torch.ones({m.size(v, 0)}).sum()",
        )
    )  # fmt: skip


MENU: tuple[tuple[Callable[[Made, str], str], int], ...] = (
    (pointwise, 5), (linear, 5), (from_left, 1), (with_parameter, 3), (with_another, 2),
    (contraction, 2), (reduction, 1), (normal, 2), (along, 2), (view, 4), (pieces, 3),
    (positions, 2), (counts, 1), (nearest, 1), (within, 1),
)  # fmt: skip


def losses(m: Made, v: str) -> str:
    """The last line."""
    p = m.dice.choice([n for n in m.names if n.startswith("p")])
    rest = list(range(1, len(m.shape(v))))
    each = f"{v}.sum({rest})" if rest else v
    total = (
        f"{v}.mean()", f"{v}.sum()", f"{v}.square().mean()", f"{v}.sum() / ids.shape[0]",
        f"{v}.sum() / {v}.square().sum().add(1)", f"{v}.mean() + {p}.square().sum()",
        f"F.smooth_l1_loss({v}, torch.zeros_like({v}))", f"{v}.sum() / (ids > 1).sum().add(1)",
        f"{v}.square().sum().sqrt()", f"{v}.exp().mean().log()",
        f"F.mse_loss({v}, torch.ones_like({v}), reduction='sum')", f"{v}.mean(-1).mean()",
        f"{v}.flatten(0, -2).mean(-1).mean()",
        f"(-{p}.sum()).exp() * {v}.mean() + {p}.sum()",
    )  # fmt: skip
    if len(rest) == 1 and m.shape(v)[1] > 1:  # the ids are 0 and 1
        classes = m.parameter(m.shape(v)[1])
        total += (
            f"F.cross_entropy({v}, ids)", f"F.cross_entropy({v}, ids, ignore_index=1)",
            f"F.cross_entropy({v}, ids, {classes}.exp().detach())",
            f"F.cross_entropy({v}, ids, {classes}.exp().detach(), label_smoothing=0.1)",
        )  # fmt: skip
    own = (each, f"{each}.square()", f"({each}).tanh()", f"({each}).mean()", f"({each}).sum()")
    return m.dice.choice(total if m.dice.random() < 0.5 else own)


def inputs(m: Made) -> None:
    """x with its samples on one axis, and ids for each sample."""
    free = [m.dice.choice((2, 3, 4, m.sizes[0])) for _ in range(m.dice.choice((1, 2, 2, 3)))]
    dim = m.dice.choice((0, 0, 0, 0, min(1, len(free))))
    seeds = torch.Generator().manual_seed(m.dice.randrange(1 << 30))
    shapes = [(*free[:dim], n, *free[dim:]) for n in m.sizes]
    x = [torch.randn(s, generator=seeds, dtype=torch.float64) for s in shapes]
    wide = (free[0],) if len(free) > 1 and m.dice.random() < 0.5 else ()
    ids = [torch.randint(2, (n, *wide), generator=seeds) for n in m.sizes]
    m.argument("x", dim, *x)
    m.argument("ids", 0, *ids)
    m.live.append("x")


def make(seed: int) -> Made:
    """A random program of 3 to 12 lines and a loss."""
    dice = random.Random(seed)
    m = Made(dice, dice.choice(((2, 5), (3, 5), (4, 6), (5, 3), (3, 2))))
    inputs(m)
    if not write(m, linear, "x"):
        write(m, with_parameter, "x")
    rules, weights = zip(*MENU, strict=True)
    wanted = min(dice.randint(3, 12), dice.randint(3, 12))
    for _ in range(10 * wanted):
        if len(m.lines) >= wanted:
            break
        v = m.live[-1] if dice.random() < 0.75 else dice.choice(m.live)
        if len(m.shape(v)):
            write(m, dice.choices(rules, weights)[0], v)
    while not m.loss:
        v = m.live[-1]
        if not m.worlds[0][v].requires_grad:
            m.live.pop()
        elif write(m, losses, v) and m.worlds[0][m.live[-1]].dim() <= 1:
            m.loss = m.live[-1]
    return m


def write(m: Made, rule: Callable[[Made, str], str], v: str) -> bool:
    """A line of some kind; parameters that no line came to use are dropped."""
    known = len(m.names)
    try:
        text = rule(m, v)
    except IndexError:
        return False
    done = m.add(text)
    used = [n for n in m.names[known:] if done and n in text]
    for name in [n for n in m.names[known:] if n not in used]:
        at = m.names.index(name)
        del m.names[at], m.dims[at]
    return done
