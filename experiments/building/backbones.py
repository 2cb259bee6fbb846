"""Backbones: published networks in front of the one that is trained.

A backbone is frozen, so that it runs once on each example, before the first
round; rounds run on its outputs. A file caches them for the next run. Where it
has adapters, it runs up to the first stage that has one, and rounds run on what
follows.
"""

from collections.abc import Callable
import contextlib
import functools
import pathlib
import sys
import time
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from ..configuration import fields
from ..configuration import hints
from ..folders import progress as progress_lib
from ..running import hardware
from . import datasets
from . import fingerprints
from . import modal_sources
from . import sources
from . import standardizing
from fmtl_jax import models
from fmtl_jax.clients import faults
from fmtl_jax.data import features as features_lib
from fmtl_jax.data import images as images_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.models import bert
from fmtl_jax.models import dlib_resnet
from fmtl_jax.running import machine

_BATCH = 32
_SHARD = 1024  # Examples of a file of features: some seconds of work.


class _Entry(NamedTuple):
  """A published network.

  Attributes:
    model: Builds it; of the file, where `is_sized` says so.
    load: `(file, model, channel order) -> params`; '' is the file of a package.
    weights: What the file is, for a user who has none; '' if a package has it.
    is_sized: Whether the file says how large the network is.
  """

  model: Callable[..., models.Model]
  load: Callable[[str, models.Model, str | None], Any]
  weights: str = ''
  is_sized: bool = False


BACKBONES = {
  'dlib_resnet': _Entry(
    dlib_resnet.model, lambda path, *_: dlib_resnet.load(path or None)
  ),
  'minilm': _Entry(
    bert.of_folder, lambda path, *_: bert.load(path), is_sized=True
  ),
  'vgg_face': _Entry(
    models.vgg_face,
    models.load_vgg,
    'vgg_face.mat from https://www.robots.ox.ac.uk/~vgg/software/vgg_face/, or '
    'the same weights as .h5, .pth or .safetensors',
  ),
}


def load_source(
  config: ml_collections.ConfigDict, compute: bool = True
) -> sources.Source:
  """Loads the data, with the outputs of the backbone where there is one.

  Args:
    config: The experiment.
    compute: Whether the outputs of the backbone are needed; they are zeros
      otherwise.

  Raises:
    ValueError: If the data or the weights cannot be read.
  """
  allowed = config.faults.nonfinite != faults.STOP
  source = datasets.load(config.data, allowed)
  fingerprint = fingerprints.of_source(source, config.data.name)
  fingerprint |= fingerprints.of_own_code(config)
  fingerprint |= fingerprints.of_splits(config.data)
  source = source._replace(
    settings=datasets.settings_of(config),
    fingerprint=fingerprint | fingerprints.of_weights(config),
  )
  if allowed and isinstance(source.features, np.ndarray):
    values = source.features.reshape(len(source.features), -1)
    nonfinite = np.logical_not(np.isfinite(values).all(1))
    source = source._replace(unsound=nonfinite if nonfinite.any() else None)
  photographs = source.features
  if config.model.backbone:
    source = _with_outputs(config, source, compute)
  if not isinstance(photographs, images_lib.Images):
    has_backbone = source.backbone is not None
    return source if has_backbone else standardizing.centered(source)
  if config.data.modalities:
    return modal_sources.of_photographs(
      source, photographs, config.data, compute
    )
  if source.backbone is not None:
    return source
  return source._replace(features=images_lib.pixels(photographs, compute))


def _with_outputs(config, source, compute) -> sources.Source:
  """The source behind its backbone, see `load_source`."""
  name = config.model.backbone
  entry = _entry(config.model)
  file = config.model.backbone_weights
  model = entry.model(file) if entry.is_sized else entry.model()
  params = entry.load(file, model, config.model.backbone_channel_order or None)
  batch = jax.ShapeDtypeStruct(
    (_BATCH, *source.features.shape[1:]), source.features.dtype
  )
  source = source._replace(
    fingerprint={
      **source.fingerprint,
      'model.backbone_weights': features_lib.fingerprint(params),
    }
  )
  model, params, rest, rest_params = _split(config, model, params)
  # Raises for images of another size.
  jaxpr = jax.make_jaxpr(model.apply)(params, batch)
  [output] = jaxpr.out_avals
  cost: dict[str, float] = {}
  if compute:
    # What a network computes depends on its code and on the platform, too.
    precision = str(jax.config.values['jax_default_matmul_precision'])
    program = (str(jaxpr), jaxpr.consts, jax.default_backend(), precision)
    content = _content(source.features)
    key = features_lib.fingerprint(params, name, content, *program)
    folder = pathlib.Path(
      config.data.feature_dir or machine.cache_folder() / 'features'
    )
    found = _run(
      name, model, params, batch, source.features, folder, key, cost, output
    )
  else:
    found = np.zeros((len(source.features), *output.shape[1:]), np.float32)
  return source._replace(
    features=found,
    backbone=sources.Backbone(name, model, params, cost, rest, rest_params),
  )


