"""Networks: built from a config, with label rules and pre-trained layers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from ..configuration import config as config_lib
from ..configuration import fields
from ..configuration import hints
from ..configuration import own_code
from ..configuration import schema
from . import checks
from . import own_models
from . import sources
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import precision
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import features as features_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.models import language
from fmtl_jax.storage import checkpoints

STANDARDIZE = 'standardize'


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

  def whole(self, apply_fn: Callable[[Any, Any], Any]) -> Any:
    """The apply function of `full`, with another one for that of `model`."""
    stages = self.full.stages[: len(self.full.stages) - len(self.model.stages)]

    def apply(params, x):
      for name, stage in stages:
        x = stage(params[name], x)
      rest = {k: v for k, v in params.items() if k not in dict(stages)}
      return apply_fn(rest, x)

    return apply


def build_model(
  config: ml_collections.ConfigDict, source: sources.Source
) -> models.Model:
  """The network that `model.*` describes, wide enough for every task."""
  shape = sources.feature_shape(source)
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
  if config.model.name == 'linear':
    return models.linear(shape, width, config.model.intercept)
  if config.model.name in language.NAMES:
    return models.sequential(language_stages(config, source))
  if own_code.is_own(config.model.name):
    return own_models.build(config.model, shape, width)
  raise ValueError(
    f'Expected model.name to be one of {", ".join(checks.MODELS)}, got '
    f'{config.model.name!r}.'
  )


def language_stages(
  config: ml_collections.ConfigDict, source: sources.Source
) -> dict[str, models.base.ModuleFn]:
  """What builds the stages of a language network.

  Raises:
    ValueError: If examples are no tokens.
  """
  tokens = tasks_lib.TOKENS
  if any(task.definition is not tokens for task in source.tasks):
    raise ValueError(
      f'Expected model.name={config.model.name} with a data set of tokens, got '
      f'{config.data.name!r}; choose another model.'
    )
  width = tasks_lib.num_outputs(source.tasks)
  return language.stages(
    config.model.name,
    width,
    config.model.embedding,
    config.model.hidden,
    config.model.heads,
    width,
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
      name: flat[schema.own_field(algorithm, name)]
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
    setting: flat[schema.own_field(algorithm, setting)]
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


@fields.named()
def build_network(
  config: ml_collections.ConfigDict,
  source: sources.Source,
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
    ValueError: If a setting is invalid, or pre-trained layers have no values.
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
  example = jax.ShapeDtypeStruct(
    (1, *source.features.shape[1:]), sources.feature_type(source)
  )
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
      f'parameters in model.pretrained ({hints.module("export")} makes one).'
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

  def apply(features):
    with precision.products(config.precision.matmul or None):
      return prefix.apply(frozen, features)

  outputs = features_lib.precompute(apply, source.features)
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
  backbone: sources.Backbone, model: models.Model, standardize: bool
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
