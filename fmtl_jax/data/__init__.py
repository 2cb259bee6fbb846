"""Data: the federation's data set, partitions, splits and sources."""

from fmtl_jax.data.dataset import FederatedDataset

__all__ = ('FederatedDataset',)
