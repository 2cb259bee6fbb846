"""Build: from a case's config to a `program.Case`."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..configuration import fields
from ..configuration import optimizers
from ..configuration import own_code
from ..running import program
from . import checks
from . import datasets
from . import own_models
from fmtl_jax import algorithms
from fmtl_jax import balancing
from fmtl_jax import cohorts
from fmtl_jax import evaluation
from fmtl_jax import execution as execution_lib
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.clients import attacks
from fmtl_jax.clients import faults
from fmtl_jax.clients import local_optimizers
from fmtl_jax.cohorts import participation
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import features as features_lib
from fmtl_jax.data import partitions
from fmtl_jax.execution import task_devices as task_devices_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import communication
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import robust_aggregators
from fmtl_jax.server import server_optimizers
from fmtl_jax.storage import checkpoints

Settings = Mapping[str, Any]
FederateFn = Callable[
  [datasets.Source, ml_collections.ConfigDict, int],
  dataset_lib.FederatedDataset,
]

STANDARDIZE = 'standardize'
_SHARES = ('dropout', 'late', 'partial', 'least_work')
_OF_CLOCK = (
  'steps_per_second',
  'speed_spread',
  'bytes_per_second',
  'bandwidth_spread',
  'deadline',
)
_MAPPED = (
  *(f'balancing.{name}' for name in balancing.SETTINGS),
  *(f'participation.{name}' for name in _SHARES + _OF_CLOCK),
  'algorithm.finetune_epochs',
  'client.decay',
  'client.learning_rate',
  'client.local_epochs',
  'client.momentum',
  'client.weight_decay',
  'faults.clip_norm',
  'server.common.learning_rate',
  'server.common.momentum',
  'server.task.learning_rate',
  'server.task.momentum',
)


def mapped_fields() -> set[str]:
  """Fields that change no shape, of algorithms of the package and of all."""
  own = (
    config_lib.own_field(name, setting)
    for name, spec in algorithms.ALGORITHMS.items()
    for setting, default in spec.defaults.items()
    if isinstance(default, float)
  )
  return {*own, *_MAPPED}


def is_mapped(field: str, case: str) -> bool:
  """Whether a sweep of a case maps a field over runs of one program."""
  if not config_lib.is_own_setting(field):
    return field in mapped_fields()
  algorithm = cases_lib.get(case).algorithm
  return own_code.is_own(algorithm) and any(
    isinstance(default, float)
    and field == config_lib.own_field(algorithm, name)
    for name, default in own_code.spec(algorithm).defaults.items()
  )


def build_model(
  config: ml_collections.ConfigDict, source: datasets.Source
) -> models.Model:
  """The network that `model.*` describes, wide enough for every task."""
  shape = datasets.feature_shape(source)
  width = tasks_lib.num_outputs(source.tasks)
  if config.model.name == 'mlp':
    return models.mlp(
      shape, config.model.hidden, width, config.model.normalization
    )
  if config.model.name == 'cnn':
    return models.cnn(
      shape,
      config.model.channels,
      config.model.hidden,
      width,
      config.model.window,
      config.model.convolution,
      config.model.normalization,
    )
  if own_code.is_own(config.model.name):
    return own_models.build(config.model, shape, width)
  raise ValueError(
    f'Expected model.name to be one of {", ".join(checks.MODELS)}, got '
    f'{config.model.name!r}.'
  )


def label_rules(
  config: ml_collections.ConfigDict,
  algorithm: str,
  layers: Sequence[str],
  centralized: bool = False,
  paths: Sequence[str] = (),
) -> layer_types.Rules:
  """The rules in `layer_types`, or the algorithm's own by depth.

  Rules in the config are those of the method of the paper, also of
  `hard_sharing`, which is its centralized form; an algorithm that is a label
  rule keeps its own, behind the layers that are pre-trained. A centralized
  model has no clients: what would be personal belongs to the task there.
  Rules for leaves inside layers need the `paths` of the parameters.
  """
  rules: layer_types.Rules
  if config.layer_types and algorithm in ('multi_task_fl', 'hard_sharing'):
    rules = [tuple(rule) for rule in config.layer_types]
  else:
    entry = own_code.spec(algorithm)
    depths = {name: config.algorithm[name] for name in entry.depths}
    # Whatever the algorithm: they belong to the network.
    count = config.algorithm.pretrained_layers
    trained = len(layers) - count
    pretrained = layer_types.by_depth(
      layers, [(layer_types.PRETRAINED, count), (layer_types.COMMON, trained)]
    )
    flat = config_lib.flatten(config)
    own = {
      name: flat[config_lib.own_field(algorithm, name)]
      for name in entry.leaf_settings
    }
    with fields.named(fields.of_algorithm(algorithm)):
      of_leaves = entry.leaf_rules(**own)
    free = [p for p in paths if p.split('/')[0] in layers[count:]]
    rules = [
      *pretrained[:count],
      *layer_types.matching(of_leaves, free),
      *entry.label_rules(layers[count:], **depths),
    ]
  if not centralized:
    return rules
  return [
    (p, layer_types.TASK if label == layer_types.PERSONAL else label)
    for p, label in rules
  ]


def own_settings(
  config: ml_collections.ConfigDict, algorithm: str
) -> dict[str, Any]:
  """The settings that are an algorithm's own, by name."""
  flat = config_lib.flatten(config)
  return {
    setting: flat[config_lib.own_field(algorithm, setting)]
    for setting in own_code.spec(algorithm).defaults
  }


