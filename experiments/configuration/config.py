"""The config schema: every field an experiment can set, with its default.

What changes results stands apart from what only changes speed (`execution`) or
what is shown (`report`, `checkpoint`). Field names are kept.
"""

from collections.abc import Callable, Mapping, Sequence
import copy
import functools
import json
import os
import pathlib
import tempfile
import types
from typing import Any

import ml_collections
from ml_collections import config_dict

from . import hints
from . import own_code
from fmtl_jax import algorithms
from fmtl_jax import balancing

# Numbers of layers by which algorithms label them.
DEPTHS: Mapping[str, int] = {
  'task_layers': 1,
  'personal_layers': 0,
  'common_layers': 1,
  'shared_layers': 0,  # Of all clusters, at the input.
}
# Settings of algorithms that stand in `algorithm` itself, of all that have one
# with this name and default.
_SEVERAL_HAVE: Mapping[str, Any] = {
  'mu': 0.1,  # Proximal weight of fedprox.
  'finetune_epochs': 5,  # Of fedavg_finetune and others.
  # Of them, too; 0 is client.learning_rate, whatever its schedule.
  'finetune_learning_rate': 0.0,
}
nearest = hints.nearest


def default_config() -> ml_collections.ConfigDict:
  """Every field with its default; configs/ change what they need."""
  config = ml_collections.ConfigDict()
  config.name = ''
  # The rows of the results table, in order; see experiments/cases.py.
  config.cases = ()

  config.data = ml_collections.ConfigDict()
  config.data.name = 'digits'  # Or package.module:function, see own_code.py,
  config.data.own = ml_collections.ConfigDict()  # with its settings.
  config.data.manual_dir = ''  # Where a manual download lies.
  config.data.data_dir = ''  # Where prepared data go; '' is TFDS's default.
  config.data.kind = ''  # Which part of the source, where it has several.
  config.data.image_size = 150  # Height and width of photographs, in pixels.
  config.data.image_crop = 1.0  # The central fraction that is kept of them.
  config.data.grey = False  # One channel instead of three.
  config.data.max_images = 0  # Photographs to use, evenly spaced; 0 is all.
  config.data.feature_dir = ''  # Where outputs of backbones are kept.
  config.data.clients = 50
  config.data.partition = 'iid'  # iid, key, dirichlet, shards, quantity.
  config.data.alpha = 0.5  # Concentration of dirichlet and quantity.
  config.data.shards_per_client = 2
  config.data.tasks_per_client = 1
  config.data.coverage = ()  # Share of the clients that hold each task.
  config.data.protocol = 'iid'  # How test examples are chosen.
  config.data.test_fraction = 0.2
  config.data.validation_fraction = 0.1
  config.data.standardize = False

  config.model = ml_collections.ConfigDict()
  config.model.name = 'mlp'  # Or package.module:function,
  config.model.own = ml_collections.ConfigDict()  # with its settings.
  config.model.hidden = (64, 32)
  config.model.channels = ()
  config.model.window = 3
  config.model.convolution = 'auto'  # Or patches, lax: the same, in other time.
  config.model.normalization = 'none'  # Or batch, of all but the output layer.
  config.model.backbone = ''  # A published network in front: see backbones.py.
  config.model.backbone_weights = ''  # A file; '' is that of a package.
  config.model.backbone_channel_order = ''  # Of the file: RGB, BGR, '' usual.
  # A folder with trained parameters: values of layers labelled pretrained.
  config.model.pretrained = ''
  # (regex, layer type) pairs; () lets the algorithm label layers by depth.
  config.layer_types = ()

  config.algorithm = ml_collections.ConfigDict()
  config.algorithm.name = ''  # Set: the only row of the table.
  config.algorithm.pretrained_layers = 0
  config.algorithm.update(DEPTHS)
  config.algorithm.initialization = 'shared'  # Or per_owner.
  config.algorithm.update(_SEVERAL_HAVE)
  for name, spec in algorithms.ALGORITHMS.items():
    for depth, default in spec.default_depths.items():
      if depth not in config.algorithm:
        config.algorithm[depth] = default
    for setting, default in spec.defaults.items():
      field = own_field(name, setting)
      if field.count('.') == 2:  # With the default of its paper.
        put_field(config, field, default)

  config.client = ml_collections.ConfigDict()
  config.client.optimizer = 'sgd'
  config.client.learning_rate = 0.1
  config.client.momentum = 0.0
  config.client.weight_decay = 0.0
  config.client.schedule = 'constant'  # constant, exponential, cosine.
  config.client.decay = 1.0  # Factor a round of the exponential schedule.
  config.client.batch_size = 16  # 0: all examples at once.
  config.client.local_epochs = 1
  config.client.keep_optimizer_state = False
  config.client.task_weights = ()  # Of a client's objective; () is ones.

  config.cohort = ml_collections.ConfigDict()
  # K, or one number a task; 0 is all.
  config.cohort.clients_per_task = config_dict.FieldReference(
    0, field_type=object
  )
  config.cohort.slots = 'drawn'  # drawn, all.

  # none or a method of fmtl_jax/balancing, with the defaults of its paper.
  config.balancing = ml_collections.ConfigDict()
  config.balancing.client = 'none'  # Over a client's tasks, in local steps.
  config.balancing.group = 'none'  # Over clients, instead of their mean.
  config.balancing.server = 'none'  # Over tasks, in common layers.
  config.balancing.weights = ()  # Of the tasks at the server; () is ones.
  config.balancing.update(balancing.SETTINGS)

  config.aggregation = ml_collections.ConfigDict()
  config.reducer = ml_collections.ConfigDict()
  # Of robust reducers, those that have them; see server/robust_aggregators.py.
  config.reducer.trim = 0.2  # Share that trimmed_mean drops at each end.
  config.reducer.attackers = 0.2  # Share that krum and multi_krum expect.
  config.reducer.kept = 0.0  # Share that multi_krum averages; 0: the others.
  config.reducer.iterations = 8  # Of geometric_median.
  config.reducer.norm = 1.0  # Bound of norm_clipping.
  # Whether common layers are reduced task by task, then averaged over tasks.
  config.reducer.within_tasks = False
  config.server = ml_collections.ConfigDict()
  for layer_type in ('common', 'task'):
    config.aggregation[layer_type] = 'examples'
    config.reducer[layer_type] = 'mean'
    server = ml_collections.ConfigDict()
    server.optimizer = 'sgd'
    server.learning_rate = 1.0
    server.momentum = 0.0
    config.server[layer_type] = server

  config.attack = ml_collections.ConfigDict()
  config.attack.name = 'none'  # Or sign_flip, noise, label_flip, nan.
  config.attack.share = 0.2  # Of every task's clients, rounded down,
  config.attack.by_task = True  # or of all clients alike.
  config.attack.scale = 10.0  # Of sign_flip and noise.

  # What becomes of clients in a round: see fmtl_jax/participation.py.
  config.participation = ml_collections.ConfigDict()
  config.participation.dropout = 0.0  # Probability that a client drops out,
  config.participation.late = 0.0  # that its update comes too late to count,
  config.participation.partial = 0.0  # that it does a part of its local steps:
  config.participation.least_work = 0.1  # uniform from this share to all.
  config.participation.clock = False  # Simulated time, with what follows.
  config.participation.steps_per_second = 100.0  # Of the median client.
  config.participation.speed_spread = 0.0  # Deviation of the logarithm.
  config.participation.bytes_per_second = 1e6  # Of the median client.
  config.participation.bandwidth_spread = 0.0  # Deviation of the logarithm.
  config.participation.deadline = 0.0  # Seconds a round; 0 waits for everyone.
  config.participation.at_deadline = 'partial'  # Or late: nothing counts.

  config.faults = ml_collections.ConfigDict()
  # stop; skip_client leaves clients out of a round; clip bounds gradients.
  config.faults.nonfinite = 'stop'
  config.faults.clip_norm = 10.0  # Of gradients, with clip.
  # A point of a sweep ends where its loss is so many times its first one.
  config.faults.diverged_above = 100.0

  config.run = ml_collections.ConfigDict()
  config.run.rounds = 100
  config.run.seeds = 1
  config.run.first_seed = 0
  config.run.evaluate_every = 5

  # The search of experiments.compare, the same for every algorithm: rates of
  # clients, tried on validation data of seeds that the table does not use.
  config.compare = ml_collections.ConfigDict()
  config.compare.learning_rates = (0.05, 0.1, 0.2, 0.4)
  config.compare.seeds = 4
  config.compare.first_seed = 1000
  config.compare.validation_fraction = 0.2  # Replaces that of data.

  # Clients of experiments.unseen, which take no part in training.
  config.unseen = ml_collections.ConfigDict()
  config.unseen.clients = 5  # How many; others for each seed.
  # Of its own, with which a newcomer adapts; a point of the curve for each.
  config.unseen.examples = (0, 1, 2, 5, 10, 20, 50)
  config.unseen.epochs = 5
  config.unseen.learning_rate = 0.02  # Where an algorithm has none of its own.
  config.unseen.start = 'mean'  # Of clients' copies; or initial, untrained.

  # What may differ by case: config.overrides.CASE.client.learning_rate.
  config.overrides = ml_collections.ConfigDict()

  config.execution = ml_collections.ConfigDict()
  config.execution.name = 'auto'  # Or scan, vmap, chunk[:K], low_rank[:K].
  # Megabytes for the clients that run at once, of chunk and low_rank; 0: half
  # of a GPU's or TPU's, 268 on CPU.
  config.execution.memory_mb = 0
  # Dense kernels are factored where that costs less than this share of them.
  config.execution.low_rank_below = 0.25
  config.execution.clients_on = 'device'  # host: for large federations.
  # Devices that share the tasks, each with the layers of its tasks alone.
  config.execution.task_devices = 1
  config.execution.compile_effort = 'high'  # low: compiles in half the time.

  config.checkpoint = ml_collections.ConfigDict()
  config.checkpoint.every_rounds = 0  # 0: at the end of each case only.
  config.checkpoint.keep = 2  # The latest ones; the best is kept, too.

  config.report = ml_collections.ConfigDict()
  config.report.title = ''
  config.report.metric = 'accuracy'
  config.report.view = 'pooled'
  # The case of curves.png, a line for each task; '' shows all cases.
  config.report.curve_case = 'multi_task_fl'
  config.report.baseline = 'distributed_separate'
  config.report.more_metrics = ()  # With a table each, below the first one.
  config.report.targets = ()  # Values to reach, in percent for accuracies.
  # One more target: what this case ends with, less the margin.
  config.report.target_case = ''
  config.report.target_margin = 0.5
  config.report.labels = (
    ml_collections.ConfigDict()
  )  # How a case is shown, by case.
  # Figures of others, shown below the table: (row label, column, text).
  config.report.published = ()
  config.report.published_source = ''
  return config


