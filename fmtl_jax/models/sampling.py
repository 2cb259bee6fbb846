"""Sampling: text of a language network, token by token.

A network is trained on windows, so it never sees more than one: where the
window is full, it starts again with the later half of it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax.models import language


class Reader(NamedTuple):
  """How a network reads.

  Attributes:
    read: `tokens [n] -> (state, outputs [V])` at the last of them.
    append: `(state, token) -> (state, outputs [V])`, one more.
  """

  read: Callable[[Sequence[int]], tuple[Any, jax.Array]]
  append: Callable[[Any, int], tuple[Any, jax.Array]]


def by_windows(
  outputs_fn: Callable[[jax.Array], jax.Array], window: int
) -> Reader:
  """Reads all tokens of the window again for each: for any causal network.

  Args:
    outputs_fn: `tokens [1, window] int32 -> [1, window, V]`.
    window: The most tokens that are read.
  """
  outputs_fn = jax.jit(outputs_fn)

  def read(tokens):
    padded = np.zeros((1, window), np.int32)
    padded[0, : len(tokens)] = tokens
    return tuple(tokens), outputs_fn(padded)[0, len(tokens) - 1]

  return Reader(read, lambda tokens, token: read((*tokens, token)))


def by_steps(stepper: language.Stepper, params: Any, window: int) -> Reader:
  """Reads each token once, and keeps the state.

  Args:
    stepper: Of the network.
    params: Its parameters.
    window: The most tokens that are read.
  """
  step = jax.jit(stepper.step)

  def append(state, token):
    state, outputs = step(params, state, jnp.array([token], jnp.int32))
    return state, outputs[0]

  def read(tokens):
    state, outputs = stepper.start(params, 1, window), jnp.zeros(0)
    for token in tokens:
      state, outputs = append(state, token)
    return state, outputs

  return Reader(read, append)


def sample(
  reader: Reader,
  prompt: Sequence[int],
  count: int,
  *,
  window: int,
  temperature: float,
  key: jax.Array,
  excluded: Sequence[int] = (),
) -> list[int]:
  """Samples tokens that follow a prompt.

  Args:
    reader: Of the network.
    prompt: Tokens, at least one; the last `window` are read.
    count: How many to sample.
    window: The most tokens that are read at once, 2 or more.
    temperature: By which outputs are divided; 0 takes the likeliest token.
    key: Of the draws; is consumed.
    excluded: Tokens that are never drawn.

  Returns:
    The new tokens.

  Raises:
    ValueError: If the prompt is empty, or a number is out of range.
  """
  if not len(prompt):
    raise ValueError('Expected a `prompt` of a token at least, got none.')
  if not temperature >= 0:
    raise ValueError(f'Expected `temperature` >= 0, got {temperature}.')
  if count < 0 or window < 2:
    raise ValueError(
      f'Expected `count` >= 0 and `window` >= 2, got {count} and {window}.'
    )
  tokens, seen = list(prompt), min(len(prompt), window)
  state, outputs = reader.read(tokens[-seen:])
  for number in range(count):
    drawn = jax.random.fold_in(key, number)
    tokens.append(_drawn(drawn, outputs, temperature, excluded))
    if seen < window:
      state, outputs = reader.append(state, tokens[-1])
      seen += 1
    else:
      seen = (window + 1) // 2
      state, outputs = reader.read(tokens[-seen:])
  return tokens[len(prompt) :]


def _drawn(key, outputs, temperature, excluded):
  outputs = np.array(outputs, np.float32)
  outputs[list(excluded)] = -np.inf
  if temperature == 0:
    return int(outputs.argmax())
  # Of differences to the largest one, which a small temperature cannot make
  # larger than floats are.
  logits = (outputs - outputs.max()) / np.float32(temperature)
  return int(jax.random.categorical(key, logits))