def further_owners(
  config: ml_collections.ConfigDict, algorithm: str
) -> tuple[dict[str, federation_lib.Owner], dict[str, int]]:
  """Owners of all layer types, and how many of those an algorithm adds."""
  entry = own_code.spec(algorithm)
  counts = dict(entry.owners(own_settings(config, algorithm)))
  more = {name: federation_lib.Owner(name) for name in counts}
  return {**federation_lib.OWNERS, **more}, counts


class Network(NamedTuple):
  """A network, its label rules and what its pre-trained part computed.

  Attributes:
    full: The whole network, on examples as they come.
    model: What rounds run: without pre-trained stages at the input.
    rules: Label rules of `model`.
    pretrained: Values of the pre-trained layers, None if there are none.
    features: `[N, ...]`, the input of `model`.
    prefix_params: Parameters of the stages that were split off.
  """

  full: models.Model
  model: models.Model
  rules: layer_types.Rules
  pretrained: Any
  features: np.ndarray
  prefix_params: dict[str, Any]


@fields.named()
def build_network(
  config: ml_collections.ConfigDict,
  source: datasets.Source,
  algorithm: str,
  centralized: bool = False,
) -> Network:
  """Builds the network and runs its pre-trained prefix once.

  Args:
    config: Of the case.
    source: The data.
    algorithm: Whose label rules to use.
    centralized: See `label_rules`.

  Raises:
    ValueError: If a setting is no good, or pre-trained layers have no values.
  """
  flat = config_lib.flatten(config)
  for field, value in source.settings.items():
    if flat.get(field) != value:
      raise ValueError(
        f'Expected the same {field} for all cases and points, which share the '
        f'data, got {flat.get(field)!r} beside {value!r}; run two experiments.'
      )
  model = build_model(config, source)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  example = jax.ShapeDtypeStruct((1, *source.features.shape[1:]), np.float32)
  order = layer_types.use_order(model.apply, shapes, example)
  layers = layer_types.modules(order)
  paths = layer_types.paths(shapes)
  rules = label_rules(config, algorithm, layers, centralized, paths)
  labels = layer_types.label_params(
    shapes,
    rules,
    [*further_owners(config, algorithm)[0], layer_types.PRETRAINED],
  )
  if layer_types.PRETRAINED not in jax.tree.leaves(labels):
    if source.backbone is None:
      return Network(model, model, rules, None, source.features, {})
    full, params = _with_backbone(
      source.backbone, model, config.data.standardize
    )
    return Network(full, model, rules, None, source.features, params)
  if source.backbone is not None:
    raise ValueError(
      'Expected no pretrained layers behind a backbone, which is pre-trained '
      f'itself, got both (model.backbone is {source.backbone.name!r}); set '
      'algorithm.pretrained_layers=0.'
    )
  if not config.model.pretrained:
    raise ValueError(
      'Some layers are labelled pretrained; name the folder with their '
      f'parameters in model.pretrained ({__package__}.export makes one).'
    )
  if config.data.standardize:
    raise ValueError(
      'Expected data.standardize=False with pretrained layers, whose outputs '
      'are computed once for all seeds, got True.'
    )
  pretrained, _ = checkpoints.load_params(config.model.pretrained)
  prefix, rest = models.base.split_prefix(model, labels)
  if not prefix.stages:
    return Network(model, model, rules, pretrained, source.features, {})
  frozen = federation_lib.pretrained_values(
    {name: shapes[name] for name, _ in prefix.stages}, pretrained
  )
  outputs = features_lib.precompute(
    functools.partial(prefix.apply, frozen), source.features
  )
  rest_labels = {name: labels[name] for name, _ in rest.stages}
  return Network(
    model,
    rest,
    layer_types.exact_rules(rest_labels),
    pretrained,
    outputs,
    frozen,
  )


