"""Checks: invalid configurations are refused before any data are read.

What depends on the data, such as the number of tasks, is checked where the
experiment is built.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import math
import operator
from typing import Any

import ml_collections
import numpy as np

from ..configuration import cases as cases_lib
from ..configuration import catalogue
from ..configuration import config as config_lib
from ..configuration import fields
from ..configuration import hints
from ..configuration import optimizers
from ..configuration import own_code
from ..configuration import paths
from . import backbones
from . import datasets
from . import federating
from . import private
from . import standardizing
from fmtl_jax import balancing
from fmtl_jax import cohorts
from fmtl_jax import compression
from fmtl_jax import evaluation
from fmtl_jax import execution
from fmtl_jax import federation
from fmtl_jax import metrics
from fmtl_jax import precision
from fmtl_jax import secure_aggregation
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.clients import attacks
from fmtl_jax.clients import faults
from fmtl_jax.cohorts import participation
from fmtl_jax.models import language
from fmtl_jax.models import layers
from fmtl_jax.server import robust_aggregators
from fmtl_jax.server import weights

MODELS = ('mlp', 'cnn', 'linear', 'vertical', 'multi_modal', *language.NAMES)
_FIGURE_FORMATS = ('pdf', 'svg')  # Beside PNG.

# The rule in words, whether a number is valid, and the fields that have it.
_RULES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
  (
    '>= 0',
    lambda x: x >= 0,
    (
      'algorithm.pretrained_layers',
      'attack.scale',
      'balancing.alpha',
      'balancing.c',
      'balancing.decay',
      'balancing.rate',
      'checkpoint.every_rounds',
      'client.batch_size',
      'client.decay',
      'client.learning_rate',
      'client.weight_decay',
      'data.least_characters',
      'data.drawn_owners',
      'data.max_images',
      'data.max_texts',
      'data.modality_seed',
      'privacy.clipping_norm',
      'privacy.norms.common',
      'privacy.norms.task',
      'privacy.epsilon',
      'privacy.noise_multiplier',
      'data.stride',
      'data.vertical.seed',
      'execution.low_rank_below',
      'execution.memory_mb',
      'participation.bandwidth_spread',
      'participation.deadline',
      'participation.speed_spread',
      'run.first_seed',
      'server.common.learning_rate',
      'server.task.learning_rate',
    ),
  ),
  (
    '>= 1',
    lambda x: x >= 1,
    (
      'checkpoint.keep',
      'client.local_epochs',
      'data.clients',
      'data.shards_per_client',
      'data.tasks_per_client',
      'data.vertical.parties',
      'data.vocabulary',
      'execution.task_devices',
      'model.adapters.rank',
      'faults.diverged_above',
      'model.embedding',
      'model.heads',
      'model.window',
      'privacy.bands',
      'run.evaluate_every',
      'run.rounds',
      'run.seeds',
    ),
  ),
  (
    '> 0',
    lambda x: x > 0,
    (
      'balancing.temperature',
      'data.alpha',
      'data.vertical.alpha',
      'model.adapters.alpha',
      'faults.clip_norm',
      'participation.bytes_per_second',
      'participation.steps_per_second',
      'reducer.norm',
    ),
  ),
  (
    'in [0, 1)',
    lambda x: 0 <= x < 1,
    (
      'attack.share',
      'client.momentum',
      'server.common.momentum',
      'server.task.momentum',
    ),
  ),
  (
    'in [0, 1]',
    lambda x: 0 <= x <= 1,
    (
      'data.vertical.beta',
      'participation.dropout',
      'participation.late',
      'participation.least_work',
      'participation.partial',
    ),
  ),
  (
    'in (0, 1]',
    lambda x: 0 < x <= 1,
    ('compression.share', 'data.image_crop'),
  ),
  ('in (0, 1)', lambda x: 0 < x < 1, ('privacy.delta',)),
  ('>= -1', lambda x: x >= -1, ('privacy.seed',)),
  ('in [1, 8]', lambda x: 1 <= x <= 8, ('compression.bits',)),
  ('in [1, 4]', lambda x: 1 <= x <= 4, ('compression.rank',)),
  (
    'in [1, 10000]',
    lambda x: 1 <= x <= 10**4,
    ('data.image_size', 'data.window'),
  ),
  ('in [2, 512]', lambda x: 2 <= x <= 512, ('data.max_tokens',)),
  ('<= 10000', lambda x: x <= 10**4, ('run.seeds', 'compare.seeds')),
)
_SEEDS = ('run.first_seed', 'compare.first_seed')
_NUMBERS = (
  'balancing.weights',
  'data.modality_shares',
  'client.task_weights',
  'data.coverage',
  'report.targets',
)
_PATHS = (
  'data.manual_dir',
  'data.data_dir',
  'data.encoder_dir',
  'data.feature_dir',
  'data.splits',
  'model.backbone_weights',
  'model.pretrained',
)
_LARGEST = float(np.finfo(np.float32).max)


def check(config: ml_collections.ConfigDict) -> None:
  """Raises a ValueError for an invalid configuration.

  Args:
    config: Of a case, or of an experiment whose overrides do not count.
  """
  config_lib.check_fields(config)
  flat = config_lib.flatten(config)
  own = config_lib.own_defaults(config)
  for field, default in {**config_lib.defaults(), **own}.items():
    _check_type(field, flat[field], default)
    for number in _numbers(flat[field]):
      _check_size(field, number)
  for rule, is_valid, chosen in _RULES:
    for field in chosen:
      if not is_valid(flat[field]):
        raise ValueError(f'Expected {field} {rule}, got {flat[field]}.')
  _check_algorithms(config, flat)
  last = config.run.first_seed + config.run.seeds - 1
  if last >= 2**32:
    raise ValueError(
      f'Expected run.first_seed + run.seeds <= {2**32}, got '
      f'{config.run.first_seed} and {config.run.seeds}.'
    )
  for field in _PATHS:
    paths.expanded(flat[field])
  _check_sequences(flat)
  _check_names(config)
  for name in config.data.metrics:
    if not own_code.is_own(name) and name not in metrics.CHOICES:
      raise ValueError(
        'Expected data.metrics to be names out of '
        f'{", ".join(metrics.CHOICES)}, or package.module:NAME, got {name!r}.'
        f'{hints.nearest(name, metrics.CHOICES)}'
      )
  given = config.data.tasks or config.data.metrics
  if config.data.name in datasets.BUILT_IN and not given:
    check_metric_names(config, evaluation.METRICS, 'one of')
  _check_splits(config)
  deadline = config.participation.deadline
  if deadline and not config.participation.clock:
    raise ValueError(
      'Expected participation.clock=True with participation.deadline='
      f'{deadline:g}, which is of simulated seconds, got False.'
    )
  _check_fractions(config)
  private.check(config)


def _check_splits(config):
  """Raises a ValueError for a folder of splits where none is read, or none."""
  if (config.data.protocol == federating.FILE) != bool(config.data.splits):
    raise ValueError(
      f'Expected data.protocol={federating.FILE!r} with a folder in '
      'data.splits, and neither without the other, got '
      f'{config.data.protocol!r} and {config.data.splits!r}.'
    )


def _check_fractions(config):
  """Raises a ValueError unless something is left to train on, and to test."""
  fractions = (config.data.test_fraction, config.data.validation_fraction)
  if min(fractions) < 0 or sum(fractions) >= 1:
    raise ValueError(
      'Expected data.test_fraction and data.validation_fraction >= 0 with a '
      f'sum below 1, got {fractions[0]} and {fractions[1]}.'
    )
  if config.data.test_fraction == 0:
    raise ValueError('Expected data.test_fraction > 0, got 0.')


def reducer_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The settings that robust aggregators may have, by name."""
  others = (*config.server, 'within_tasks')
  return {k: v for k, v in config.reducer.items() if k not in others}


