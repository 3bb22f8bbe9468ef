"""The steps of recurrent layers as compiled code for a CPU (recurrent.cpp), one call a layer.

Half of what a step of the loop takes is for ten small ops on gates, and its product is too small
for a library to be at its best. As with all generated code nothing of it is used before
it agreed with what it stands for, `fxdp.kernels.recurrent_loops`: on rows of every magnitude, of
infinities and of NaN, which have to come out where the loops have them, for a sample that is not
finite must be found. Where there is no compiler, the loops run.

Letters: T steps, N rows, H width.
"""

import ctypes
import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxdp.kernels import recurrent_loops as loops
from fxdp.kernels.native_code import built, machine
from fxdp.kernels.precision import full_precision
from fxdp.torch_internals import disable_current_modes

SOURCE = Path(__file__).with_name("recurrent.cpp")
NAMES = {torch.float32: "float", torch.float64: "double"}
LAYERS = ("lstm", "lstm_backward", "gru", "gru_backward", "rnn", "rnn_backward")
PADDING = 32  # columns that a packed weight may have more, as in recurrent.cpp
# Relative to the largest number of a row.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
# T, N, H: of one; of less than a vector and more; of gates beyond those that are packed at once.
TRIED = ((1, 1, 1), (3, 2, 7), (2, 13, 16), (2, 100, 10), (2, 7, 67), (2, 9, 130))
Operand = tuple[Tensor, tuple[int, ...]]  # and the shape it has to have


