"""Local SGD with dense kernels in factored form, see `low_rank`.

The same updates as `training.local_sgd`, for clients that are mapped by
`vmap`: the products of all clients with a shared kernel are one.
"""

from collections.abc import Collection
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import federation as federation_lib
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.execution import low_rank
from fmtl_jax.federation import layer_types

Tree = Any

# A kernel is factored where its rows `n (d + h)` are below this share of `d h`.
# A CPU's time is that of operations. Measured on two cores: a round of kernels
# at 0.07 to 0.21 takes 0.4 of the time of `scan`, one whose first kernel is at
# 0.32 no less than `scan`. A GPU's is that of bytes, of which a step moves a
# kernel four times. Measured on an H200 beside `vmap`: at 0.11 a round of
# convolutions and one such kernel takes 0.72 of the time, at 0.25 0.94, one of
# dense layers at 0.32 0.86.
_WORTHWHILE = {'cpu': 0.25, 'gpu': 0.6}
# What is not factored runs as under `vmap`, on CPU slower than `scan`, by five
# for convolutions: most of the work has to be that of factored kernels. On a
# GPU `vmap` is the fastest of the others, and most of the bytes have to be.
MOST = 0.8


def worthwhile(platform: str = '') -> float:
  """Below which share of its size the rows of a factored kernel pay.

  Args:
    platform: `cpu`, `gpu` or `tpu`; by default that of JAX. A TPU, on which
      nothing was measured, has the number of CPUs.
  """
  platform = platform or jax.default_backend()
  return _WORTHWHILE.get(platform, _WORTHWHILE['cpu'])


@dataclasses.dataclass(frozen=True)
class Plan:
  """Which kernels are factored.

  Attributes:
    chosen: Bools over the trained parameters.
    reasons: By path, why a kernel is factored or not.
    batch_size: B.
    num_steps: The most steps that a client takes.
    share: Of what a batch takes, that of factored kernels: of its operations on
      a CPU, on others of the trained numbers.
    bytes_each: What a client takes in a step.
  """

  chosen: Tree
  reasons: dict[str, str]
  batch_size: int
  num_steps: int
  share: float
  bytes_each: int

  @property
  def any(self) -> bool:
    """Whether some kernel is factored."""
    return any(jax.tree.leaves(self.chosen))

  def pick(self, tree: Tree, chosen: bool) -> Tree:
    """The leaves of a view that are factored or not, None elsewhere."""
    return jax.tree.map(
      lambda is_chosen, leaf: leaf if is_chosen == chosen else None,
      self.chosen,
      tree,
    )

  @property
  def pays(self) -> bool:
    """Whether the round as a whole is faster for it."""
    return self.share > MOST


