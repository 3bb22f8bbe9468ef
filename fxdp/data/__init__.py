"""Batches drawn as the privacy accountant assumes.

loader = fxdp.data.private_loader(data, sample_rate=0.01, num_workers=4)
epsilon = fxdp.privacy.epsilon(1.1, loader.batches.sampling, steps, delta)
"""

from fxdp.data import samplers
from fxdp.data.collate import poisson_collate
from fxdp.data.loader import PrivateLoader, private_loader
from fxdp.data.padding import pad_collate
from fxdp.data.sampler import PrivateSampler
from fxdp.data.samplers import *  # noqa: F403

__all__ = ["PrivateLoader", "PrivateSampler", "pad_collate", "poisson_collate", "private_loader"]
__all__ += samplers.__all__
