"""Differential privacy of what leaves a client, by layer type and task group.

`settings`         private clients: neighbouring federations differ by a client
`accounting`       what rounds of a Gaussian mechanism cost
`ledgers`          the cost by task group
`banded`           noise that is related over rounds (DP-FTRL)
`noise_keys`       keys of noise, of the operating system
`example_privacy`  private examples: neighbours differ by an example of a silo
`example_ledger`   the cost by silo
`auditing`         lower bounds of epsilon, from guesses about canaries

Layers that a client owns, and pre-trained ones, never leave it and cost
nothing.
"""

from fmtl_jax.privacy.banded import BandedNoise
from fmtl_jax.privacy.example_privacy import ExamplePrivacy
from fmtl_jax.privacy.settings import AdaptiveClipping
from fmtl_jax.privacy.settings import ClientPrivacy

__all__ = (
  'AdaptiveClipping',
  'BandedNoise',
  'ClientPrivacy',
  'ExamplePrivacy',
)
