"""How a step of a model is captured, once, and run.

Between what the user passes and the compiled graph: arguments are checked and flattened, batches
too small for torch.compile are padded, and a model that cannot be captured with symbolic sizes is
captured for each size.
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fxdp.backend.delivery import Ran, refuse_transforms
from fxdp.backend.options import Scales, checked_scales
from fxdp.backend.partition import Proven, compiled_step
from fxdp.backend.settings import Record, Settings
from fxdp.capture.errors import capture_errors
from fxdp.capture.hugging import set_up
from fxdp.capture.inputs import BatchDims, Inputs, argument_names, gather
from fxdp.capture.naming import module_behind, parameters
from fxdp.capture.pairs import pair_axis
from fxdp.capture.segments import SPARE, Role
from fxdp.capture.settings import capture_settings
from fxdp.capture.step import own_step
from fxdp.capture.symbolic_batch import with_symbolic_batch
from fxdp.diagnostics.diagnostic import ProofError
from fxdp.diagnostics.errors import NotCompiled, StepError
from fxdp.graph.passes import Pass
from fxdp.graph.study import Seen, Study
from fxdp.mechanism.deviation import check_deviation
from fxdp.mechanism.keystream import no_key
from fxdp.mechanism.run_key import RunKey
from fxdp.module.state import State
from fxdp.pipeline import PASSES
from fxdp.placement import Owner, Pointer, Segment, Shard, Starts
from fxdp.status import line, say
from fxdp.torch_internals import pytree, unsafe_stance


class Compiled:
    """A step, and what its compilations and runs leave behind.

    Attributes:
        call: the step.
    """

    def __init__(self, make: Callable[[], Callable[..., Any]], record: Record) -> None:
        self._make, self.record = make, record
        self.call = make()

    def renew(self) -> None:
        """Have it compiled again: torch remembers of a function that it could not compile it."""
        self.call = self._make()


class Stepper:
    """The steps of one model.

    Attributes:
        record: what compilation and steps leave behind.
        step: the compiled step.
        earlier: the same for pieces of a batch that others follow, which may keep less.
        dynamic: whether sizes that change between steps become symbols.
        rows: the batch size that code is made for, and is best at; the first step's, if None.
        key: of the last step with noise; a secret.
        keys: of all of them, with the numbers of the parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor] | None,
        settings: Settings,
        batch_dims: BatchDims,
    ) -> None:
        self.model, self.loss_fn = model, loss_fn
        self.settings, self.batch_dims = settings, batch_dims
        self.keys = RunKey(settings.secure)
        self.keys.know(parameters(model, loss_fn))
        self.record = Record(keys=self.keys)
        self.dynamic = True
        self.rows: int | None = None
        self.key = no_key()
        self.given: tuple[Any, list[Tensor]] = None, []
        self.everyone = torch.ones(0, dtype=torch.bool)
        self.dtypes: set[torch.dtype] = set()
        self.step = self.earlier = self.another(settings, self.record)
        if settings.checkpoint == "except_last":
            self.earlier = self.another(replace(settings, checkpoint="always"), self.record)

    def another(
        self, settings: Settings, record: Record, passes: tuple[Pass, ...] = PASSES
    ) -> Compiled:
        """Another step of the same model."""

        def make() -> Callable[..., Any]:
            step = own_step(self.model, self.loss_fn, settings.reduction)
            return compiled_step(step, settings, record, passes, self.capturing)

        return Compiled(make, record)

    def capturing(self) -> contextlib.AbstractContextManager[None]:
        """What is set while torch captures a step, and at no other time."""
        return capture_settings(self.dynamic)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that a step trains, those of a loss that is a module included."""
        named = parameters(self.model, self.loss_fn)
        return {name: p for name, p in named.items() if p.requires_grad}

    def state(self) -> State:
        """What the model, and a loss that is a module, may write to."""
        loss = module_behind(self.loss_fn)
        return State.of(nn.ModuleList([self.model] + ([] if loss is None else [loss])))

    def gathered(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """The arguments of a step, flattened and checked.

        Raises:
            TypeError, ValueError: they do not fit together.
        """
        has_target = self.loss_fn is not None
        return gather(self.model, args, kwargs, self.batch_dims, has_target)

    def plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model as it is; with a target, its loss."""
        wanted = argument_names(self.model, args, kwargs, has_target=False)
        beyond = wanted[-1:] == [f"args[{len(args) - 1}]"]  # one more than the model takes
        if self.loss_fn is not None and ("target" in kwargs or beyond):
            *own, target = (*args, kwargs.pop("target")) if "target" in kwargs else args
            return self.loss_fn(self.model(*own, **kwargs), target)
        return self.model(*args, **kwargs)

    def prepared(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], mask: Any
    ) -> tuple[Inputs, Tensor, int]:
        """Checked arguments with at least two rows, the mask of the real ones, their number."""
        inputs = self.gathered(args, kwargs)
        if mask is None:
            mask = self.nobody_masked(inputs.size, inputs.device)
        if not isinstance(mask, Tensor):
            raise TypeError(f"sample_mask must be a bool tensor, not {type(mask).__name__}")
        if mask.dtype != torch.bool or tuple(mask.shape) != (inputs.size,):
            raise ValueError(
                f"sample_mask must be bool of shape [{inputs.size}], not {mask.dtype} of shape "
                f"{list(mask.shape)}"
            )
        size, wanted = inputs.size, inputs.least
        if size < wanted:
            mask = torch.cat([mask, mask.new_zeros(wanted - size)])
            inputs = inputs.resized(wanted)
        return inputs, mask, size

    def nobody_masked(self, size: int, device: torch.device) -> Tensor:
        """bool [size], all True: the last step's, as long as that fits and nobody wrote to it."""
        mask = self.everyone
        fits = mask.shape == (size,) and mask.device == device and type(mask) is Tensor
        if not fits or mask._version != 0:
            with torch.inference_mode(False):
                mask = self.everyone = torch.ones(size, dtype=torch.bool, device=device)
        return mask

    def captured(
        self, step: Compiled, inputs: Inputs, mask: Tensor, scales: Scales, released: int = 0
    ) -> tuple[Any, Ran]:
        """Run a compiled step on checked inputs.

        Args:
            released: how many releases the ledger knows of.

        Returns:
            What the step returns, a loss or output first, without gradients; and the step, to be
            differentiated.

        Raises:
            NotCompiled: torch ran something else.
        """
        scales = checked_scales(*scales)
        refuse_transforms()
        self.check_noise(scales)
        numbers = self.numbers_on(mask.device, scales)
        # Without noise nothing is drawn, and no number is used up.
        key = self.keys.next(released) if scales[1] > 0 else no_key()
        self.key = key if scales[1] > 0 else self.key
        if self.rows is None and step in (self.step, self.earlier):
            self.rows = inputs.size
        leaves, mask, owners = with_symbolic_batch(inputs, mask, self.rows)
        dims = tuple(d.parts if isinstance(d, Role) else d for d in inputs.dims)
        given = ((*numbers, key), mask, leaves, dims, inputs.spec, owners)
        if unsafe_stance():
            raise NotCompiled("a stance without guards may run the graph of another batch")
        step.record.ran, step.record.extras = None, {}
        try:
            _, others = self.traced(functools.partial(step.call, *given), inputs)
            ran = step.record.taken()
        except NotCompiled:
            step.renew()
            raise
        if {leaf.dtype for leaf in ran.leaves} != self.dtypes:
            self.dtypes = set()  # of the step before, and not of this one
            self.check_noise(scales)
        return others, ran

    def check_noise(self, scales: Scales) -> None:
        """Refuse noise that the parameters' dtypes do not hold: those of the step before, for
        which all parameters need not be looked at, and if those do not either, those of now.

        Raises:
            ValueError: as `check_deviation`.
        """
        if self.dtypes:
            with contextlib.suppress(ValueError):
                return check_deviation(*scales, self.dtypes)
        self.dtypes = {p.dtype for p in self.trained().values()}
        return check_deviation(*scales, self.dtypes)

    def numbers_on(self, device: torch.device, scales: Scales) -> list[Tensor]:
        """A step's scales, each 0-d, and nobody else's: what writes over them spoils no other step.

        They are copies of what the step before was given, as long as that holds. New ones come from
        the host, which waits until a GPU has done all before it.
        """
        before, given = self.given
        if before != (device, scales):
            with torch.inference_mode(False):
                given = [*torch.tensor(scales, dtype=torch.float64, device=device)]
            self.given = (device, scales), given
        return [number.clone() for number in given]

    def without_padding(self, others: Any, size: int, samples: int) -> Any:
        """What a model returned apart from its loss, with the rows of the first `size` samples.

        Args:
            samples: how many there are with the padding.
        """
        places = iter(self.study().of(Seen).shown)

        def own_rows(x: Tensor) -> Tensor:
            at = next(places)
            if isinstance(at, Segment) and at.inner == 1:
                return x.narrow(at.dim, 0, x.shape[at.dim] - SPARE)
            if isinstance(at, Segment | Owner | Pointer):
                raise StepError(
                    "rows of samples are returned in a layout that padding cannot leave"
                )
            if not isinstance(at, Shard | Starts):
                return x
            at = at if isinstance(at, Shard) else Shard(0)
            apart = x.unflatten(at.dim, (-1, samples, int(at.inner)))
            return apart.narrow(at.dim + 1, 0, size).flatten(at.dim, at.dim + 2)

        return pytree.tree_map_only(Tensor, own_rows, others)

    def traced(self, call: Callable[[], Any], inputs: Inputs) -> Any:
        """Run a step, capturing it first where it has to be.

        Sizes that change between steps become symbols, like the batch size. Where the proof
        cannot follow a model through those, each size gets a graph of its own from then on.
        """
        compiled_before = self.record.compilations > 0
        pairs = functools.partial(self.pair_axis, inputs)
        with line():
            if not compiled_before:
                say("capturing the model")
                set_up(self.model)
            try:
                with capture_errors(self.model, pairs):
                    return call()
            except ProofError as error:
                if isinstance(error, Proven) or not (self.dynamic and compiled_before):
                    raise
            self.dynamic = False
            with capture_errors(self.model, pairs):
                return call()

    def pair_axis(self, inputs: Inputs) -> str | None:
        """A second axis of samples among the arguments of a step, in words."""
        return pair_axis(self.model, self.loss_fn, inputs, self.settings.reduction)

    def study(self) -> Study:
        return self.record.compiled()
