"""Language networks: from tokens `[B, length]` to logits of the next ones.

The output at a place depends on the tokens up to it alone. They are also had
place by place (`Stepper`), with a state instead of the tokens before.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax

from fmtl_jax.models import attention
from fmtl_jax.models import base
from fmtl_jax.models import recurrent

LSTM, GRU, TRANSFORMER = 'lstm', 'gru', 'transformer'
NAMES = (LSTM, GRU, TRANSFORMER)
_LAYERS = {LSTM: recurrent.Lstm, GRU: recurrent.Gru}
_SMALL = 0.02  # Deviation of a transformer's embeddings.


class Stepper(NamedTuple):
  """A language network place by place.

  Attributes:
    start: `(params, B, length) -> state`, before the first of `length` places.
    step: `(params, state, tokens [B]) -> (state, outputs [B, V])`.
  """

  start: Callable[[Any, int, int], Any]
  step: Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]]


def lstm(
  num_tokens: int,
  embedding: int,
  hidden: Sequence[int],
  num_outputs: int,
) -> base.Model:
  """LSTMs on embeddings: stages `embedding`, `lstm_0`, ..., `output`.

  Args:
    num_tokens: Tokens that are read.
    embedding: Features of each.
    hidden: Features of each layer.
    num_outputs: Tokens that are predicted.
  """
  return base.sequential(
    _recurrent(LSTM, num_tokens, embedding, hidden, num_outputs)
  )


def gru(
  num_tokens: int,
  embedding: int,
  hidden: Sequence[int],
  num_outputs: int,
) -> base.Model:
  """GRUs on embeddings: stages `embedding`, `gru_0`, ..., `output`.

  Args:
    num_tokens: Tokens that are read.
    embedding: Features of each.
    hidden: Features of each layer.
    num_outputs: Tokens that are predicted.
  """
  return base.sequential(
    _recurrent(GRU, num_tokens, embedding, hidden, num_outputs)
  )


def transformer(
  num_tokens: int, hidden: Sequence[int], heads: int, num_outputs: int
) -> base.Model:
  """A causal transformer: stages `embedding`, `block_0`, ..., `output`.

  Args:
    num_tokens: Tokens that are read.
    hidden: Features of each block, which are the same.
    heads: Of attention in each block.
    num_outputs: Tokens that are predicted.

  Raises:
    ValueError: If blocks differ, or heads do not divide their features evenly.
  """
  return base.sequential(_attentive(num_tokens, hidden, heads, num_outputs))


def stages(
  name: str,
  num_tokens: int,
  embedding: int,
  hidden: Sequence[int],
  heads: int,
  num_outputs: int,
) -> dict[str, base.ModuleFn]:
  """What builds each stage of a network of `NAMES`, see these functions."""
  if name == TRANSFORMER:
    return _attentive(num_tokens, hidden, heads, num_outputs)
  return _recurrent(name, num_tokens, embedding, hidden, num_outputs)


def _recurrent(name, num_tokens, embedding, hidden, num_outputs):
  if not hidden:
    raise ValueError(f'Expected `hidden` widths of the {name}, got none.')
  make: dict[str, base.ModuleFn] = {
    'embedding': functools.partial(recurrent.Embedding, num_tokens, embedding)
  }
  inputs = embedding
  for number, features in enumerate(hidden):
    make[f'{name}_{number}'] = functools.partial(
      _LAYERS[name], inputs, features
    )
    inputs = features
  make['output'] = functools.partial(recurrent.EachPlace, inputs, num_outputs)
  return make


class _Output(nnx.Module):
  """The normalization behind the last block, and the dense layer."""

  def __init__(self, inputs: int, features: int, rngs: nnx.Rngs):
    self.norm = attention.LayerNorm(inputs)
    self.dense = recurrent.EachPlace(inputs, features, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.dense(self.norm(x))


def _attentive(num_tokens, hidden, heads, num_outputs):
  widths = sorted(set(hidden))
  if len(widths) != 1 or heads < 1 or widths[0] % (2 * heads):
    raise ValueError(
      'Expected `hidden` of a transformer to be the same width for each block, '
      'a multiple of twice the number of `heads`, got '
      f'{tuple(hidden)} with {heads} heads.'
    )
  (width,) = widths
  make: dict[str, base.ModuleFn] = {
    'embedding': functools.partial(
      recurrent.Embedding, num_tokens, width, scale=_SMALL
    )
  }
  for number in range(len(hidden)):
    make[f'block_{number}'] = functools.partial(attention.Block, width, heads)
  make['output'] = functools.partial(_Output, width, num_outputs)
  return make


def stepper(make: Mapping[str, base.ModuleFn]) -> Stepper:
  """The same network place by place.

  Args:
    make: What builds its stages, see `stages`.

  Returns:
    A stepper whose outputs are those of the whole network at each place.
  """
  split = {
    name: nnx.split(nnx.eval_shape(functools.partial(_built, fn)))
    for name, fn in make.items()
  }

  def modules(params):
    for name, (graph, shapes) in split.items():
      state = jax.tree.map(lambda leaf: leaf, shapes)
      nnx.replace_by_pure_dict(state, params[name])
      yield name, nnx.merge(graph, state)

  def start(params, batch, length):
    found = {}
    for name, module in modules(params):
      if isinstance(module, attention.Block):
        found[name] = module.start(batch, length)
      elif hasattr(module, 'step'):
        found[name] = module.start(batch)
    return found

  def step(params, state, tokens):
    x, new = tokens, {}
    for name, module in modules(params):
      if name in state:
        new[name], x = module.step(state[name], x)
      else:
        x = module(x)
    return new, x

  return Stepper(start, step)


def _built(fn):
  return fn(nnx.Rngs(0))
