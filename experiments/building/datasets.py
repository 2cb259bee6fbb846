"""Data sets by name: the sources of this package, and the user's.

Code of a user's own returns a `Source`, or adds a function to `SOURCES`.
"""

from collections.abc import Callable
import functools
from typing import Any

import ml_collections

from ..configuration import config as config_lib
from ..configuration import hints
from ..configuration import own_code
from . import built_in_sources
from . import federating
from . import modal_sources
from . import own_tasks
from . import party_sources
from . import sources
from . import standardizing
from . import table_sources
from . import text_sources
from fmtl_jax.data import images

Source = sources.Source
Backbone = sources.Backbone

__all__ = ('Backbone', 'SOURCES', 'Source', 'load', 'loader', 'settings_of')

# What a source is loaded with: the same for all cases of an experiment.
SETTINGS = (
  'data.name',
  'data.tasks',
  'data.metrics',
  'data.manual_dir',
  'data.data_dir',
  'data.kind',
  'data.domains',
  'data.intercept',
  *(f'data.vertical.{name}' for name in party_sources.FIELDS),
  'data.image_size',
  'data.image_crop',
  'data.grey',
  'data.max_images',
  'data.max_texts',
  'data.max_tokens',
  'data.encoder_dir',
  'data.window',
  'data.stride',
  'data.vocabulary',
  'data.least_characters',
  'data.drawn_owners',
  *modal_sources.SETTINGS,
  'model.backbone',
  'model.backbone_weights',
  'model.backbone_channel_order',
  'model.adapters.targets',
)
# With all of their fields.
_SECTIONS = ('data.own.', 'data.synthetic.')
SOURCES: dict[str, Callable[[ml_collections.ConfigDict], sources.Source]] = {
  'digits': built_in_sources.load_digits,
  'breast_cancer': built_in_sources.load_breast_cancer,
  'uci_har': built_in_sources.load_uci_har,
  'utkface': built_in_sources.load_utkface,
  'face_folder': built_in_sources.load_face_folder,
  'celeb_a': built_in_sources.load_celeb_a,
  'play_lines': built_in_sources.load_play_lines,
  **{
    name: functools.partial(table_sources.load_school, name=name)
    for name in ('exam', 'math_achieve', 'bdf')
  },
  'star': table_sources.load_star,
  'parkinsons': table_sources.load_parkinsons,
  'landmine': table_sources.load_landmine,
  'heart_disease': table_sources.load_heart_disease,
  'ai4i': table_sources.load_ai4i,
  'credit': table_sources.load_credit,
  'transactions': table_sources.load_transactions,
  'farms': table_sources.load_farms,
}
# Sources of this package whose tasks have its metrics alone.
BUILT_IN = tuple(SOURCES)
SOURCES |= {
  'shakespeare': text_sources.load_shakespeare,
  'text_folder': text_sources.load_text_folder,
}
# Those that refuse non-finite features unless `faults` allows them.
_WITH_NONFINITE = {
  'uci_har': functools.partial(
    built_in_sources.load_uci_har, allow_nonfinite=True
  )
}


def load(
  data: ml_collections.ConfigDict, allow_nonfinite: bool = False
) -> sources.Source:
  """Loads the source that `data.name` names.

  Args:
    data: The config's `data`.
    allow_nonfinite: Whether features may be NaN or infinite: `unsound` says
      which examples have them.

  Raises:
    ValueError: If it is unknown or cannot be read.
  """
  if data.protocol not in federating.PROTOCOLS:
    raise ValueError(
      'Expected data.protocol to be one of '
      f'{", ".join(federating.PROTOCOLS)}, got {data.protocol!r}.'
    )
  load_fn = loader(data.name)
  if allow_nonfinite:
    load_fn = _WITH_NONFINITE.get(data.name, load_fn)
  try:
    if not own_code.is_own(data.name):
      source = load_fn(data)
    else:
      settings = data.own.to_dict()
      source = own_code.call(
        own_code.DATA, data.name, load_fn, data, **settings
      )
  except OSError as error:
    raise ValueError(
      f'Could not read or prepare the data set {data.name!r} ({error}); see '
      'data.manual_dir and data.data_dir.'
    ) from error
  sources.check(data.name, source)
  if data.tasks or data.metrics:
    source = own_tasks.replaced(source, data)
  if data.vertical.split:
    source = party_sources.split(source, data)
  if data.intercept:
    source = standardizing.with_intercept(data.name, source)
  if data.drawn_owners:
    source = federating.with_drawn_owners(source, data)
  if data.modalities and not isinstance(source.features, images.Images):
    source = modal_sources.with_modalities(source, data)
  return source


def loader(name: str) -> Callable[..., sources.Source]:
  """The function that loads a source, of this package or the user's.

  Raises:
    ValueError: If there is none.
  """
  if own_code.is_own(name):
    return own_code.function(own_code.DATA, name)
  if name not in SOURCES:
    raise ValueError(
      f'Unknown data.name {name!r}; known are {", ".join(SOURCES)}.'
      f'{hints.nearest(name, SOURCES)}'
    )
  return SOURCES[name]


def settings_of(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What a source is loaded with, by field: the same for all cases."""
  return {
    field: value
    for field, value in config_lib.flatten(config).items()
    if field in SETTINGS or field.startswith(_SECTIONS)
  }
