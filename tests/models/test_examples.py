"""The examples of tools/examples, run as they are, but small; their gradients by the oracle."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.keywords import grouped
from tests.oracle import clipped_sum, compare, per_sample

pytest.importorskip("sklearn")
pytestmark = [
    # Of these packages' own making.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`"),
]
DELTA, EPSILON = 1e-5, 3.0
QUICK = {"backend": "eager", "accountant": "rdp"}
X, Y = torch.randn(5, 1, 8, 8, generator=torch.manual_seed(1)), torch.arange(5)
IDS = torch.randint(2, 32, (5, 12), generator=torch.manual_seed(2))
SENTENCES = {
    "input_ids": IDS,
    "attention_mask": torch.ones_like(IDS),
    "labels": torch.arange(5) % 2,
}


def example(name: str, *needed: str) -> Any:
    for package in needed:
        pytest.importorskip(package)
    return importlib.import_module(f"tools.examples.{name}")


def within_budget(private: fxdp.PrivateModule, steps: int) -> None:
    """All steps were counted, and spent the budget but for what calibration leaves."""
    assert private.releases == steps
    assert EPSILON - 0.05 < private.privacy_spent(DELTA) <= EPSILON


def without_noise(model: nn.Module, **options: Any) -> fxdp.PrivateModule:
    return fxdp.compile(
        model,
        max_grad_norm=0.5,
        noise_multiplier=0.0,
        expected_batch_size=5.0,
        backend="eager",
        **grouped(options),
    )


def same(model: nn.Module, want: dict[str, Tensor]) -> None:
    got = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == want.keys()
    for name, g in got.items():
        torch.testing.assert_close(g, want[name], rtol=1e-4, atol=1e-6, msg=name)


def still(model: nn.Module) -> nn.Module:
    """Without dropout, in float64."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.double()


@pytest.mark.parametrize("whole", [True, False])
def test_autocast(whole: bool) -> None:
    """Its gradients are held against the oracle in tests/models/test_half.py."""
    private = example("autocast").main(1, 256, whole, **QUICK)
    within_budget(private, 2)
    assert private.last_norms.dtype == torch.float32
    wanted = torch.bfloat16 if whole else torch.float32
    assert {p.grad.dtype for p in private.parameters()} == {wanted}
    values = [n.meta.get("val") for n in private.graph_module.graph.nodes]
    assert torch.bfloat16 in {v.dtype for v in values if isinstance(v, Tensor)}


class TestOptimizers:
    @pytest.mark.parametrize("name", ["sgd", "fused", "foreach"])
    def test_run(self, name: str) -> None:
        module = example("optimizers")
        private, schedule = module.main(getattr(module, name), 1, 384, **QUICK)
        within_budget(private, 3)
        assert schedule.last_epoch == 3
        assert len(schedule.optimizer.param_groups) == (2 if name == "sgd" else 1)

    def test_pieces_are_one_batch(self) -> None:
        """Three calls, in pieces of two: the gradient of the whole, and its steps."""
        module = example("optimizers")
        model = module.network()
        each, _ = per_sample(model, F.cross_entropy, (X, Y), {}, 5)
        private = without_noise(model, loss_fn=F.cross_entropy, microbatch_size=2)
        with private.accumulate():
            for part in (slice(0, 3), slice(3, 3), slice(3, 5)):
                private(X[part], Y[part]).backward()
        same(model, clipped_sum(each, 0.5, 5.0))
        before = [p.detach().clone() for p in model.parameters()]
        module.sgd(model).step()
        for (name, p), was in zip(model.named_parameters(), before, strict=True):
            lr = 0.5 if name.startswith("1.") else 0.1
            torch.testing.assert_close(p.detach(), was - lr * p.grad)


class TestParametrized:
    def test_run(self) -> None:
        private = example("parametrized").main(1, 256, **QUICK)
        within_budget(private, 2)
        q = private.get_submodule("3").weight
        torch.testing.assert_close(q @ q.T, torch.eye(32), rtol=0.0, atol=1e-4)

    def test_gradients(self, double: None) -> None:
        model = example("parametrized").network()
        compare(model, X.double(), Y, loss_fn=F.cross_entropy)


class TestLora:
    def test_only_adapters_train(self) -> None:
        module = example("lora", "transformers", "peft")
        torch.manual_seed(0)
        before = module.network().state_dict()
        private = module.main(1, 128, **QUICK)
        within_budget(private, 2)
        moved = {k for k, v in private.state_dict().items() if not torch.equal(v, before[k])}
        assert moved == {k for k, p in private.named_parameters() if p.requires_grad}
        assert all("lora_" in k or "classifier" in k for k in moved)
        assert any("lora_A" in k for k in moved)

    def test_gradients(self, double: None) -> None:
        model = still(example("lora", "transformers", "peft").network())
        for name, p in model.named_parameters():
            if "lora_B" in name:  # which begins at 0, where A has no gradient
                nn.init.normal_(p)
        compare(model, **SENTENCES)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """The Trainer's example, once: its module, its trainer, its folder."""
    module = example("trainer", "transformers", "accelerate")
    folder = tmp_path_factory.mktemp("trainer")
    return module, module.main(str(folder), 2, 128, **QUICK), folder