def _split(config, model, params):
  """A backbone up to its first stage with an adapter, and the rest if any.

  Returns:
    The network that runs once and its parameters; those of the rest, None
    without adapters.
  """
  if not config.model.adapters.targets:
    return model, params, None, None
  shapes = jax.eval_shape(lambda: params)
  with fields.named(fields.OF_ADAPTERS):
    given = models.Adapters(**config.model.adapters.to_dict())
    given.check(shapes)

  def label(path, unused_leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    is_target = given.matches(name)
    return layer_types.COMMON if is_target else layer_types.PRETRAINED

  labels = jax.tree.map_with_path(label, shapes)
  prefix, rest = models.base.split_prefix(model, labels)
  part = lambda of: {name: params[name] for name, _ in of.stages}
  return prefix, part(prefix), rest, part(rest)


def _entry(model: ml_collections.ConfigDict) -> _Entry:
  """The backbone that the config's `model` names."""
  name = model.backbone
  if name not in BACKBONES:
    raise ValueError(
      f'Unknown model.backbone {name!r}; known are {", ".join(BACKBONES)}.'
      f'{hints.nearest(name, BACKBONES)}'
    )
  entry = BACKBONES[name]
  if entry.weights and not model.backbone_weights:
    raise ValueError(
      f'Expected the weights of {name} in model.backbone_weights, got none; '
      f'name a file: {entry.weights}.'
    )
  return entry


def _content(examples):
  """What identifies the examples; images are not decoded."""
  if isinstance(examples, images_lib.Images):
    return examples.fingerprint()
  return examples


def _run(
  name, model, params, batch, examples, folder, key, cost, output
) -> np.ndarray:
  """Outputs of a backbone for all examples, from disk where they are there.

  They are kept in files of `_SHARD` examples, with which a stopped run resumes.
  """
  clock: list[float] = []  # When the work began, then when each batch ended.
  counts: list[int] = []
  bar = progress_lib.Progress(name, len(examples), 'image')
  with contextlib.closing(bar):

    def progress(count):
      clock.append(time.perf_counter())
      counts.append(count)
      bar.update(count)

    def compute(rows):
      if not clock:
        clock.append(time.perf_counter())
      return features_lib.precompute(
        model.apply, examples, _BATCH, progress, rows, (params,)
      )

    parts = []
    for start in range(0, len(examples), _SHARD):
      rows = range(start, min(start + _SHARD, len(examples)))
      done = sum(counts)
      part_key = features_lib.fingerprint(key, start, len(rows))
      part = features_lib.cached(
        folder,
        part_key,
        functools.partial(compute, rows),
        jax.ShapeDtypeStruct((len(rows), *output.shape[1:]), output.dtype),
      )
      bar.update(len(rows) - (sum(counts) - done))
      parts.append(part)
  found = np.concatenate(parts)
  if not counts:
    print(
      f'{name}: features of {len(found):,} examples were read from {folder}.',
      file=sys.stderr,
    )
    return found
  # The first batch was also compiled for.
  skip = 1 if len(counts) > 1 else 0
  rate = sum(counts[skip:]) / (clock[-1] - clock[skip])
  cost |= {
    'seconds': clock[-1] - clock[0],
    'examples': sum(counts),
    'examples_of_all': len(examples),
    'examples_per_second': rate,
  }
  words = (
    f'{name}: features of {cost["examples"]:,} examples in '
    f'{cost["seconds"]:.0f} s, {rate:.0f} a second, decoded and computed'
  )
  analysis = jax.jit(model.apply).lower(params, batch).cost_analysis() or {}
  if 'flops' in analysis:
    per_example = analysis['flops'] / len(batch)
    flops = hardware.matmul_flops()
    cost |= {
      'gflop_per_example': per_example / 1e9,
      'matmul_gflops': flops / 1e9,
      'share_of_matmul_rate': rate * per_example / flops,
    }
    words += (
      f': {100 * cost["share_of_matmul_rate"]:.0f} % of the rate of matrix '
      f'products ({flops / 1e9:.0f} GFLOP/s)'
    )
  print(f'{words}.', file=sys.stderr)
  return found
