"""Models of torchvision and timm, if those are installed."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from tools.census.subject import Make, N, Step

# A GroupNorm in place of each batch norm, so that there is something to prove.
CLASSES = 3


def classified(make: Any, *shape: int) -> Make:
    """A classifier of images or videos."""

    def step() -> Step:
        model = grouped(make())
        return Step(model, (torch.randn(N, *shape), torch.randint(CLASSES, (N,))), loss_fn=loss)

    return step


def loss(out: Any, target: torch.Tensor) -> torch.Tensor:
    """Of the first result, for models with more than one."""
    out = out.get("out") if isinstance(out, dict) else out[0] if isinstance(out, tuple) else out
    out = out.flatten(2).mean(2) if out.dim() > 2 else out
    return F.cross_entropy(out, target)


def grouped(model: torch.nn.Module) -> torch.nn.Module:
    """The model with norms over channels where it has norms over the batch."""
    for module in model.modules():
        for name, child in list(module.named_children()):
            if type(child) in (torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.BatchNorm1d):
                setattr(module, name, torch.nn.GroupNorm(1, child.num_features))
    return model


def of_torchvision() -> Mapping[str, Make]:
    import torchvision

    found: dict[str, Make] = {}
    for name in torchvision.models.list_models():
        if "." in name and name.split(".")[0] not in ("video", "segmentation"):
            continue
        if name.startswith(("quantized", "detection")) or "raft" in name or "rcnn" in name:
            continue
        video = "video" in name or name[:3] in ("mc3", "r3d", "r2p", "s3d", "mvi", "swi")
        video = video and not name.startswith("swin_")
        small = {"r3d_18", "mc3_18", "r2plus1d_18"}
        size = 112 if name in small else 224
        shape = (
            (3, 16 if not name.startswith("s3d") else 14, size, size) if video else (3, 224, 224)
        )

        def make(name: str = name) -> torch.nn.Module:
            with torch.device("meta"):
                settings = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
                weights = {"weights_backbone": None} if "." in name or "seg" in name else {}
                return torchvision.models.get_model(
                    name, weights=None, num_classes=CLASSES, **settings, **weights
                )

        found[name] = on_meta(make, shape)
    return found


def on_meta(make: Any, shape: tuple[int, ...]) -> Make:
    """A large model: neither weights nor images have data."""

    def step() -> Step:
        model = grouped(make()).to("meta")
        x, y = torch.empty(N, *shape), torch.empty(N, dtype=torch.int64)
        return Step(model, (x.to("meta"), y.to("meta")), loss_fn=loss)

    return step


def of_timm() -> Mapping[str, Make]:
    import timm

    families: dict[str, str] = {}
    for module in timm.list_modules():
        # The smallest of a module by its name's length, which is a good guess.
        names = sorted(timm.list_models(module=module), key=lambda n: ("test_" not in n, len(n), n))
        for name in names[:1]:
            families[f"{module} {name}"] = name

    def make(name: str) -> torch.nn.Module:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, num_classes=CLASSES)

    def shape(name: str) -> tuple[int, ...]:
        known = timm.models.get_pretrained_cfg(name)
        return known.input_size if known is not None else (3, 224, 224)

    return {label: on_meta(lambda n=name: make(n), shape(name)) for label, name in families.items()}
