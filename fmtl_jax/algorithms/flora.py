"""FLoRA: adapters whose products are averaged, by stacking their factors.

In each round a client draws fresh adapters (`federation.adapters`), A_m random
and B_m zero, trains them and the layers behind the frozen ones, and sends both
factors. The server stacks them, which gives the mean of the products itself,

  Delta <- Delta + alpha / r [A_1 ... A_M] [p_1 B_1; ...; p_M B_M]
         = Delta + sum_m p_m alpha / r A_m B_m,

of any ranks, and clients begin the next round from W + Delta, which predicts.
Delta is a common leaf beside the kernel, `kernel_adapter/delta`, of which a
message holds the two factors instead.

With `classes` > 1 clients have unlike ranks: that of class c is r / 2^c,
rounded up, of a client whose id is c modulo `classes`. Its other columns of A
are zero, so that no gradient ever reaches them.

Deviations: Clients are sent Delta, not the stack, which grows with the cohort
and which a client that missed a round would miss. Factors of unlike ranks are
sent with their zeros.

References:
  Wang et al. (2024), FLoRA: federated fine-tuning large language models with
  heterogeneous low-rank adaptations, https://arxiv.org/abs/2409.05976,
  Algorithm 1 (unchecked).
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax import federation as federation_lib
from fmtl_jax import random_bits
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import fedit
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import adapters
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings

Tree = Any
label_rules = multi_task_fl.label_rules


def leaf_rules() -> layer_types.Rules:
  """What was added is common; factors are drawn anew, and never kept."""
  return [
    (adapters.OF_DELTA, layer_types.COMMON),
    (adapters.OF_A, layer_types.PRETRAINED),
    (adapters.OF_B, layer_types.PRETRAINED),
  ]


def flora(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  classes: int = 1,
) -> algorithm_lib.Algorithm:
  """Builds FLoRA, of a network as of `adapters.with_delta`.

  Args:
    federation: Network, layer types and tasks; where the network has adapters,
      their `delta` is common, and both factors are pre-trained.
    local: Settings of local training.
    settings: Settings of the round.
    classes: How many ranks there are.

  Raises:
    ValueError: If `classes` is less than 1, adapters have other layer types, or
      an optimizer's state is kept, which would be of other adapters.
  """
  local.refuse_privacy(SPEC.name)
  SPEC.check(classes=classes)
  found = adapters.pairs(federation.labels)
  wanted = {
    adapters.A: layer_types.PRETRAINED,
    adapters.B: layer_types.PRETRAINED,
    adapters.DELTA: layer_types.COMMON,
  }
  for path, labels in found:
    given = {leaf: labels.get(leaf, 'missing') for leaf in wanted}
    if given != wanted:
      raise ValueError(
        'Expected flora to have adapters with layer types '
        f'{_listed(wanted)}, got {_listed(given)} of {path!r}; label them by '
        '`flora.leaf_rules`, of a network as of `adapters.with_delta`.'
      )
  if found and local.keep_optimizer_state:
    raise ValueError(
      'Expected `keep_optimizer_state`=False with flora, whose adapters are '
      'new in each round, got True.'
    )
  if not found:
    update = training.local_sgd(federation, local)
  else:
    update = _stacked(federation, local, classes)
  return federated_averaging.federated_averaging(federation, update, settings)


def _listed(names):
  return ', '.join(f'{leaf}: {name}' for leaf, name in names.items())


def _stacked(federation, local, classes):
  """The client update whose message are factors, and whose update products."""
  train = training.local_training(_of_factors(federation), local)

  def run(context):
    draw_key, key = random_bits.split(context.key)
    class_ = context.data.client.client_id % classes
    fresh = _drawn(draw_key, context.frozen, class_)
    # The view without what is added, and with factors in its place.
    params = _replaced(context.view, fresh, {adapters.DELTA: None})
    kept = {adapters.A: None, adapters.B: None}
    added = _leaves(context.view, adapters.DELTA)
    frozen = _replaced(context.frozen, added, kept)
    trained, _, metrics = train(
      context._replace(key=key, frozen=frozen), params
    )
    moved = jax.tree.map(jnp.subtract, trained, params)
    scales = _leaves(context.frozen, adapters.SCALE)
    products = {
      path: {
        adapters.DELTA: adapters.product(adapter | scales[path]).reshape(
          added[path][adapters.DELTA].shape
        )
      }
      for path, adapter in adapters.pairs(trained)
    }
    update = _replaced(moved, products, kept)
    return client_updates.ClientResult(update, (), metrics)

  def message(update):
    """Both factors at the place of what is added."""
    shapes = dict(adapters.pairs(federation.shapes))
    sent = {
      path: {
        adapters.DELTA: tuple(
          jnp.zeros(shapes[path][leaf].shape, shapes[path][leaf].dtype)
          for leaf in (adapters.A, adapters.B)
        )
      }
      for path, _ in adapters.pairs(update)
    }
    return _replaced(update, sent, {})

  return client_updates.ClientUpdate(lambda _: (), run, message=message)


def _of_factors(federation):
  """The federation in which factors are trained, and what is added is not."""

  def relabelled(path, label):
    name = path[-1].key
    parent = path[-2].key if len(path) > 1 else ''
    if not parent.endswith(adapters.SUFFIX):
      return label
    return {
      adapters.A: layer_types.COMMON,
      adapters.B: layer_types.COMMON,
      adapters.DELTA: layer_types.PRETRAINED,
    }.get(name, label)

  labels = jax.tree.map_with_path(relabelled, federation.labels)
  types, _ = layer_types.split(labels, labels)
  statistics = jax.tree.map(
    lambda label, old: None if label == layer_types.PRETRAINED else bool(old),
    labels,
    federation.statistics,
  )
  return dataclasses.replace(
    federation, labels=labels, layer_types=types, statistics=statistics
  )


def _drawn(key, frozen, class_):
  """Fresh factors, by the path of their kernel, of the rank of a class."""
  found = {}
  for number, (path, adapter) in enumerate(adapters.pairs(frozen)):
    inputs, rank = adapter[adapters.A].shape
    dtype = adapter[adapters.A].dtype
    own_key = jax.random.fold_in(random_bits.narrow(key), number)
    a = adapters.draw_a(own_key, inputs, rank, dtype)
    own_rank = -(-rank // 2 ** class_.astype(jnp.int32))
    found[path] = {
      adapters.A: jnp.where(jnp.arange(rank) < own_rank, a, 0),
      adapters.B: jnp.zeros_like(adapter[adapters.B]),
    }
  return found


def _leaves(tree, name):
  """One leaf of each adapter, by the path of its kernel."""
  return {path: {name: adapter[name]} for path, adapter in adapters.pairs(tree)}


def _replaced(tree, new, always):
  """A tree with other leaves in its adapters.

  Args:
    tree: Like parameters.
    new: Leaves by name, by the path of the kernel.
    always: Leaves by name, of all adapters.
  """

  def below(tree, path):
    return {
      name: (
        part | always | new.get(path + name.removesuffix(adapters.SUFFIX), {})
        if name.endswith(adapters.SUFFIX)
        else below(part, f'{path}{name}/')
        if isinstance(part, dict)
        else part
      )
      for name, part in tree.items()
    }

  return below(tree, '')


def wraps(
  model: Sequence[Any],
  rules: layer_types.Rules,
  unused_tasks: Any,
  unused_own: Any,
) -> tuple[Any, layer_types.Rules]:
  """The network whose adapters have what was added, which is common."""
  shapes = jax.eval_shape(model[0], jax.random.key(0))
  if not adapters.pairs(shapes):
    return model, rules
  added = [(adapters.OF_DELTA, layer_types.COMMON)]
  return adapters.with_delta(model), [*added, *rules]


SPEC = specs.Spec(
  name='flora',
  label='FLoRA',
  doc=__doc__,
  family=specs.GLOBAL,
  year=2024,
  build=flora,
  label_rules=label_rules,
  leaf_rules=leaf_rules,
  depths=('task_layers', 'personal_layers'),
  settings={
    'classes': specs.Setting(
      help='Unlike ranks: each class of clients has half of that before.',
      least=1,
      examples=(1, 2),
    )
  },
  network=fedit.NETWORK,
  degenerate=(fedit.NOT_ADAPTED,),
  wraps=wraps,
)