def plan(
  federation: federation_lib.Federation,
  settings: local_optimizers.LocalSgd,
  data: dataset_lib.FederatedDataset,
  summed: Collection[str],
  below: float | None = None,
) -> Plan:
  """Chooses the kernels to factor.

  Args:
    federation: Network, layer types and tasks.
    settings: Of local training.
    data: Gives the number of steps.
    summed: The layer types whose updates are only ever summed.
    below: See `worthwhile`, which it is by default.
  """
  below = worthwhile() if below is None else below
  max_size = max(data.partition.train.max_size, 1)
  batch_size = min(settings.batch_size or max_size, max_size)
  never = ''
  if federation.has_statistics:
    never = 'the network has batch normalization'
  elif not isinstance(settings.optimizer, local_optimizers.Sgd):
    never = 'the local optimizer is not declared to be linear'
  elif settings.keep_optimizer_state:
    never = 'the local optimizer keeps its state'
  elif not isinstance(settings.epochs, int):
    never = 'the number of epochs is not fixed'
  num_steps = 0
  if not never:
    assert isinstance(settings.epochs, int)
    num_steps = settings.epochs * -(-max_size // batch_size)
  features = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype),
    data.examples.features,
  )
  shapes = federation.shapes
  dense = low_rank.dense_kernels(federation.apply_fn, shapes, features)
  rows = num_steps * batch_size
  by_slot = _used_by_slot(federation, shapes, features)
  reasons: dict[str, str] = {}

  def choose(path, label, dense, shape):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if len(shape.shape) < 2:
      return False
    cost = rows * sum(shape.shape) / np.prod(shape.shape)
    reason = never
    if not never and not dense:
      reason = 'it is not the kernel of one dense layer'
    elif not never and label not in summed:
      reason = f'updates of {label} layers are needed one by one'
    elif not never and name in by_slot:
      reason = 'clients have several tasks'
    elif not never and cost > below:
      reason = f'its rows cost {cost:.2f} of its size, above {below:.2f}'
    reasons[name] = (
      f'not factored: {reason}'
      if reason
      else f'factored: its rows cost {cost:.2f} of its size'
    )
    return not reason

  chosen = jax.tree.map_with_path(
    lambda path, label, *leaves: (
      None if label is None else choose(path, label, *leaves)
    ),
    layer_types.split(federation.labels, federation.labels)[0],
    *(
      layer_types.split(tree, federation.labels)[0] for tree in (dense, shapes)
    ),
    is_leaf=lambda x: x is None,
  )
  work = low_rank.product_flops(federation.apply_fn, shapes, features)
  trained = layer_types.split(shapes, federation.labels)[0]
  factored, ordinary = 0, 0
  all_rows = 0
  for is_chosen, leaf in zip(
    jax.tree.leaves(chosen), jax.tree.leaves(trained), strict=True
  ):
    size = int(np.prod(leaf.shape))
    factored += size if is_chosen else 0
    ordinary += 0 if is_chosen else size
    all_rows += rows * sum(leaf.shape) if is_chosen else 0
  share = 2 * batch_size * factored / max(work, 1)
  if jax.default_backend() != 'cpu':
    share = factored / max(factored + ordinary, 1)
  return Plan(
    chosen=chosen,
    reasons=reasons,
    batch_size=batch_size,
    num_steps=num_steps,
    share=share,
    bytes_each=4 * (2 * all_rows + 4 * ordinary),
  )


def _used_by_slot(federation, shapes, features):
  """Paths that a client with several tasks uses once for each of them."""
  if federation.num_slots == 1:
    return set()
  order = layer_types.use_order(federation.apply_fn, shapes, features)
  per_slot = dict(
    zip(
      layer_types.paths(federation.per_slot),
      jax.tree.leaves(federation.per_slot),
      strict=True,
    )
  )
  first = next((i for i, path in enumerate(order) if per_slot[path]), None)
  return set() if first is None else set(order[first:])