# Sections that are no part of a run's identity: its numbers are the same
# whatever they say, to rounding. All other fields are part of it, paths of data
# and weights too.
_NOT_IDENTITY = (
  'execution',  # How it is computed.
  'checkpoint',  # What is kept of it.
  'report',  # What is shown. Who chooses by it adds the metric: see CHOICE.
  'cases',  # Which rows there are; a row depends on no other one.
  'compare',  # Of experiments.compare alone, which adds it.
  'unseen',  # Of experiments.unseen alone, which adds it.
)
_CACHES = ('data.feature_dir',)
# Where files lie.
_PLACES = (
  *('data.manual_dir', 'data.data_dir', 'data.feature_dir'),
  *('model.backbone_weights', 'model.pretrained'),
)
# What sweeps and comparisons are about: they keep values of one metric.
CHOICE = ('report.metric', 'report.view')


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a config that results depend on, by dotted field name."""
  return {
    name: value
    for name, value in flatten(config).items()
    if name.split('.')[0] not in _NOT_IDENTITY and name not in _CACHES
  }


def default_identity() -> dict[str, Any]:
  """That of the defaults: what was done before there was a field."""
  return identity(default_config())


def command_line_identity(command_line: Mapping[str, Any]) -> list[str]:
  """The fields given on the command line that results depend on."""
  return sorted(
    name
    for name in command_line
    if name.split('.')[0] not in _NOT_IDENTITY and name not in _CACHES
  )


def is_place(name: str) -> bool:
  """Whether a field says where files lie, which may differ by machine."""
  return name in _PLACES


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
  """Lists the fields by dotted name, in JSON types."""
  flat: dict[str, Any] = {}
  for name, value in config.items():
    if isinstance(value, (Mapping, ml_collections.ConfigDict)):
      flat |= {f'{name}.{k}': v for k, v in flatten(value).items()}
    else:
      try:
        flat[name] = json.loads(json.dumps(value))
      except TypeError as error:
        raise ValueError(
          f'Expected config field {name!r} to hold plain numbers and strings, '
          f'got {value!r}.'
        ) from error
  return flat


def copied(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A copy to be changed; a field that may have several types still may."""
  new = copy.deepcopy(config)
  new.unlock()
  return new


