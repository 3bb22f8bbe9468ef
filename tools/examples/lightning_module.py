"""Lightning, privately: a mixin for a LightningModule with automatic optimization.

The module stays what it was: Lightning saves, loads and evaluates it. In `training_step` the
private module over the same network makes the loss, and Lightning's own backward() the private
gradients. Lightning must not clip or accumulate as well (`Trainer(gradient_clip_val=...)`), and
must not replace the loader's sampler.
"""

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import fxdp
from fxdp.data import private_loader
from tools.examples import digits


class PrivateTraining:
    """For a LightningModule: `make_private` in `__init__`, `self.private(x, y)` in the step.

    Its checkpoints have the ledger; a run that goes on from one goes on with what was spent.
    """

    def make_private(
        self,
        network: nn.Module,
        loss_fn,
        loader,
        *,
        epochs,
        epsilon,
        delta,
        accountant="pld",
        **options,
    ):
        """Compile `network`; the noise is for all steps of `epochs` passes over the loader."""
        batches, self.delta = loader.batches, delta
        # A list hides it from nn.Module: its parameters are the network's, and are there once.
        self.hidden = [
            fxdp.compile(
                network,
                loss_fn=loss_fn,
                noise_multiplier=fxdp.privacy.calibrate(
                    epsilon, delta, batches.sampling, epochs * len(loader), accountant
                ),
                expected_batch_size=batches.expected_batch_size,
                accounting=fxdp.Accounting(batches, (epsilon, delta), accountant),
                **options,
            )
        ]

    @property
    def private(self) -> fxdp.PrivateModule:
        """The private module."""
        return self.hidden[0]

    def on_train_start(self) -> None:
        """Refuse what would change the private gradients, or release more often."""
        if self.trainer.gradient_clip_val or self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "leave gradient_clip_val and accumulate_grad_batches of the Trainer out: samples "
                "are clipped already, and microbatch_size= works in pieces"
            )

    def on_train_epoch_start(self) -> None:
        """Lightning sets training mode module by module, which the private one must learn of."""
        self.private.train()

    def on_train_batch_end(self, *args) -> None:
        """Show epsilon."""
        self.log("epsilon", self.private.privacy_spent(self.delta), prog_bar=True)

    def on_save_checkpoint(self, checkpoint) -> None:
        """What was spent goes with the weights."""
        checkpoint["privacy"] = self.private.privacy_state_dict()

    def on_load_checkpoint(self, checkpoint) -> None:
        """What was spent is not forgotten."""
        self.private.load_privacy_state_dict(checkpoint["privacy"])


class Digits(PrivateTraining, L.LightningModule):
    """A classifier of scans."""

    def __init__(self, loader, epochs: int, **options) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.Dropout(0.1), nn.ReLU(), nn.Linear(64, 10)
        )
        self.make_private(
            self.network, F.cross_entropy, loader, epochs=epochs, epsilon=3.0, delta=1e-5,
            max_grad_norm=1.0, **options,
        )  # fmt: skip

    def training_step(self, batch, index):
        """The loss, whose backward pass releases."""
        return self.private(*batch)

    def validation_step(self, batch, index) -> None:
        """As ever, with the network itself."""
        x, y = batch
        self.log("accuracy", (self.network(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        """Any optimizer."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


def main(folder: str | None = None, epochs: int = 3, samples: int = 1500, **options):
    """Train, and return Lightning's trainer and the module."""
    torch.manual_seed(0)
    data = digits.load()
    train = torch.utils.data.Subset(data, range(samples))
    loader = private_loader(DataLoader(train, batch_size=128))
    model = Digits(loader, epochs, **options)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, default_root_dir=folder,
        enable_checkpointing=folder is not None, enable_progress_bar=folder is None,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, loader, DataLoader(data, batch_size=256))
    print(f"epsilon {model.private.privacy_spent(1e-5):.2f}")
    return trainer, model


if __name__ == "__main__":
    main()
