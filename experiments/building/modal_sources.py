"""Sources of several modalities, and which clients have which.

Modalities of a table are groups of its columns. Those of photographs are the
photographs themselves, of a size of their own, and what a backbone makes of
them: a descriptor, such as is kept where photographs may not be.
"""

from collections.abc import Mapping, Sequence
import math
import re
from typing import Any

import ml_collections
import numpy as np

from . import sources
from fmtl_jax import federation as federation_lib
from fmtl_jax.data import images
from fmtl_jax.data import modalities as modalities_lib
from fmtl_jax.data import partitioners
from fmtl_jax.federation import modalities

OF_BACKBONE = 'backbone'  # Its outputs, among modalities of photographs.
_PIXELS = re.compile(r'(rgb|grey):([1-9]\d{0,3})')
SETTINGS = (
  'data.modalities',
  'data.client_modalities',
  'data.modality_shares',
  'data.modality_kinds',
  'data.modality_seed',
)


def of_photographs(
  source: sources.Source, photographs: images.Images, data: Any, compute: bool
) -> sources.Source:
  """The source with photographs and what a backbone made of them as rows.

  Args:
    source: Its features are the backbone's outputs where it has one.
    photographs: The images.
    data: The config's `data`; its `modalities` are of photographs.
    compute: Whether images are decoded; they are zeros otherwise.

  Raises:
    ValueError: If a modality is invalid, or who has what is.
  """
  blocks, columns, start = [], [], 0
  shapes: dict[str, tuple[int, ...]] = {}
  has_outputs = any(what == OF_BACKBONE for _, what in data.modalities)
  if source.backbone is not None and source.backbone.rest is not None:
    raise ValueError(
      'Expected no model.adapters.targets with data.modalities, whose '
      'encoders stand behind the whole backbone; leave one of them out.'
    )
  if (source.backbone is not None) != has_outputs:
    raise ValueError(
      f"Expected a modality of '{OF_BACKBONE}' among data.modalities where "
      'model.backbone names one, and nowhere else, got '
      f'{tuple(data.modalities)}.'
    )
  for name, what in data.modalities:
    pixels = _PIXELS.fullmatch(what)
    if what == OF_BACKBONE:
      block = source.features
    elif pixels:
      kind, size = pixels[1], int(pixels[2])
      resized = photographs.of_size((size, size), grey=kind == 'grey')
      block = images.pixels(resized, compute)
    else:
      raise ValueError(
        f"Expected the modality {name!r} of photographs to be 'rgb:SIZE', "
        f"'grey:SIZE' or '{OF_BACKBONE}', got {what!r}. See data.modalities."
      )
    shapes[name] = tuple(block.shape[1:])
    size = math.prod(shapes[name])
    blocks.append(block.reshape(len(block), size))
    columns.append((name, f'{start}:{start + size}'))
    start += size
  source = source._replace(features=np.concatenate(blocks, 1), backbone=None)
  return _arranged(source, data, columns, shapes)


def with_modalities(
  source: sources.Source, data: ml_collections.ConfigDict
) -> sources.Source:
  """The source with features by modality, and without what clients lack.

  Args:
    source: Its features are rows of numbers.
    data: The config's `data`, whose `modalities` are not empty.

  Raises:
    ValueError: If a modality is invalid, or who has what is.
  """
  return _arranged(source, data, data.modalities, {})


def _arranged(
  source: sources.Source,
  data: ml_collections.ConfigDict,
  patterns: Sequence[tuple[str, str]],
  shapes: Mapping[str, tuple[int, ...]],
) -> sources.Source:
  """A source of rows by modality; those without a shape are flat."""
  features = source.features
  if not isinstance(features, np.ndarray) or features.ndim != 2:
    raise ValueError(
      f'Expected rows of numbers for data.modalities, got those of '
      f'{data.name!r}, of the shape {tuple(source.features.shape)}; set '
      'data.modalities=().'
    )
  try:
    found = modalities_lib.of_columns(
      patterns, features.shape[1], source.feature_names
    )
    names = [modality.name for modality in found]
    modalities.owners(names, 1)  # Checks them.
    held, present = None, None
    if data.client_modalities:
      keys, held = _held(source, data, names)
      present = held[keys]
    arranged = modalities_lib.arranged(features, found, present)
  except ValueError as error:
    raise ValueError(f'{error} See data.modalities.') from error
  return source._replace(
    features=arranged,
    feature_names=(),
    modalities=sources.Modalities(
      {
        modality.name: shapes.get(modality.name, (len(modality.columns),))
        for modality in found
      },
      held,
    ),
  )


def _held(source, data, names):
  """`[N]` numbers of owners, and `[M, P]`, which modalities they have."""
  if data.partition != 'key' or source.keys is None:
    raise ValueError(
      "Expected data.partition='key' with data.client_modalities, because "
      f'owners of examples have a sensor or not, got {data.partition!r}.'
    )
  _, keys = partitioners.by_key(source.keys)
  kinds = data.client_modalities
  given = data.modality_kinds
  if given and len(given) != len(keys):
    raise ValueError(
      f'Expected data.modality_kinds for each of the {len(keys)} clients, got '
      f'{len(given)}.'
    )
  if given and not all(0 <= kind < len(kinds) for kind in given):
    raise ValueError(
      f'Expected data.modality_kinds below {len(kinds)}, the number of '
      f'data.client_modalities, got {tuple(given)}.'
    )
  shares = data.modality_shares or (1,) * len(kinds)
  if len(shares) != len(kinds):
    raise ValueError(
      f'Expected data.modality_shares for each of the {len(kinds)} '
      f'data.client_modalities, got {tuple(shares)}.'
    )
  of_clients = given or modalities_lib.draw_kinds(
    len(keys), shares, data.modality_seed
  )
  held = modalities_lib.held(names, kinds, np.asarray(of_clients))
  return np.searchsorted(keys, source.keys), held


def owner_index(
  source: sources.Source, client_tasks: np.ndarray
) -> dict[str, np.ndarray]:
  """Who owns the encoders of a source, as of `FederatedDataset.create`.

  Args:
    source: With or without modalities.
    client_tasks: `[M]` or `[M, S]`.
  """
  if source.modalities is None:
    return {}
  shapes, held = source.modalities
  if held is None:
    held = np.ones((len(client_tasks), len(shapes)), bool)
  return modalities.owner_index(list(shapes), held, client_tasks)


def owners(
  source: sources.Source, centralized: bool
) -> tuple[dict[str, federation_lib.Owner], dict[str, int]]:
  """Owners that a source adds, and how many; none without clients."""
  if source.modalities is None or centralized:
    return {}, {}
  return modalities.owners(list(source.modalities.shapes), len(source.tasks))
