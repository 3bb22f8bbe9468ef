"""Hugging Face's Trainer, privately: two methods of it are overridden.

The Trainer keeps its own model, which it saves and evaluates; the private module over the same
parameters makes the gradients. Anything else a Trainer does to gradients must be off: clipping (the
samples' are clipped already), accumulation (use `microbatch_size`), and averaging over tokens of
the batch, which are private.
"""

import tempfile

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

import fxdp
from fxdp.data import private_loader
from tools.examples.text import LENGTH, WORDS, Sentences


class SaveLedger(TrainerCallback):
    """Saves the ledger with each checkpoint; a run that goes on must load it."""

    def __init__(self, private: fxdp.PrivateModule) -> None:
        self.private = private

    def on_save(self, args, state, control, **kwargs):
        folder = f"{args.output_dir}/checkpoint-{state.global_step}"
        torch.save(self.private.privacy_state_dict(), f"{folder}/privacy.pt")


class PrivateTrainer(Trainer):
    """A Trainer whose gradients are private; for models that return their loss.

    Args:
        epsilon, delta, max_grad_norm: the budget, for all of args.num_train_epochs; and the bound.
        accountant, options: more of `fxdp.compile`'s.
    """

    def __init__(
        self, *, epsilon, delta, max_grad_norm, accountant="pld", options=None, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        args = self.args
        if args.max_grad_norm or args.gradient_accumulation_steps != 1 or args.max_steps > 0:
            raise ValueError(
                "TrainingArguments: set max_grad_norm=0, gradient_accumulation_steps=1 and "
                "num_train_epochs; samples are clipped, and microbatch_size= makes pieces"
            )
        self.delta = delta
        # Otherwise the Trainer tells the model how many tokens the batch has, and divides by it.
        self.model_accepts_loss_kwargs = False
        plain = super().get_train_dataloader().base_dataloader
        self.loader = private_loader(
            torch.utils.data.DataLoader(
                self.train_dataset, args.train_batch_size, collate_fn=plain.collate_fn
            )
        )
        batches, steps = self.loader.batches, round(args.num_train_epochs * len(self.loader))
        self.private = fxdp.compile(
            self.model,
            max_grad_norm=max_grad_norm,
            noise_multiplier=fxdp.privacy.calibrate(
                epsilon, delta, batches.sampling, steps, accountant
            ),
            expected_batch_size=batches.expected_batch_size,
            accounting=fxdp.Accounting(batches, (epsilon, delta), accountant),
            **(options or {}),
        )
        self.add_callback(SaveLedger(self.private))

    def train(self, resume_from_checkpoint=None, **kwargs):
        """All epochs, from the beginning.

        Raises:
            ValueError: a checkpoint to go on with; the Trainer would leave out batches in its own
                way, and forget the ledger.
        """
        if resume_from_checkpoint:
            raise ValueError(
                "a private run goes on with fxdp.load_checkpoint, not with a Trainer's"
            )
        return super().train(**kwargs)

    def get_train_dataloader(self):
        """The Poisson batches as they are: accelerate would leave out or even out some."""
        return self.loader

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """One private release, into p.grad."""
        model.train()
        with self.compute_loss_context_manager():
            loss = self.private(**self._prepare_inputs(inputs)).loss
        loss.backward()
        return loss.detach()

    def log(self, logs, *args, **kwargs) -> None:
        """The Trainer's own numbers, not protected by DP, and epsilon."""
        spent = self.private.privacy_spent(self.delta)
        super().log(logs | {"epsilon": round(spent, 4)}, *args, **kwargs)


def network() -> BertForSequenceClassification:
    """A tiny BERT with random weights."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=LENGTH, num_labels=2,
        )
    )  # fmt: skip


def main(folder: str, epochs: int = 2, samples: int = 512, accountant="pld", **options):
    """Train, and return the trainer."""
    torch.manual_seed(0)
    data = Sentences(samples + 64)
    trainer = PrivateTrainer(
        model=network(),
        args=TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=64,
            learning_rate=1e-2,
            max_grad_norm=0,
            eval_strategy="epoch",
            save_strategy="epoch",
            logging_steps=4,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=torch.utils.data.Subset(data, range(samples)),
        eval_dataset=torch.utils.data.Subset(data, range(samples, samples + 64)),
        data_collator=default_data_collator,
        epsilon=3.0,
        delta=1e-5,
        max_grad_norm=1.0,
        accountant=accountant,
        options=options,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(main(folder).private.privacy_statement(1e-5))