def shown(value: Any) -> str:
  """A field's value as one writes it on the command line."""
  return str(tuples(value))


def expanded(path: str) -> str:
  """A path of the user's with `~` and `~NAME` as a shell expands them.

  A shell leaves them alone in `--flag=~/folder`.

  Raises:
    ValueError: If there is no such user.
  """
  found = os.path.expanduser(path)
  if found.startswith('~'):
    raise ValueError(
      f'No home folder is known for {path!r}; write the whole path, or '
      f'{"./" + path!r} for a folder of this name.'
    )
  return found


def cache_folder() -> pathlib.Path:
  """Where what can be made again is kept for the next run."""
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  try:
    return pathlib.Path(cache, 'fmtl_jax').expanduser()
  except RuntimeError:  # A user without a home, as in some containers.
    return pathlib.Path(tempfile.gettempdir(), f'fmtl_jax_{os.getuid()}')


def apply_variants(
  config: ml_collections.ConfigDict,
  variants: str,
  known: Mapping[str, Callable[[ml_collections.ConfigDict], None]],
) -> ml_collections.ConfigDict:
  """Applies `--config=FILE:one,two`.

  Args:
    config: Changed in place and returned.
    variants: Names joined by commas; '' for none.
    known: What each variant does to a config.

  Raises:
    ValueError: If a variant is not known.
  """
  for name in filter(None, variants.split(',')):
    if name not in known:
      raise ValueError(
        f'Unknown variant {name!r} of this config; known are '
        f'{", ".join(known)}.{nearest(name, known)}'
      )
    known[name](config)
  return config