def _with_backbone(
  backbone: datasets.Backbone, model: models.Model, standardize: bool
) -> tuple[models.Model, dict[str, Any]]:
  """The backbone as one stage in front of a network, and its parameters.

  Where its outputs are standardized, that is the stage `STANDARDIZE`, whose
  parameters `mean` and `scale` belong to a seed and are for the caller to add.
  """
  params = {backbone.name: backbone.params}
  stages = [(backbone.name, backbone.model.apply)]
  if standardize:
    stages.append((STANDARDIZE, lambda p, x: (x - p['mean']) * p['scale']))
  init = lambda key: {**params, **model.init(key)}
  whole = models.base.chain(init, (*stages, *model.stages), model.train_stages)
  return whole, params


def _with_features(
  data: dataset_lib.FederatedDataset, features: np.ndarray
) -> dataset_lib.FederatedDataset:
  """The same data set with other features of its examples."""
  if features is data.examples.features:
    return data
  examples = dataclasses.replace(data.examples, features=features)
  return dataclasses.replace(data, examples=examples)


def make_algorithm(
  config: ml_collections.ConfigDict,
  algorithm: str,
  task_devices: int = 1,
  runs_at_once: int = 1,
  centralized: bool = False,
) -> program.MakeAlgorithm:
  """`(federation, settings) -> Algorithm`; settings replace config fields.

  Args:
    config: Of the case.
    algorithm: Its name.
    task_devices: See `program.Case`.
    runs_at_once: The runs that share a device's memory.
    centralized: Whether there are no clients that could drop out.
  """
  budget = config.execution.memory_mb * 10**6 or execution_lib.memory_budget()
  entry = own_code.spec(algorithm)
  more = further_owners(config, algorithm)[1]

  def of_types(values):
    """Values by layer type; a type that is added has those of `common`."""
    return {**values, **dict.fromkeys(more, values[layer_types.COMMON])}

  def make(federation, settings: Settings):
    def value(field):
      section = config
      for name in field.split('.'):
        section = section[name]
      return settings.get(field, section)

    optimizer = optimizers.get(
      'client.optimizer',
      config.client.optimizer,
      value('client.momentum'),
      value('client.weight_decay'),
    )
    if config.faults.nonfinite == faults.CLIP:
      optimizer = faults.Clipped(optimizer, value('faults.clip_norm'))
    local = local_optimizers.LocalSgd(
      optimizer=optimizer,
      learning_rate=optimizers.schedule(
        config.client.schedule,
        value('client.learning_rate'),
        value('client.decay'),
        config.run.rounds,
      ),
      batch_size=config.client.batch_size,
      epochs=value('client.local_epochs'),
      keep_optimizer_state=config.client.keep_optimizer_state,
    )
    server = {
      name: server_optimizers.ServerOptimizer(
        optimizers.get(
          f'server.{name}.optimizer',
          config.server[name].optimizer,
          value(f'server.{name}.momentum'),
        ),
        value(f'server.{name}.learning_rate'),
      )
      for name in config.server
    }
    own = {
      name: value(config_lib.own_field(algorithm, name)) for name in entry.own
    }
    settings_of_round = round_settings.RoundSettings(
      clients_per_task=config.cohort.clients_per_task,
      slots=config.cohort.slots,
      weighting=of_types(config.aggregation.to_dict()),
      reducer=of_types(
        {
          name: robust_aggregators.get(
            config.reducer[name],
            f'reducer.{name}',
            **{
              k: v
              for k, v in config.reducer.items()
              if k not in (*config.server, 'within_tasks')
            },
          )
          for name in config.server
        }
      ),
      reduce_within_tasks=config.reducer.within_tasks,
      server=of_types(server),
      attack=attacks.get(config.attack.name, config.attack.scale),
      balancing=balancing.places(
        {place: config.balancing[place] for place in balancing.PLACES},
        {name: value(f'balancing.{name}') for name in balancing.SETTINGS},
        config.balancing.weights,
      ),
      skip_nonfinite=config.faults.nonfinite != faults.STOP,
      placement=round_settings.Placement(
        execution=config.execution.name,
        memory_budget=budget // runs_at_once,
        low_rank_below=config.execution.low_rank_below,
        client_axis=program.CLIENT_AXIS,
        task_axis=program.TASK_AXIS if task_devices > 1 else None,
      ),
    )
    built = entry.build(federation, local, settings_of_round, **own)
    takes_part = None
    if not centralized:
      takes_part = _participation(
        config,
        federation,
        built.messages,
        value,
        any(map(_is_of_it, settings)),
      )
    if takes_part is None:
      return built
    settings_of_round = dataclasses.replace(
      settings_of_round, participation=takes_part
    )
    return entry.build(federation, local, settings_of_round, **own)

  return make


