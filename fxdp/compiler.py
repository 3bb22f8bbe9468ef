"""The pipeline, and `fxdp.compile`."""

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported, UserError
from torch.fx import GraphModule
from torch.fx.experimental import _config as shape_config
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError
from torch.utils import _pytree as pytree

from fxdp import facts
from fxdp.backend import Backend, Record, Settings, compile_marked
from fxdp.capture import Inputs, Step, capture_errors, capture_settings, gather
from fxdp.certificate import Certificate, certify
from fxdp.forms.batch import Strategy
from fxdp.graph_pass import Pass
from fxdp.ops import RULES
from fxdp.passes.clip import clip
from fxdp.passes.explain import explain
from fxdp.passes.localize import localize
from fxdp.passes.lower import lower
from fxdp.passes.measure import measure
from fxdp.passes.noise import noise
from fxdp.passes.plan import plan
from fxdp.passes.prove import prove
from fxdp.passes.tidy import tidy
from fxdp.report import Report
from fxdp.rules import Table
