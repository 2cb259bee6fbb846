"""Networks: built from a config, with label rules and pre-trained layers."""

from collections.abc import Callable, Sequence
import re
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
from . import modal_sources
from . import own_models
from . import party_sources
from . import sources
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import precision
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import features as features_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import adapters
from fmtl_jax.federation import modalities
from fmtl_jax.models import language
from fmtl_jax.models import layers as layers_lib
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
    merged: `full` without adapters, whose parameters are those of `full` merged
      (`adapters.merge_adapters`); None where there are no adapters.
  """

  full: models.Model
  model: models.Model
  rules: layer_types.Rules
  pretrained: Any
  features: np.ndarray
  prefix_params: dict[str, Any]
  merged: models.Model | None = None

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
  if config.model.name == 'vertical':
    return party_sources.network(config.model, source, width)
  if config.model.name == 'multi_modal':
    return _multi_modal(config, source, width)
  if config.model.name in language.NAMES:
    return models.sequential(language_stages(config, source))
  if own_code.is_own(config.model.name):
    return own_models.build(config.model, shape, width)
  raise ValueError(
    f'Expected model.name to be one of {", ".join(checks.MODELS)}, got '
    f'{config.model.name!r}.'
  )


def _multi_modal(config, source, width):
  """A network with an encoder for each modality of the source."""
  if source.modalities is None:
    raise ValueError(
      'Expected data.modalities with model.name=multi_modal, which has an '
      'encoder for each, got none.'
    )
  if config.model.normalization != layers_lib.NONE:
    raise ValueError(
      'Expected model.normalization=none with model.name=multi_modal, got '
      f'{config.model.normalization!r}.'
    )
  return models.multi_modal(
    source.modalities.shapes,
    config.model.encoder,
    config.model.hidden,
    width,
    config.model.fusion,
    config.model.channels,
    config.model.window,
    config.model.convolution,
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
  frozen_layers: int | None = None,
) -> layer_types.Rules:
  """The rules in `layer_types`, or the algorithm's own by depth.

  Rules in the config of a case (`cases.resolve`) are for all of its layers; an
  algorithm's own are for those behind the ones that are pre-trained. What an
  algorithm says of leaves inside layers comes before either. A centralized
  model has no clients: what would be personal belongs to the task there.
  Rules for leaves inside layers need the `paths` of the parameters. Adapters in
  pre-trained layers are of the type of the first layer behind these, unless the
  algorithm says otherwise. `frozen_layers`, the number of pre-trained layers,
  is that of the config by default.
  """
  rules: layer_types.Rules
  entry = own_code.spec(algorithm)
  flat = config_lib.flatten(config)
  own = {
    name: flat[schema.own_field(algorithm, name)]
    for name in entry.leaf_settings
  }
  with fields.named(fields.of_algorithm(algorithm)):
    of_leaves = entry.leaf_rules(**own)
  if config.layer_types:
    given = [tuple(rule) for rule in config.layer_types]
    rules = [*layer_types.matching(of_leaves, paths), *given]
  else:
    depths = {name: config.algorithm[name] for name in entry.depths}
    # Whatever the algorithm: they belong to the network.
    count = config.algorithm.pretrained_layers
    count = count if frozen_layers is None else frozen_layers
    trained = len(layers) - count
    pretrained = layer_types.by_depth(
      layers, [(layer_types.PRETRAINED, count), (layer_types.COMMON, trained)]
    )
    of_adapters = set(adapters.trained_paths(paths))
    free = [
      path
      for path in paths
      if path.split('/')[0] in layers[count:] and path not in of_adapters
    ]
    by_depth = entry.label_rules(layers[count:], **depths)
    rules = [
      *_of_adapters(of_leaves, by_depth, paths),
      *pretrained[:count],
      *layer_types.matching(of_leaves, free),
      *by_depth,
    ]
  if not centralized:
    return rules
  return [
    (p, layer_types.TASK if label == layer_types.PERSONAL else label)
    for p, label in rules
  ]


def _of_adapters(of_leaves, by_depth, paths):
  """Rules of adapters: the algorithm's, then those of the layers behind."""
  free = adapters.trained_paths(paths)
  if not free:
    return []
  own = layer_types.matching(of_leaves, free)
  patterns = [pattern for pattern, _ in own]
  others = [p for p in free if not any(re.fullmatch(r, p) for r in patterns)]
  first = by_depth[0][1] if by_depth else layer_types.COMMON
  return [
    *own,
    *((adapters.TRAINED, first) for _ in others[:1]),
    (adapters.OF_SCALE, layer_types.PRETRAINED),
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
  """Owners of layer types without modalities; how many an algorithm adds."""
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
  behind = build_model(config, source)
  plain, model, given = _adapted(config, source.backbone, behind)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  example = jax.ShapeDtypeStruct(
    (1, *source.features.shape[1:]), sources.feature_type(source)
  )
  order = layer_types.use_order(model.apply, shapes, example)
  layers = layer_types.modules(order)
  frozen_layers = None
  if source.backbone is not None and source.backbone.rest is not None:
    frozen_layers = sum(name in source.backbone.rest_params for name in layers)
  rules = label_rules(
    *(config, algorithm, layers, centralized),
    layer_types.paths(shapes),
    frozen_layers,
  )
  known = [*further_owners(config, algorithm)[0], layer_types.PRETRAINED]
  of_source, _ = modal_sources.owners(source, centralized)
  if of_source:
    rules = modalities.rules(rules, shapes, known)
  labels = layer_types.label_params(shapes, rules, [*known, *of_source])
  if given is not None:
    _check_adapters(labels)
  if layer_types.PRETRAINED not in jax.tree.leaves(labels):
    if source.backbone is None:
      return Network(model, model, rules, None, source.features, {})
    full, params = _with_backbone(
      source.backbone, model, config.data.standardize
    )
    return Network(full, model, rules, None, source.features, params)
  pretrained = _pretrained(config, source.backbone)
  full, merged, params = model, plain, {}
  if source.backbone is not None:
    (full, params), (merged, _) = (
      _with_backbone(source.backbone, network, False)
      for network in (model, plain)
    )
  if given is None:
    merged = None
  else:
    drawn = given.initial(
      jax.random.key(0), jax.eval_shape(plain.init, jax.random.key(0))
    )
    pretrained = adapters.put(pretrained, drawn)
  prefix, rest = models.base.split_prefix(model, _without_adapters(labels))
  if not prefix.stages:
    return Network(
      full, model, rules, pretrained, source.features, params, merged
    )
  frozen = federation_lib.pretrained_values(
    {name: shapes[name] for name, _ in prefix.stages}, pretrained
  )

  def apply(features):
    with precision.products(config.precision.matmul or None):
      return prefix.apply(frozen, features)

  outputs = features_lib.precompute(apply, source.features)
  rest_labels = {name: labels[name] for name, _ in rest.stages}
  return Network(
    full,
    rest,
    layer_types.exact_rules(rest_labels),
    pretrained,
    outputs,
    {**params, **frozen},
    merged,
  )


def _adapted(config, backbone, behind):
  """A network with the rest of a backbone, without and with adapters.

  Args:
    config: Of the case.
    backbone: Of the source, None if there is none.
    behind: The network that the config describes.

  Returns:
    The network without adapters, with them, and the adapters, None if none.
  """
  plain = behind
  if backbone is not None and backbone.rest is not None:
    rest = backbone.rest
    init = lambda key: {**rest.init(key), **behind.init(key)}
    stages = (*rest.stages, *behind.stages)
    plain = models.base.chain(init, stages, behind.train_stages)
  if not config.model.adapters.targets:
    return plain, plain, None
  with fields.named(fields.OF_ADAPTERS):
    given = models.Adapters(**config.model.adapters.to_dict())
    return plain, given.wrap(plain), given


def _without_adapters(labels):
  """Labels by which no stage with adapters is frozen, whatever theirs are."""

  def label(path, own):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return layer_types.COMMON if adapters.trained_paths([name]) else own

  return jax.tree.map_with_path(label, labels)


def _check_adapters(labels):
  """Raises a ValueError for adapters of kernels that are trained themselves."""
  found = dict(
    zip(layer_types.paths(labels), jax.tree.leaves(labels), strict=True)
  )
  for path, _ in adapters.pairs(labels):
    if found[path] != layer_types.PRETRAINED:
      raise ValueError(
        'Expected model.adapters.targets to be kernels of pretrained layers, '
        f'got {path!r}, which is {found[path]}; set '
        'algorithm.pretrained_layers or narrow the patterns.'
      )


def _pretrained(config, backbone):
  """Values of pre-trained layers: of a folder, or the rest of a backbone.

  Raises:
    ValueError: If there are none, or what they are for is refused.
  """
  if backbone is not None and backbone.rest is None:
    raise ValueError(
      'Expected no pretrained layers behind a backbone, which is pre-trained '
      f'itself, got both (model.backbone is {backbone.name!r}); set '
      'algorithm.pretrained_layers=0.'
    )
  if backbone is None and not config.model.pretrained:
    raise ValueError(
      'Some layers are labelled pretrained; name the folder with their '
      f'parameters in model.pretrained ({hints.module("export")} makes one).'
    )
  if config.data.standardize:
    raise ValueError(
      'Expected data.standardize=False with pretrained layers, whose outputs '
      'are computed once for all seeds, got True.'
    )
  if backbone is not None:
    return backbone.rest_params
  return checkpoints.load_params(config.model.pretrained)[0]


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