def own_defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields of the user's code that a config names, in JSON types."""
  return flatten(own_code.defaults(config)) if _has_names(config) else {}


def _has_names(config: ml_collections.ConfigDict) -> bool:
  """Whether a config has what names code; else `check_fields` says so."""
  return isinstance(config.get('cases'), tuple) and all(
    isinstance(config.get(name), ml_collections.ConfigDict)
    for name in ('data', 'model', 'algorithm')
  )


def add_own(
  config: ml_collections.ConfigDict,
  given: Mapping[str, Any] = types.MappingProxyType({}),
  only: Sequence[str] = (),
) -> None:
  """Adds the settings of the user's code that are not there, in place.

  Args:
    config: The experiment.
    given: Names that are given elsewhere, by field.
    only: The rows that are run: algorithms of the user's that the config does
      not name are added to its table, which says whose settings it has.

  Raises:
    ValueError: If the code is not found, or two things have one name.
  """
  if not _has_names(config):
    return
  with config.unlocked():
    for field, value in given.items():
      set_field(config, field, value)
    known = own_code.names_in(config)
    new = [n for n in only if own_code.is_own(n) and n not in known]
    if new:
      config.cases = (*config.cases, *new)
    own_code.check_keys([*known, *new], _of_algorithms())
    there = flatten(config)
    for field, value in own_defaults(config).items():
      if field not in there:
        put_field(config, field, value)


