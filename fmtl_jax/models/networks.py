"""Networks: chains of dense and convolutional stages."""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

from fmtl_jax.models import base
from fmtl_jax.models import layers


def kept(build: Callable[..., base.Model]) -> Callable[..., base.Model]:
  """The same model for equal arguments: what JAX makes of it is made once.

  Args:
    build: Of sequences and plain values; the sequences become tuples.
  """
  of_values = functools.lru_cache(maxsize=32)(build)

  def plain(value: Any) -> Any:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return tuple(value) if is_list else value

  @functools.wraps(build)
  def model(*args, **kwargs):
    named = {name: plain(value) for name, value in kwargs.items()}
    return of_values(*map(plain, args), **named)

  return model


def _dense_stages(in_features, hidden, num_outputs, normalization):
  output = functools.partial(
    _dense,
    [in_features, *hidden][-1],
    num_outputs,
    activation=layers.identity,
  )
  stages = _hidden_stages(in_features, hidden, normalization)
  return stages | {'output': output}


def _hidden_stages(in_features, hidden, normalization):
  widths = [in_features, *hidden]
  return {
    f'dense_{i}': functools.partial(
      _dense, widths[i], widths[i + 1], normalization=normalization
    )
    for i in range(len(hidden))
  }


def _dense(in_features, features, rngs, **settings):
  return layers.Dense(in_features, features, rngs=rngs, **settings)


def _conv(in_features, features, window, rngs, **settings):
  return layers.Conv(in_features, features, window, rngs=rngs, **settings)


@kept
def mlp(
  feature_shape: Sequence[int],
  hidden: Sequence[int],
  num_outputs: int,
  normalization: str = layers.NONE,
) -> base.Model:
  """A multi-layer perceptron with ReLU: stages `dense_0`, ..., `output`.

  Args:
    feature_shape: Shape of one example; it is flattened.
    hidden: Widths of the hidden layers.
    num_outputs: Width of the output layer.
    normalization: Of every layer but the output: `none` or `batch`.
  """
  in_features = math.prod(feature_shape)
  return base.sequential(
    _dense_stages(in_features, hidden, num_outputs, normalization)
  )


@kept
def linear(
  feature_shape: Sequence[int], num_outputs: int, intercept: bool = True
) -> base.Model:
  """A linear model: the one stage `output`.

  Args:
    feature_shape: Shape of one example; it is flattened.
    num_outputs: Width of the output layer.
    intercept: Whether it has a bias.
  """
  in_features = math.prod(feature_shape)
  stage = functools.partial(
    _dense,
    in_features,
    num_outputs,
    activation=layers.identity,
    intercept=intercept,
  )
  return base.sequential({'output': stage})


@kept
def cnn(
  feature_shape: Sequence[int],
  channels: Sequence[int],
  hidden: Sequence[int],
  num_outputs: int,
  window: int = 3,
  convolution: str = layers.AUTO,
  normalization: str = layers.NONE,
) -> base.Model:
  """A convolutional network: stages `conv_0`, ..., `dense_0`, ..., `output`.

  Each convolution is followed by ReLU and a 2-fold max pooling.

  Args:
    feature_shape: `[*space, channels]` of one example: one axis of space for
      time series, two for images.
    channels: Of each convolution.
    hidden: Widths of the hidden dense layers.
    num_outputs: Width of the output layer.
    window: Size of every convolution along each axis of space.
    convolution: How convolutions are computed, which changes no result: `auto`
      (by platform), `patches` or `lax`; see `layers.convolve`.
    normalization: Of every layer but the output: `none` or `batch`.
  """
  stages, flat = _conv_stages(
    feature_shape, channels, window, convolution, normalization
  )
  return base.sequential(
    stages | _dense_stages(flat, hidden, num_outputs, normalization)
  )


@kept
def encoder(
  feature_shape: Sequence[int],
  widths: Sequence[int],
  channels: Sequence[int] = (),
  window: int = 3,
  convolution: str = layers.AUTO,
) -> base.Model:
  """What is in front of a fusion: stages `conv_0`, ..., `dense_0`, ...

  Every stage ends in ReLU, those of convolutions in a pooling, as in `cnn`.

  Args:
    feature_shape: Shape of one example. With an axis of space and one of
      channels at least it is convolved, else it is flat.
    widths: Of the dense layers.
    channels: Of each convolution.
    window: See `cnn`.
    convolution: See `cnn`.
  """
  in_features = math.prod(feature_shape)
  stages: dict[str, base.ModuleFn] = {}
  if len(feature_shape) > 1:
    stages, in_features = _conv_stages(
      feature_shape, channels, window, convolution, layers.NONE
    )
  dense = _hidden_stages(in_features, widths, layers.NONE)
  return base.sequential(stages | dense)


def _conv_stages(feature_shape, channels, window, convolution, normalization):
  """Stages of convolutions, and how many values they give."""
  layers.resolve_convolution(convolution, 'cpu')  # Only to check the name.
  *space, in_features = feature_shape
  most = int(math.log2(min(space))) if space else 0
  if len(channels) > most:
    raise ValueError(
      f'Expected at most {most} convolutions for examples of shape '
      f'{tuple(feature_shape)}, got `channels`={tuple(channels)}: each '
      'halves the axes of space.'
    )
  if channels and not 1 <= window <= max(space):
    raise ValueError(
      f'Expected `window` from 1 to {max(space)} for examples of shape '
      f'{tuple(feature_shape)}, got {window}.'
    )
  stages = {}
  for i, features in enumerate(channels):
    stages[f'conv_{i}'] = functools.partial(
      _conv,
      in_features,
      features,
      (window,) * len(space),
      method=convolution,
      normalization=normalization,
    )
    space = [size // 2 for size in space]
    in_features = features
  return stages, math.prod(space) * in_features
