"""Sentences made of digits, for the examples: whether the first word comes again."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

WORDS, LENGTH = 32, 12


class Sentences(Dataset[dict[str, Tensor]]):
    """Samples as Hugging Face's models take them: input_ids, attention_mask, labels."""

    def __init__(self, count: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.ids = torch.randint(2, WORDS, (count, LENGTH), generator=draw)
        self.ids[::2, -1] = self.ids[::2, 0]
        self.labels = (self.ids[:, 1:] == self.ids[:, :1]).any(1).long()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.ids[index]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": self.labels[index],
        }