@functools.cache
def _of_algorithms() -> tuple[str, ...]:
  """What is in `algorithm`, and what has or may have a section there."""
  return (*default_config().algorithm, *algorithms.ALGORITHMS)


def is_own_setting(field: str) -> bool:
  """Whether a field is a setting of an algorithm of the user's."""
  section, *names = field.split('.')
  return (
    section == 'algorithm'
    and len(names) == 2
    and names[0] not in _of_algorithms()
  )


def of_case(config: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
  """The identity of what an algorithm trains, whatever others are beside it."""
  own = f'algorithm.{own_code.key(algorithm)}.'
  return {
    field: value
    for field, value in identity(config).items()
    if field.startswith(own) or not is_own_setting(field)
  }


# Sections whose fields are names of cases.
_BY_CASE = ('overrides', 'report.labels')


def check_fields(config: ml_collections.ConfigDict) -> None:
  """Raises a ValueError unless a config has the fields of the schema alone."""
  known = flatten(default_config()) | own_defaults(config)
  given = {
    field: value
    for field, value in flatten(config).items()
    if not field.startswith(tuple(f'{name}.' for name in _BY_CASE))
  }
  for field in known:
    if field not in given:
      raise ValueError(
        f'The config has no field {field!r}; start from '
        f'{__name__}.default_config().'
      )
  for field in given:
    if field not in known:
      raise ValueError(
        f'Unknown config field {field!r}.{nearest(field, known)}'
      )
  for field in _BY_CASE:
    *sections, name = field.split('.')
    section = config[sections[0]] if sections else config
    if not isinstance(section.get(name), ml_collections.ConfigDict):
      raise ValueError(
        f'Expected {field} to be a ConfigDict by case, got '
        f'{section.get(name)!r}.'
      )


def put_field(
  config: ml_collections.ConfigDict, field: str, value: Any
) -> None:
  """Sets a field by its dotted name; makes sections that are not there."""
  *sections, name = field.split('.')
  for part in sections:
    if part not in config:
      config[part] = ml_collections.ConfigDict()
    config = config[part]
  config[name] = tuples(value)


def tuples(value: Any) -> Any:
  """Lists, as JSON and flags give them, as tuples."""
  return tuple(map(tuples, value)) if isinstance(value, list) else value


def set_field(
  config: ml_collections.ConfigDict, field: str, value: Any
) -> None:
  """Sets a field by its dotted name, checking name and type.

  Raises:
    ValueError: If there is no such field or the value has another type.
  """
  *sections, name = field.split('.')
  section = config
  for part in sections:
    section = section.get(part)
    if not isinstance(section, ml_collections.ConfigDict):
      break
  if not isinstance(section, ml_collections.ConfigDict) or name not in section:
    raise ValueError(
      f'Unknown config field {field!r}.{nearest(field, flatten(config))}'
    )
  try:
    section[name] = value
  except TypeError as error:
    raise ValueError(
      f'Expected config field {field!r} to be like {section[name]!r}, got '
      f'{value!r}.'
    ) from error


def own_field(algorithm: str, setting: str) -> str:
  """The field of a setting that is an algorithm's own, by dotted name."""
  if own_code.is_own(algorithm):
    return f'algorithm.{own_code.key(algorithm)}.{setting}'
  default = algorithms.ALGORITHMS[algorithm].defaults[setting]
  if setting in _SEVERAL_HAVE and default == _SEVERAL_HAVE[setting]:
    return f'algorithm.{setting}'
  return f'algorithm.{algorithm}.{setting}'
