"""scikit-learn's digits as tensors, for the examples."""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset


def load(count: int = 1500) -> TensorDataset:
    """Scans float32 [count, 1, 8, 8] in [0, 1], and labels int64 [count] in 0..9."""
    scans = load_digits()
    x = torch.tensor(scans.images, dtype=torch.float32)[:, None] / 16
    return TensorDataset(x[:count], torch.tensor(scans.target)[:count])