def codec_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The settings that codecs may have, by name."""
  return {name: config.compression[name] for name in compression.SETTINGS}


def codec(
  config: ml_collections.ConfigDict, field: str
) -> compression.Codec | None:
  """The codec that a field names, see `compression.get`."""
  name: Any = functools.reduce(operator.getitem, field.split('.'), config)
  return compression.get(name, field, **codec_settings(config))


def codecs(
  config: ml_collections.ConfigDict, section: str
) -> dict[str, compression.Codec | None]:
  """The codecs of the layer types that have fields, in one direction."""
  return {name: codec(config, f'{section}.{name}') for name in config.server}


def secure_sums(
  config: ml_collections.ConfigDict,
) -> secure_aggregation.SecureSums | None:
  """The settings of secure sums, None where the config asks for none."""
  settings = config.secure.to_dict()
  asked = settings.pop('aggregation')
  found = secure_aggregation.SecureSums(**settings)  # Checks them anyway.
  return found if asked else None


def _check_algorithms(config, flat):
  """Raises a ValueError for a setting of any algorithm that is out of range."""
  for name in [*catalogue.known(), *own_code.names_in(config)]:
    spec = own_code.spec(name)
    for depth in spec.depths:
      field = f'algorithm.{depth}'
      if flat[field] < 0:
        raise ValueError(f'Expected {field} >= 0, got {flat[field]}.')
    names = fields.of_algorithm(name)
    for setting, rule in spec.settings.items():
      with fields.named(names):
        rule.check(f'`{setting}`', flat[names[setting]])


def check_metrics(
  config: ml_collections.ConfigDict, tasks: Sequence[tasks_lib.Task]
) -> None:
  """Raises a ValueError for a metric that none of the tasks has."""
  known = evaluation.metric_names(tuple(tasks))
  standardizing.check(config.data.standardize_targets, known)
  check_metric_names(config, known, 'one that the tasks have,')


def check_metric_names(
  config: ml_collections.ConfigDict, known: Sequence[str], rule: str
) -> None:
  """Raises a ValueError for a metric that is not known.

  Args:
    config: Its `report` names metrics.
    known: Names of metrics.
    rule: What they are, for the sentence.
  """
  for field in ('metric', 'more_metrics'):
    given = config.report[field]
    for name in (given,) if isinstance(given, str) else given:
      if name not in known:
        raise ValueError(
          f'Expected report.{field} to be {rule} {", ".join(known)}, got '
          f'{name!r}.{hints.nearest(name, known)}'
        )


def _check_type(field, value, default):
  """Raises a ValueError for a value that is not of the default's type."""
  if field == 'cohort.clients_per_task':
    default = value  # One number or several.
  good = isinstance(value, type(default))
  if isinstance(default, float):
    good = isinstance(value, (int, float))
  if isinstance(value, bool) != isinstance(default, bool) or not good:
    raise ValueError(
      f'Expected {field} to be like {config_lib.tuples(default)!r}, got '
      f'{config_lib.tuples(value)!r}.'
    )


