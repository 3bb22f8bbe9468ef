"""What an op returns is taken for shared only where torch itself says what the op computes; and a
pipeline that is told something which none of its passes heard of does not run.

An op of one's own may keep what it likes between two calls: what it returns may be made of the
samples of the step before, whatever it was given now.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

import fxdp
from fxdp import forms
from fxdp.autotune import layout, timings, trials
from fxdp.forms.conv import Spec
from fxdp.graph.passes import Pass, run
from fxdp.passes.noise import noise
from fxdp.passes.weigh import weigh
from fxdp.pipeline import PASSES
from tests.findings import Net, marked, refused

N, D = 5, 4
KEPT = [torch.zeros(D)]  # what an op was left with by an earlier batch


def op(schema: str, result: Callable[..., Any], namespace: str = "boundary") -> Any:
    """An op without a rule, for tensors and, by its result's shape, for fake ones."""
    name = schema[: schema.index("(")]
    LIBRARIES.setdefault(namespace, torch.library.Library(namespace, "FRAGMENT"))
    LIBRARIES[namespace].define(schema)
    LIBRARIES[namespace].impl(name, result, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{namespace}::{name}", result, lib=LIBRARIES[namespace])
    return getattr(getattr(torch.ops, namespace), name)


def kept(*_: Any) -> Tensor:
    return torch.zeros(D)


def size(*_: Any) -> Any:
    """A number that is known when the op runs."""
    try:
        return torch.library.get_ctx().new_dynamic_size()
    except AssertionError:
        return 3


LIBRARIES: dict[str, torch.library.Library] = {}
STATS = op("stats() -> Tensor", kept)
OF_NUMBERS = op("of_numbers(int n, float x) -> Tensor", kept)
OF_SIZE = op("of_size(SymInt n) -> Tensor", kept)
OF_LIST = op("of_list(Tensor[] xs, Tensor? y=None) -> Tensor", kept)
OF_SHARED = op("of_shared(Tensor w) -> Tensor", lambda w: w.new_zeros(D))
TWO = op("two() -> (Tensor, Tensor)", lambda: (kept(), kept()))
COUNT = op("count() -> SymInt", size)
SYM_COUNT = op("sym_count(Tensor x) -> SymInt", size)
FLOAT = op("number() -> float", lambda: 3.0)
NOTHING = op("remember(Tensor x) -> ()", lambda x: None)
IN_PLACE = op("fill(Tensor(a!) x) -> ()", lambda x: None)
IN_ATEN = op("boundary_stats() -> Tensor", kept, "aten")
IN_PRIMS = op("boundary_stats() -> Tensor", kept, "prims")
EFFECT = op("effect(Tensor x) -> Tensor", torch.empty_like)
torch.library._register_effectful_op(EFFECT.default, torch.library.EffectType.ORDERED)


def no_operand(net, x):
    return net.fc(x) + STATS()  # FXD401


def no_operand_of_many(net, x):
    return net.fc(x) + TWO()[1]  # FXD401


def numbers(net, x):
    return net.fc(x) + OF_NUMBERS(3, 2.0)  # FXD401


def own_size(net, x):
    return net.fc(x) + OF_SIZE(x.shape[1])  # FXD401


def empty_list(net, x):
    return net.fc(x) + OF_LIST([])  # FXD401


def nothing_given(net, x):
    return net.fc(x) + OF_LIST([], None)  # FXD401


def shared_operand(net, x):
    return net.fc(x) + OF_SHARED(net.fc.bias.detach())  # FXD401


def made_of_shared(net, x):
    return net.fc(x) + OF_SHARED(torch.zeros(D)).exp()  # FXD401


def named_as_torch(net, x):
    return net.fc(x) + IN_ATEN()  # FXD401


def named_as_prims(net, x):
    return net.fc(x) + IN_PRIMS()  # FXD401


def a_count(net, x):
    return net.fc(x) * COUNT()  # FXD401


def a_count_of_samples(net, x):
    return net.fc(x) * SYM_COUNT(x)  # FXD401


def a_number(net, x):
    return net.fc(x) * FLOAT()  # FXD401


def a_side_effect(net, x):
    NOTHING(x)  # FXD401
    return net.fc(x)


def a_side_effect_on_shared(net, x):
    NOTHING(net.fc.weight)  # FXD401
    return net.fc(x)


def an_ordered_effect(net, x):
    return net.fc(EFFECT(x))  # FXD401


def written_to(net, x):
    scale = torch.ones(D)
    IN_PLACE(scale)  # FXD401
    return net.fc(x) * scale


BODIES = [
    no_operand, no_operand_of_many, numbers, own_size, empty_list, nothing_given, shared_operand,
    made_of_shared, named_as_torch, named_as_prims, a_count, a_count_of_samples, a_number,
    a_side_effect, a_side_effect_on_shared, an_ordered_effect, written_to,
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
def test_what_a_foreign_op_returns_is_not_shared(body: Any) -> None:
    (d,) = refused(fxdp.ProofError, __file__, marked(body), Net(body), torch.randn(N, D))
    assert "rule" in d.remedy.lower()


def test_a_step_is_refused_before_anything_is_delivered() -> None:
    model = Net(no_operand)
    private = fxdp.compile(
        model, max_grad_norm=1.0, noise_multiplier=1.0, expected_batch_size=N, backend="eager"
    )
    with pytest.raises(fxdp.ProofError, match="FXD401 no-rule: stats"):
        private(torch.randn(N, D)).backward()
    assert all(p.grad is None for p in model.parameters())
    assert private.releases == 0


def test_the_door_of_torch_compile_refuses_it_too() -> None:
    options = {"max_grad_norm": 1.0, "noise_multiplier": 1.0, "expected_batch_size": N}
    model = Net(lambda net, x: net.fc(x) + STATS())
    step = torch.compile(
        lambda x: model(x).mean(), backend="fxdp", options=options | {"backend": "eager"}
    )
    with pytest.raises(fxdp.ProofError, match="FXD401 no-rule: stats"):
        step(torch.randn(N, D))


def torchs_own(net, x):
    """Made from nothing, from numbers and from shared tensors, by torch."""
    weight = torch.hann_window(D) + torch.logspace(0, 1, D) + torch.tensor([1.0, 2.0, 3.0, 4.0])
    return net.fc(x) * weight * torch.trapezoid(net.fc.bias.detach().sort()[0])


def test_ops_of_torch_need_no_rule_where_nothing_holds_samples() -> None:
    assert fxdp.prove(Net(torchs_own), torch.randn(N, D))


def test_with_a_rule_a_foreign_op_is_shared_and_the_rule_is_an_assumption() -> None:
    rules = fxdp.RULES | {
        STATS.default: fxdp.Rule(fxdp.shared),
        TWO.default: fxdp.Rule(fxdp.shared),
    }
    for body in (no_operand, no_operand_of_many):
        certificate = fxdp.prove(Net(body), torch.randn(N, D), rules=rules)
        assert "in rules=" in str(certificate.obligations[0].by)


def test_that_rule_refuses_samples() -> None:
    rules = fxdp.RULES | {OF_SHARED.default: fxdp.Rule(fxdp.shared)}
    model = Net(lambda net, x: net.fc(x) + OF_SHARED(x))
    with pytest.raises(fxdp.ProofError, match="samples of the batch together"):
        fxdp.prove(model, torch.randn(N, D), rules=rules)


# The runner.


def empty() -> GraphModule:
    """A graph that no pass gets to see."""
    return GraphModule(nn.Module(), Graph())


def test_an_option_that_no_pass_takes_is_an_error() -> None:
    with pytest.raises(TypeError, match="no pass takes clip: tidy, prove, .* lower take clipping"):
        run(empty(), PASSES, clip="flat", clipping=fxdp.clipping.Flat(), terms=1)


def test_it_is_one_before_a_pass_has_run() -> None:
    ran: list[str] = []

    def first(gm: Any) -> Any:
        ran.append("first")
        return gm

    with pytest.raises(TypeError, match="no pass takes secure"):
        run(empty(), (Pass(first),), secure=True)
    assert not ran


@pytest.mark.parametrize(("step", "option"), [(weigh, "clipping"), (noise, "terms")])
def test_what_a_release_rests_on_has_no_default_in_a_pass(step: Any, option: str) -> None:
    assert inspect.signature(step).parameters[option].default is inspect.Parameter.empty
    (own,) = (p for p in PASSES if p.run is step)
    with pytest.raises(TypeError, match=f"missing .*'{option}'"):
        run(empty(), (own,))


def test_a_pass_names_its_options_and_no_others() -> None:
    with pytest.raises(TypeError, match="weigh takes the options \\('clipping',\\), and is given"):
        Pass(weigh)
    with pytest.raises(TypeError, match="weigh takes the options"):
        Pass(weigh, options=("clipping", "terms"))


# The cache of times.

HERE = Path(fxdp.__file__).parent
OUTER = forms.Outer(torch.randn(4, 6, 3), torch.randn(4, 6, 9))
TABLE = torch.randint(9, (4, 6)), torch.randn(4, 6, 3)
SPEC = Spec((4, 2, 2), (1,), (0,), (1,), 1)
FORMS: list[Any] = [
    OUTER, forms.Scatter(*TABLE, 9),
    forms.Conv(torch.randn(4, 1, 2, 8), torch.randn(4, 1, 4, 7), SPEC),
    forms.Reduce(torch.randn(4, 6, 3)), forms.Tied(OUTER.b, torch.randn(4, 6, 3), *TABLE),
]  # fmt: skip


@contextmanager
def files_that_run() -> Iterator[set[Path]]:
    """The files of fxdp of which a function is called meanwhile."""
    found: set[Path] = set()

    def look(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(HERE)):
            found.add(Path(frame.f_code.co_filename))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield found
    finally:
        sys.setprofile(before)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: type(f).__name__)
def test_times_go_by_every_file_whose_code_was_timed(form: Any) -> None:
    """Or a kernel that was rewritten would be chosen by the times of the old one."""
    strategies = form.strategies
    with files_that_run() as found:
        trials.run(form, strategies)
    assert found <= set(timings.sources())
    assert HERE / "forms" / f"{type(form).__name__.lower()}.py" in found


def test_times_of_layouts_do_too() -> None:
    aten = torch.ops.aten
    with files_that_run() as found:
        layout.measured(aten.relu.default, [torch.randn(2, 3, 4, 4)], int)
    assert HERE / "autotune" / "layout.py" in found <= set(timings.sources())


def test_every_file_that_defines_an_op_counts() -> None:
    """Forms call ops by their names in torch. Marks are never run."""
    known = [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("fxdp::")]
    marked = {
        f"fxdp::{name}" for name in ("samples", "ragged", "owned", "shown", "release", "seed")
    }
    schemas = [s for s in known if not s.name.startswith("fxdp::test_") and s.name not in marked]
    text = {p: p.read_text() for p in timings.sources()}
    for schema in schemas:
        name = schema.name.removeprefix("fxdp::")
        assert any(f'"{name}"' in t or f'"fxdp::{name}"' in t for t in text.values()), name


def test_other_code_other_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = [tmp_path / "_".join(p.relative_to(HERE).parts) for p in timings.sources()]
    for path, copy in zip(timings.sources(), copies, strict=True):
        copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(timings, "sources", lambda: copies)
    stores = set()
    for path in [None, *copies]:
        if path is not None:
            path.write_text(path.read_text() + "\n")
        timings.store.cache_clear()
        stores.add(timings.store())
    timings.store.cache_clear()
    assert len(stores) == 1 + len(copies)
