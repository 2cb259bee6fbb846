"""Metrics of tokens: accuracy, perplexity, bits, over those that count.

Targets are `{'tokens': [B, L], 'mask': [B, L]}`, outputs `[B, L, V]` logits.
All are ratios of sums over tokens: over clients they are those of all tokens
together, and a token without a mask is nowhere in them.
"""

import functools
import math

import jax
import jax.numpy as jnp

from fmtl_jax.metrics import metric

Metric = metric.Metric
TOKENS, MASK = 'tokens', 'mask'
TOP = (3, 5)  # Of the accuracies of tokens among the k likeliest.


def log_likelihoods(outputs: jax.Array, tokens: jax.Array) -> jax.Array:
  """`[...]`, of each token in nats.

  Args:
    outputs: `[..., V]` logits.
    tokens: `[...]` below V.
  """
  # Without indexing, whose gradient would be a scatter.
  is_token = jnp.arange(outputs.shape[-1]) == tokens[..., None]
  chosen = jnp.where(is_token, outputs, 0).sum(-1)
  return chosen - jax.nn.logsumexp(outputs, axis=-1)


def _over_tokens(values, answers):
  """Sums and counts of each example, of values `[B, L]`."""
  mask = answers.targets[MASK].astype(bool)
  return jnp.where(mask, values, 0).sum(-1), mask.sum(-1)


def _right(answers):
  right = answers.predictions == answers.targets[TOKENS]
  return _over_tokens(right.astype(jnp.int32), answers)


def _surprise(answers, unit=1.0):
  nats = -log_likelihoods(answers.outputs, answers.targets[TOKENS])
  return _over_tokens(nats / unit, answers)


def _among(answers, k):
  outputs, tokens = answers.outputs, answers.targets[TOKENS]
  is_token = jnp.arange(outputs.shape[-1]) == tokens[..., None]
  own = jnp.where(is_token, outputs, 0).sum(-1, keepdims=True)
  # Equal ones stand in the order of their numbers, as those of `argmax` do.
  number = jnp.arange(outputs.shape[-1])
  before = (outputs == own) & (number < tokens[..., None])
  rank = ((outputs > own) | before).sum(-1)
  return _over_tokens((rank < k).astype(jnp.int32), answers)


# Has the name of that of classes, which is shown in the same way.
TOKEN_ACCURACY = Metric(name='accuracy', values=_right, in_percent=True)
PERPLEXITY = Metric(
  name='perplexity',
  values=_surprise,
  lower_is_better=True,
  exponential=True,
)
BITS = Metric(
  name='bits_per_token',
  values=functools.partial(_surprise, unit=math.log(2)),
  lower_is_better=True,
)
BITS_PER_CHARACTER = Metric(
  name='bits_per_character', values=BITS.values, lower_is_better=True
)
TOP_ACCURACIES = tuple(
  Metric(
    name=f'top_{k}_accuracy',
    values=functools.partial(_among, k=k),
    in_percent=True,
    label=f'top-{k} accuracy',
  )
  for k in TOP
)