def _numbers(value: Any) -> Iterator[int | float]:
  """All numbers of a field, however deep they stand."""
  if isinstance(value, list):
    for item in value:
      yield from _numbers(item)
  elif isinstance(value, (int, float)):
    yield value


def _check_size(field, number):
  """Raises a ValueError for a number that 32 bits do not hold."""
  if isinstance(number, int):
    most = 2**32 if field in _SEEDS else 2**31
    if abs(number) >= most:
      raise ValueError(f'Expected {field} below {most}, got {number}.')
  elif not math.isfinite(number) or abs(number) > _LARGEST:
    raise ValueError(f'Expected {field} to be a finite number, got {number}.')


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _check_sequences(flat):
  """Raises a ValueError for tuples of something else than they should be."""
  counts = 'cohort.clients_per_task'
  if isinstance(flat[counts], list):
    _check_each(flat, counts, 'whole numbers', _is_whole)
  elif not _is_whole(flat[counts]):
    raise ValueError(
      f'Expected {counts} to be a whole number, or one for each task, got '
      f'{flat[counts]!r}.'
    )
  for field in ('model.hidden', 'model.channels', 'model.encoder'):
    is_width = lambda x: _is_whole(x) and x >= 1
    _check_each(flat, field, 'whole numbers >= 1', is_width)
  for field in _NUMBERS:
    _check_each(flat, field, 'numbers', _is_number)
  for field in ('balancing.weights', 'client.task_weights'):
    _check_each(flat, field, 'numbers >= 0', lambda x: x >= 0)
    if flat[field] and not any(flat[field]):
      raise ValueError(f'Expected one of {field} above 0, got none.')
  for field in ('cases', 'data.metrics', 'report.more_metrics'):
    _check_each(flat, field, 'names', _is_text)
  _check_each(flat, 'data.modality_kinds', 'whole numbers', _is_whole)
  _check_each(
    flat,
    'data.client_modalities',
    'names of modalities of each kind',
    lambda x: isinstance(x, list) and x and all(map(_is_text, x)),
  )
  _check_each(
    flat,
    'report.figure_formats',
    f'names out of {", ".join(_FIGURE_FORMATS)}',
    lambda x: x in _FIGURE_FORMATS,
  )
  for field, size, what in (
    ('layer_types', 2, '(regular expression, layer type) pairs'),
    ('data.modalities', 2, '(name, columns) pairs'),
    ('report.published', 3, '(row, column, text) triples'),
  ):
    is_row = lambda x, size=size: (
      isinstance(x, list) and len(x) == size and all(map(_is_text, x))
    )
    _check_each(flat, field, what, is_row)