def _is_of_it(field: str) -> bool:
  """Whether a field is one of `participation`."""
  return field.startswith('participation.')


def _participation(
  config, federation, messages_fn, value, is_swept
) -> participation.Participation | None:
  """How clients take part; None if all of them do in full."""
  given = config.participation
  probabilities = (given.dropout, given.late, given.partial)
  if not (given.clock or is_swept or any(probabilities)):
    return None
  clock = None
  if given.clock:
    messages = messages_fn()
    once, each_slot = (
      sum(
        sum(communication.cohort_bytes(federation, way, *counts).values())
        for way in (messages.up, messages.down)
      )
      for counts in ((1, 0), (0, 1))
    )
    clock = participation.Clock(
      bytes_once=once,
      bytes_each_slot=each_slot,
      batch_size=config.client.batch_size,
      epochs=value('client.local_epochs'),
      at_deadline=given.at_deadline,
      **{name: value(f'participation.{name}') for name in _OF_CLOCK},
    )
  return participation.Participation(
    **{name: value(f'participation.{name}') for name in _SHARES}, clock=clock
  )


def check(config: ml_collections.ConfigDict) -> None:
  """Raises a ValueError for a number that no experiment can have."""
  checks.check(config)
  rules = {
    'run.rounds': 1,
    'run.seeds': 1,
    'run.first_seed': 0,
    'run.evaluate_every': 1,
    'client.batch_size': 0,
    'client.local_epochs': 1,
    'data.clients': 1,
    'data.tasks_per_client': 1,
    'checkpoint.every_rounds': 0,
    'execution.memory_mb': 0,
    'execution.task_devices': 1,
    'execution.low_rank_below': 0,
    'checkpoint.keep': 1,
  }
  flat = config_lib.flatten(config)
  for field, least in rules.items():
    if flat[field] < least:
      raise ValueError(f'Expected {field} >= {least}, got {flat[field]}.')
  if config.execution.compile_effort not in ('high', 'low'):
    raise ValueError(
      "Expected execution.compile_effort to be 'high' or 'low', got "
      f'{config.execution.compile_effort!r}.'
    )
  choices = {
    'report.view': ('pooled', 'client'),
    'execution.clients_on': ('device', 'host'),
  }
  for field, known in choices.items():
    if flat[field] not in known:
      raise ValueError(
        f'Expected {field} to be one of {", ".join(known)}, got '
        f'{flat[field]!r}.'
      )
  if config.data.name in datasets.OF_THE_PACKAGE:
    checks.check_metric_names(config, evaluation.METRICS, 'one of')
  fractions = (config.data.test_fraction, config.data.validation_fraction)
  if min(fractions) < 0 or sum(fractions) >= 1:
    raise ValueError(
      'Expected data.test_fraction and data.validation_fraction >= 0 with a '
      f'sum below 1, got {fractions[0]} and {fractions[1]}.'
    )
  if config.data.test_fraction == 0:
    raise ValueError('Expected data.test_fraction > 0, got 0.')


def _stack(
  datasets_: Sequence[dataset_lib.FederatedDataset], repeats: int
) -> partitions.Partition:
  """Stacks the seeds' partitions, all of them again for every point."""
  stacked = partitions.stack_partitions([d.partition for d in datasets_])
  return jax.tree.map(
    lambda x: np.tile(x, (repeats,) + (1,) * (x.ndim - 1)), stacked
  )