def low_rank_sgd(
  federation: federation_lib.Federation,
  settings: local_optimizers.LocalSgd,
  proximal: local_optimizers.Schedule | None,
  plan: Plan,
) -> client_updates.ClientUpdate:
  """Builds the client update of `training.local_sgd`, factored.

  Args:
    federation: Network, layer types and tasks.
    settings: Settings of local training.
    proximal: As there.
    plan: Which kernels are factored; their updates are `low_rank.Update`.

  Returns:
    A client update to be mapped by `vmap` over the axis
    `execution.CLIENTS`.
  """
  federation = dataclasses.replace(
    federation, apply_fn=low_rank.factored(federation.apply_fn)
  )
  num_rows = plan.num_steps * plan.batch_size

  def run(context):
    view, active = context.view, context.active
    rate = local_optimizers.rate(settings.learning_rate, context.round)
    weight = proximal
    if proximal is not None:
      weight = local_optimizers.rate(proximal, context.round)
    grad_fn = jax.grad(
      _objective(federation, plan, weight), argnums=(0, 1), has_aux=True
    )
    tx = settings.optimizer(rate)
    start = jnp.zeros(1 + plan.num_steps).at[0].set(1)
    trained = {'params': plan.pick(view, False), 'coefficients': start}
    bases = plan.pick(view, True)
    probes = jax.tree.map(lambda base: _no_rows(base, plan.batch_size), bases)

    def step(carry, batch, number, is_step):
      trained, opt_state, factors, metrics = carry
      (grads, new_factors), sums = grad_fn(
        trained, probes, view, factors, context.frozen, batch, active
      )
      # A step's own rows come with a coefficient of one; a proximal term moves
      # all coefficients towards their first values.
      grads['coefficients'] = jnp.zeros_like(start).at[1 + number].set(1)
      if weight is not None:
        grads['coefficients'] += weight * (trained['coefficients'] - start)
      changes, new_opt_state = tx.update(grads, opt_state, trained)
      new = optax.apply_updates(trained, changes), new_opt_state
      trained, opt_state = jax.tree.map(
        lambda new, old: jnp.where(is_step, new, old), new, (trained, opt_state)
      )

      def write(rows, new):
        new = jnp.where(is_step, new, 0)
        first = number * plan.batch_size
        return jax.lax.dynamic_update_slice_in_dim(rows, new, first, axis=-2)

      factors = jax.tree.map(write, factors, new_factors)
      sums['steps'] = 1
      metrics = jax.tree.map(
        lambda total, new: (
          total + jnp.where(is_step, jnp.asarray(new, total.dtype), 0)
        ),
        metrics,
        sums,
      )
      return trained, opt_state, factors, metrics

    trained, _, factors, metrics = client_batches.for_each_batch(
      step,
      (
        trained,
        tx.init(trained),
        jax.tree.map(lambda base: _no_rows(base, num_rows), bases),
        training.zero_metrics(active),
      ),
      context.data,
      context.key,
      batch_size=settings.batch_size,
      epochs=settings.epochs,
      together=context.data.together,
    )
    return client_updates.ClientResult(
      update=_update(plan, view, trained, factors), state=(), metrics=metrics
    )

  return client_updates.ClientUpdate(lambda unused_view: (), run)


def _no_rows(base, count):
  """Factors of a kernel, with `count` rows of zeros."""
  *lead, inputs, outputs = base.shape
  rows = lambda width: jnp.zeros((*lead, count, width), base.dtype)
  return low_rank.Factors(rows(inputs), rows(outputs))


def _objective(federation, plan, proximal):
  """The client's objective, as a function of what `low_rank_sgd` trains.

  Its arguments are the trained tree (`params` of the other leaves, and the
  `coefficients` of all steps), the kernels' gradients as factors, the view
  that the client started from, the factors so far, and those of
  `Federation.objective`.
  """

  def objective(trained, gradients, start, factors, frozen, batch, active):
    coefficients = trained['coefficients']
    row_coefficients = jnp.repeat(coefficients[1:], plan.batch_size)

    def kernel(base, factors, gradient):
      lead = base.shape[:-2]
      spread = lambda x: jnp.broadcast_to(x, lead + x.shape).astype(base.dtype)
      return low_rank.Kernel(
        base=base,
        factors=factors,
        coefficients=spread(row_coefficients),
        scale=spread(coefficients[0]),
        gradient=gradient,
      )

    kernels = jax.tree.map(kernel, plan.pick(start, True), factors, gradients)
    params = jax.tree.map(
      lambda is_chosen, own, kernel: kernel if is_chosen else own,
      plan.chosen,
      trained['params'],
      kernels,
      is_leaf=lambda x: x is None,
    )
    loss, sums = federation.objective(params, frozen, batch, active)
    if proximal is not None:
      loss = loss + training.proximal_term(
        federation, trained['params'], plan.pick(start, False), proximal
      )
    return loss, sums

  return objective


def _update(plan, view, trained, factors):
  """New minus old; of factored kernels, a `low_rank.Update`."""
  coefficients = trained['coefficients']
  rows = jnp.repeat(coefficients[1:], plan.batch_size)

  def update(is_chosen, base, new, old, factors):
    if not is_chosen:
      return new - old
    spread = lambda x: jnp.broadcast_to(x, base.shape[:-2] + x.shape)
    return low_rank.Update(
      factors=factors,
      coefficients=spread(rows),
      growth=spread(coefficients[0] - 1),
    )

  return jax.tree.map(
    update,
    plan.chosen,
    plan.pick(view, True),
    trained['params'],
    plan.pick(view, False),
    factors,
    is_leaf=lambda x: x is None,
  )