def _check_each(flat, field, what, is_valid):
  if not all(map(is_valid, flat[field])):
    raise ValueError(
      f'Expected {field} to be {what}, got {config_lib.tuples(flat[field])!r}.'
    )


@fields.named({'name': 'attack.name'})
def _check_names(config):
  """Raises a ValueError for a name that is not known."""
  optimizers.get('client.optimizer', config.client.optimizer, 0.0)
  optimizers.schedule(config.client.schedule, 0.1, 1.0, 1)
  attacks.get(config.attack.name)
  balancing.places({name: config.balancing[name] for name in balancing.PLACES})
  execution.resolve(config.execution.name)
  layers.resolve_convolution(config.model.convolution, 'cpu')
  settings = reducer_settings(config)
  with fields.named({setting: f'reducer.{setting}' for setting in settings}):
    for name in robust_aggregators.ROBUST_AGGREGATORS:  # Whichever is chosen.
      robust_aggregators.get(name, **settings)
  for layer_type, server in config.server.items():
    optimizers.get(f'server.{layer_type}.optimizer', server.optimizer, 0.0)
    robust_aggregators.get(config.reducer[layer_type], f'reducer.{layer_type}')
    weights.check(config.aggregation[layer_type], f'aggregation.{layer_type}')
  codecs(config, 'compression')
  codecs(config, 'compression.down')
  if config.compression.client:
    codec(config, 'compression.client')
  with fields.named():
    secure_sums(config)
  rows = ('', *cases_lib.CASES, cases_lib.MAJORITY)
  rows += tuple(own_code.names_in(config))
  labelled = cases_lib.keys(config)
  known: dict[str, Sequence[str]] = {
    'algorithm.initialization': (federation.SHARED, federation.PER_OWNER),
    'cohort.slots': (cohorts.DRAWN, cohorts.ALL),
    'data.partition': federating.PARTITIONS,
    'data.protocol': federating.PROTOCOLS,
    'data.standardize_targets': standardizing.TARGETS,
    'execution.clients_on': ('device', 'host'),
    'execution.compile_effort': execution.EFFORTS,
    'faults.nonfinite': faults.POLICIES,
    'model.backbone': ('', *backbones.BACKBONES),
    'model.name': MODELS,
    'model.normalization': (layers.NONE, layers.BATCH),
    'precision.compute': precision.COMPUTE,
    'precision.matmul': ('', *precision.MATMUL),
    'privacy.unit': private.UNITS,
    'participation.at_deadline': (participation.PARTIAL, participation.LATE),
    'report.baseline': rows,
    'report.curve_case': rows,
    'report.target_case': rows,
    'report.view': ('pooled', 'client'),
  }
  for name, label in config.report.labels.items():
    if name not in labelled:
      raise ValueError(
        f'Unknown case {name!r} in report.labels; known are '
        f'{", ".join(labelled)}.{hints.nearest(name, labelled)}'
      )
    if not isinstance(label, str):
      raise ValueError(
        f'Expected report.labels.{name} to be a string, got {label!r}.'
      )
  flat = config_lib.flatten(config)
  for field, names in known.items():
    if field == own_code.MODEL and own_code.is_own(flat[field]):
      continue  # Found, where its settings were added.
    if flat[field] not in names:
      shown = ', '.join(filter(None, names))
      raise ValueError(
        f'Expected {field} to be one of {shown}, got {flat[field]!r}.'
        f'{hints.nearest(flat[field], names)}'
      )