def mark_attackers(
  data: dataset_lib.FederatedDataset,
  config: ml_collections.ConfigDict,
  seed: int,
) -> dataset_lib.FederatedDataset:
  """The data set in which the clients of `config.attack` are attackers."""
  if attacks.get(config.attack.name) is None:
    return data
  return attacks.mark(
    data, config.attack.share, seed, by_task=config.attack.by_task
  )


@fields.named()
def build(
  name: str,
  config: ml_collections.ConfigDict,
  source: datasets.Source,
  seeds: Sequence[int],
  points: Sequence[Settings] = ({},),
  federate: FederateFn = datasets.federate,
) -> program.Case:
  """Builds a case for every point and seed.

  Args:
    name: A row of the table, not the majority class.
    config: The case's own, see `cases.resolve`.
    source: The data.
    seeds: Every point is run with each.
    points: Values of `mapped_fields`; the same fields for every point.
    federate: `(source, data, seed) -> data set`: who has which examples.

  Raises:
    ValueError: If a setting is no good.
  """
  check(config)
  checks.check_metrics(config, source.tasks)
  case = cases_lib.get(name)
  federated = [
    mark_attackers(federate(source, config.data, seed), config, seed)
    for seed in seeds
  ]
  train = federated
  if case.centralized:
    train = [
      datasets.centralize(
        data, case.centralized, source.shared_labels, source.unsound
      )
      for data in federated
    ]
  algorithm = case.algorithm
  if case.centralized == cases_lib.JOINT and not source.shared_labels:
    algorithm = 'fedavg'  # One task, so that task layers would be common.
  network = build_network(config, source, algorithm, bool(case.centralized))
  features = network.features
  owners, num_owners = further_owners(config, algorithm)
  train, federated = (
    [_with_features(data, features).with_owners(num_owners) for data in group]
    for group in (train, federated)
  )
  federation, test_federation = (
    federation_lib.Federation.create(
      network.model,
      network.rules,
      data,
      pretrained=network.pretrained,
      task_weights=config.client.task_weights or None,
      initialization=config.algorithm.initialization,
      owners=owners,
      num_owners=num_owners,
    )
    for data in (train[0], federated[0])
  )
  runs = program.Run(
    key=jax.vmap(jax.random.key)(
      jnp.array(list(seeds) * len(points), jnp.uint32)
    ),
    train=_stack(train, len(points)),
    test=_stack(federated, len(points)),
    settings={
      field: jnp.repeat(jnp.array([p[field] for p in points]), len(seeds))
      for field in points[0]
    },
  )
  # A centralized client has several tasks.
  task_devices = 1 if case.centralized else config.execution.task_devices
  available = jax.local_device_count()
  if available % task_devices or (
    task_devices > 1 and config.execution.clients_on != 'device'
  ):
    raise ValueError(
      'Expected execution.task_devices to be 1, or to divide the '
      f"{available} devices with execution.clients_on='device', got "
      f'{task_devices}.'
    )
  task_devices_lib.check(
    federation,
    cohorts.check_clients_per_task(
      config.cohort.clients_per_task,
      federation.group_sizes,
      [task.name for task in federation.tasks],
    ),
    task_devices,
  )
  entry = own_code.spec(algorithm)
  own = own_settings(config, algorithm)
  reason = '' if points[0] else entry.equals(own, federation)
  if config.balancing.client != balancing.NONE and federation.num_slots == 1:
    reason = reason or 'has clients of one task: balancing.client does nothing'
  runs_at_once = 1
  if jax.default_backend() != 'cpu':  # There they are mapped at once.
    runs_at_once = -(-len(seeds) * len(points) // available)
  make = make_algorithm(
    config, algorithm, task_devices, runs_at_once, bool(case.centralized)
  )
  names = fields.of_algorithm(algorithm)
  with fields.named(names):  # Before anything is compiled.
    make(federation, {})
  return program.Case(
    data=train[0],
    test_data=federated[0],
    federation=federation,
    test_federation=test_federation,
    make_algorithm=make,
    runs=runs,
    execution=execution_lib.resolve(
      execution_lib.AUTO
      if execution_lib.is_low_rank(config.execution.name)
      else config.execution.name
    ),
    prefix_parameters=sum(
      leaf.size for leaf in jax.tree.leaves(network.prefix_params)
    ),
    algorithm=algorithm,
    task_devices=task_devices,
    warning=f'{name} {fields.translated(reason, names)}' if reason else '',
  )
