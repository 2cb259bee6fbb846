"""Differential privacy of what leaves a client, by layer type and task group.

Client-level: neighbouring federations differ by one client. Layers that a
client owns, and pre-trained ones, never leave it and cost nothing.
"""

from fmtl_jax.privacy.settings import AdaptiveClipping as AdaptiveClipping
from fmtl_jax.privacy.settings import ClientPrivacy as ClientPrivacy
from fmtl_jax.privacy.example_privacy import ExamplePrivacy as ExamplePrivacy