class Native:
    """The compiled steps for numbers of a dtype; its methods are those of the loops.

    Args:
        path: of the shared library.

    Raises:
        OSError, AttributeError: it is none, or another.
    """

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        library = ctypes.CDLL(str(path))
        self._dtype = dtype
        self._layers = {name: getattr(library, f"fxdp_{name}") for name in LAYERS}
        sizes = [*[ctypes.c_int64] * 3, *[ctypes.c_int] * 2]
        for function in self._layers.values():
            function.argtypes, function.restype = [ctypes.c_void_p, *sizes], None

    def _run(
        self, name: str, sizes: tuple[int, int, int], operands: Sequence[Operand],
        results: Sequence[Tensor], w: Tensor, relu: bool = False,
    ) -> None:  # fmt: skip
        """Write the results of a layer.

        Args:
            sizes: T, N, H.
            results: contiguous.
            w: the weight from state to gates, for which there has to be room.

        Raises:
            RuntimeError: an operand has another shape.
        """
        steps, rows, size = sizes
        room = w.new_empty(len(w) * (size + PADDING))
        whole = [x.expand(shape).contiguous() for x, shape in operands]
        held = [*whole, *results, room]  # as long as the code runs
        places = (ctypes.c_void_p * len(held))(*(x.data_ptr() for x in held))
        threads = max(1, min(torch.get_num_threads(), rows))
        self._layers[name](places, steps, rows, size, threads, relu)

    def lstm(
        self, x: Tensor, h: Tensor, c: Tensor, w: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        steps, n, size = len(x), *h.shape
        states, gates = x.new_empty(steps, n, size), x.new_empty(steps, n, 4 * size)
        cells, of_state = x.new_empty(steps, 2, n, size), (n, size)
        operands = [(x, (*gates.shape,)), (h, of_state), (c, of_state), (w, (4 * size, size))]
        self._run("lstm", (steps, n, size), operands, [states, gates, cells], w)
        return states, (cells[-1, 0] if steps else c).clone(), gates, cells

    def lstm_backward(
        self, g_states: Tensor, g_last: Tensor, gates: Tensor, cells: Tensor, c: Tensor, w: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        steps, n, size = g_states.shape
        opened, of_state = gates.new_empty(steps, n, 4 * size), (n, size)
        g_h, g_c = g_last.new_zeros(of_state), g_last.new_empty(of_state).copy_(g_last)
        operands = [
            (g_states, (steps, n, size)), (gates, (*opened.shape,)), (cells, (steps, 2, n, size)),
            (c, of_state), (w, (4 * size, size)),
        ]  # fmt: skip
        self._run("lstm_backward", (steps, n, size), operands, [opened, g_h, g_c], w)
        return opened, g_h, g_c

    def gru(self, x: Tensor, h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        steps, n, size = len(x), *h.shape
        states, kept = x.new_empty(steps, n, size), x.new_empty(steps, 4, n, size)
        operands = [
            (x, (steps, n, 3 * size)), (h, (n, size)), (w, (3 * size, size)), (b, (3 * size,)),
        ]  # fmt: skip
        self._run("gru", (steps, n, size), operands, [states, kept], w)
        return states, kept

    def gru_backward(
        self, g_states: Tensor, states: Tensor, kept: Tensor, h: Tensor, w: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        steps, n, size = g_states.shape
        given, own = (g_states.new_empty(steps, n, 3 * size) for _ in range(2))
        g_h, of_states = h.new_zeros(n, size), (steps, n, size)
        operands = [
            (g_states, of_states), (states, of_states), (kept, (steps, 4, n, size)),
            (h, (n, size)), (w, (3 * size, size)),
        ]  # fmt: skip
        self._run("gru_backward", (steps, n, size), operands, [given, own, g_h], w)
        return given, own, g_h

    def rnn(self, x: Tensor, h: Tensor, w: Tensor, relu: bool) -> Tensor:
        steps, n, size = len(x), *h.shape
        states = x.new_empty(steps, n, size)
        operands = [(x, (steps, n, size)), (h, (n, size)), (w, (size, size))]
        self._run("rnn", (steps, n, size), operands, [states], w, relu)
        return states

    def rnn_backward(
        self, g_states: Tensor, states: Tensor, w: Tensor, relu: bool
    ) -> tuple[Tensor, Tensor]:
        steps, n, size = g_states.shape
        g, g_h = states.new_empty(steps, n, size), states.new_zeros(n, size)
        operands = [(x, (steps, n, size)) for x in (g_states, states)] + [(w, (size, size))]
        self._run("rnn_backward", (steps, n, size), operands, [g, g_h], w, relu)
        return g, g_h

    def trouble(self) -> str | None:
        """What it computes differently from the loops, if anything."""
        for sizes in TRIED:
            for name, operands in layers_of(sizes, self._dtype):
                got, want = getattr(self, name)(*operands), getattr(loops, name)(*operands)
                given = operands[0] if name.endswith("backward") else None
                if not agree(got, want, given):
                    return f"{name} of {sizes} in {self._dtype}"
        return None


def layers_of(
    sizes: tuple[int, int, int], dtype: torch.dtype
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Every layer, with operands; those of a backward one are what the loop forward gives.

    A third of the rows get numbers of all magnitudes, up to where sums of them would be too large,
    and a third such gradients; half begin at states of 0; and some hold a NaN or an infinity.
    """
    steps, n, size = sizes
    least, most = (-149, 100) if dtype == torch.float32 else (-1074, 1000)
    powers = torch.linspace(least, most, n, dtype=torch.float64, device="cpu").exp2()

    def spread(gates: int, third: int) -> Tensor:
        """[T, N, gates * H], of which some are not finite from a step on."""
        x = waves(steps, n, gates * size, dtype=dtype)
        x *= powers.where(rows(n) % 3 == third, 1).unsqueeze(1).to(dtype)
        for i, odd in enumerate((torch.nan, torch.inf, -torch.inf)):
            if n > 3 * i + 2:
                x[third % steps, 3 * i + 2, (third + i * size) % (gates * size)] = odd
        return x

    h, c = (waves(n, size, dtype=dtype) * (rows(n) % 2).unsqueeze(1) * k for k in (1, 3))
    g, last = spread(1, third=1), waves(n, size, dtype=dtype)
    w4, w3, w1 = (waves(k * size, size, dtype=dtype) / size for k in (4, 3, 1))
    operands = (spread(4, third=0), h, c, w4)
    yield "lstm", operands
    _, _, gates, cells = loops.lstm(*operands)
    yield "lstm_backward", (g, last, gates, cells, c, w4)
    operands = (spread(3, third=0), h, w3, waves(3 * size, dtype=dtype))
    yield "gru", operands
    yield "gru_backward", (g, *loops.gru(*operands), h, w3)
    for relu in (False, True):
        x = spread(1, third=0)
        yield "rnn", (x, h, w1, relu)
        yield "rnn_backward", (g, loops.rnn(x, h, w1, relu), w1, relu)


def rows(n: int) -> Tensor:
    return torch.arange(n, device="cpu")


def waves(*shape: int, dtype: torch.dtype) -> Tensor:
    """Numbers between -1 and 1 that look as if drawn, and are the same every time."""
    count = rows(torch.Size(shape).numel()).double() + len(shape)
    return ((count * 12.9898).sin() * 43758.5453).frac().view(shape).to(dtype)


def largest(x: Tensor) -> Tensor:
    """The largest finite number of each row, or 0."""
    return x.where(x.isfinite(), 0).abs().amax(-1, keepdim=True)


def agree(
    got: Tensor | tuple[Tensor, ...], want: Tensor | tuple[Tensor, ...], given: Tensor | None
) -> bool:
    """Are results alike, with NaN and infinities in the same places?

    Args:
        given: [T, N, H] for gradients: those of the states. What is left of them where a gate is
            all but shut or open, is a difference of numbers that were rounded.
    """
    if isinstance(got, tuple):
        return all(agree(x, y, given) for x, y in zip(got, want, strict=True))
    assert isinstance(want, Tensor)
    size = largest(want)
    if given is not None:
        size = torch.maximum(size, largest(given).amax(0))
    near = (got - want).abs() <= TOLERANCE[want.dtype] * size + torch.finfo(want.dtype).tiny
    alike = (got == want) | (got.isnan() & want.isnan())
    return bool(torch.where(want.isfinite(), near, alike).all())


@functools.cache
def native(dtype: torch.dtype) -> Native | None:
    """The compiled steps; None where they cannot be had, or compute something else.

    Warns once in the second case.
    """
    path = built(SOURCE, machine(), f"NUMBER={NAMES[dtype]}")
    if path is None:
        return None
    try:
        found = Native(path, dtype)
    except (OSError, AttributeError):  # half a file, or another's
        path.unlink(missing_ok=True)
        return None
    with disable_current_modes(), torch.no_grad(), full_precision():
        trouble = found.trouble()
    if trouble is not None:
        warnings.warn(
            f"fxdp: compiled recurrent layers differ from what they stand for ({trouble}); slower "
            "loops take their place",
            stacklevel=2,
        )
        return None
    return found


def native_for(*operands: Tensor) -> Native | None:
    """The compiled steps, if they take such operands."""
    dtype = operands[0].dtype
    if dtype in NAMES and all(x.dtype == dtype and x.device.type == "cpu" for x in operands):
        return native(dtype)
    return None