class Scored(nn.Module):
    """A model that returns its loss, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.linear(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_a_plain_trainer_of_a_private_module(tmp_path: Path) -> None:
    """It is not told how many items the batch has, and each of its steps is a release."""
    transformers = pytest.importorskip("transformers")
    private = without_noise(Scored())
    told = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=5, max_steps=2, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, remove_unused_columns=False, max_grad_norm=0,
    )  # fmt: skip
    rows = [{"x": torch.randn(4), "labels": torch.tensor(i % 2)} for i in range(10)]
    transformers.Trainer(model=private, args=told, train_dataset=rows).train()
    assert private.releases == 2


class TestTrainer:
    def test_accounting_and_evaluation(self, run: Any) -> None:
        _, trainer, _ = run
        within_budget(trainer.private, 4)
        assert trainer.state.global_step == 4
        told = trainer.state.log_history
        assert sum("eval_loss" in entry for entry in told) == 2
        assert max(entry["epsilon"] for entry in told) <= EPSILON
        with pytest.raises((fxdp.BudgetExhausted, fxdp.StepError)):  # nor was it drawn
            trainer.training_step(trainer.model, SENTENCES)
        with pytest.raises(ValueError, match="load_checkpoint"):
            trainer.train(resume_from_checkpoint=True)

    def test_checkpoints(self, run: Any) -> None:
        """The plain model reads the weights; the ledger is saved with them."""
        module, trainer, folder = run
        last = folder / "checkpoint-4"
        plain = type(trainer.model).from_pretrained(last)
        for name, value in plain.state_dict().items():
            assert torch.equal(value, trainer.model.state_dict()[name]), name
        other = without_noise(module.network(), accountant="rdp")
        other.load_privacy_state_dict(torch.load(last / "privacy.pt", weights_only=True))
        assert other.releases == 4

    def test_gradients(self, run: Any) -> None:
        """What the Trainer's step leaves in p.grad, nothing scaled, for the model it saves."""
        _, trainer, _ = run
        model = trainer.model
        for layer in model.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        each, _ = per_sample(model, None, (), SENTENCES, 5)
        model.zero_grad()
        used, trainer.private = trainer.private, without_noise(model)
        trainer.training_step(model, dict(SENTENCES))
        trainer.private = used
        same(model, clipped_sum(each, 0.5, 5.0))

    def test_what_would_change_gradients_is_refused(self, run: Any, tmp_path: Path) -> None:
        module, trainer, _ = run
        args = type(trainer.args)(str(tmp_path), use_cpu=True, report_to="none")
        with pytest.raises(ValueError, match="max_grad_norm=0"):
            module.PrivateTrainer(
                model=trainer.model, args=args, epsilon=1.0, delta=DELTA, max_grad_norm=1.0
            )


class TestLightning:
    def test_run(self, tmp_path: Path) -> None:
        module = example("lightning_module", "lightning")
        trainer, model = module.main(str(tmp_path), 2, 256, **QUICK)
        within_budget(model.private, 4)
        assert trainer.callback_metrics["accuracy"] > 0
        assert float(trainer.callback_metrics["epsilon"]) <= EPSILON
        (saved,) = tmp_path.rglob("*.ckpt")
        state = torch.load(saved, weights_only=True)
        plain = {k.removeprefix("network."): v for k, v in state["state_dict"].items()}
        assert plain.keys() == model.network.state_dict().keys()
        for name, value in model.network.state_dict().items():
            assert torch.equal(plain[name], value), name
        again = module.Digits.load_from_checkpoint(
            saved, loader=trainer.train_dataloader, epochs=2, **QUICK
        )
        assert again.private.releases == 4

    def test_gradients(self) -> None:
        """Of the module's own step, with Lightning's modes."""
        module = example("lightning_module", "lightning")
        loader = fxdp.data.private_loader(importlib.import_module("tools.examples.digits").load(50),
                                          sample_rate=0.1)  # fmt: skip
        model = module.Digits(loader, 1, **QUICK)
        model.network[2].p = 0.0
        assert [k for k, _ in model.named_parameters()] == [
            f"network.{k}" for k, _ in model.network.named_parameters()
        ]
        model.hidden = [without_noise(model.network, loss_fn=F.cross_entropy)]
        each, _ = per_sample(model.network, F.cross_entropy, (X, Y), {}, 5)
        model.training_step((X, Y), 0).backward()
        same(model.network, clipped_sum(each, 0.5, 5.0))

    @pytest.mark.parametrize("option", [{"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}])
    def test_what_would_change_gradients_is_refused(self, option: dict[str, Any]) -> None:
        module = example("lightning_module", "lightning")
        loader = fxdp.data.private_loader(
            importlib.import_module("tools.examples.digits").load(50), sample_rate=0.2
        )
        trainer = module.L.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, **option,
        )  # fmt: skip
        with pytest.raises(ValueError, match="leave gradient_clip_val"):
            trainer.fit(module.Digits(loader, 1, **QUICK), loader)
