"""Per-FedAvg against the loops of its paper, and the gradient it follows."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import per_fedavg
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import round_settings

import cases
import naive


@dataclasses.dataclass
class PerFedAvg(naive.FineTuned):
  """Algorithm 1 of the paper in loops.

  Second derivatives are differences of gradients, with a small delta where the
  exact ones are asked for.
  """

  alpha: float = 0.01
  order: str = 'hessian_free'
  delta: float = 0.01

  def shifted(self, params, direction, by):
    """The parameters, moved by a direction that is given by leaf and place."""
    new = naive.copied(params)
    for ((layer, name), place), value in direction.items():
      new[layer][name][place] += by * value
    return new

  def meta_gradient(self, params, member, inner, outer, curvature):
    gradient = lambda params, rows: self.objective_gradient(
      params, member, rows
    )
    adapted = self.shifted(params, gradient(params, inner), -self.alpha)
    direction = gradient(adapted, outer)
    if self.order == 'first':
      return direction
    delta = self.delta if self.order == 'hessian_free' else 1e-5
    ahead, behind = (
      gradient(self.shifted(params, direction, by), curvature)
      for by in (delta, -delta)
    )
    return {
      key: value
      - self.alpha * (ahead.get(key, 0) - behind.get(key, 0)) / (2 * delta)
      for key, value in direction.items()
    }

  def local_training(self, params, member, number):
    params = naive.copied(params)
    touched, speed = self.touched(member), {}
    count = 2 if self.order == 'first' else 3
    # Orders come as D', D and D'' of an epoch, then those of the next one.
    streams = [
      list(
        self.batches(
          dataclasses.replace(member, orders=member.orders[n::count])
        )
      )
      for n in range(count)
    ]
    for outer, inner, *curvature in zip(*streams, strict=True):
      grads = self.meta_gradient(
        params, member, inner, outer, curvature[0] if curvature else None
      )
      for (layer, name), place in touched:
        key = (layer, name), place
        speed[key] = self.momentum * speed.get(key, 0) + grads.get(key, 0)
        params[layer][name][place] -= self.rate * speed[key]
    return {
      (leaf, place): params[leaf[0]][leaf[1]][place].copy()
      for leaf, place in touched
    }

  def finetune(self, params, member):
    params, keys = naive.copied(params), self.touched(member)
    for rows in self.batches(member):
      grads = self.objective_gradient(params, member, rows)
      params = self.shifted(params, grads, -self.alpha)
    return {((a, b), place): params[a][b][place] for (a, b), place in keys}


def _keys(draws):
  """The keys of the orders that a client uses."""

  def keys(key, epochs):
    firsts = [jax.random.fold_in(key, epoch) for epoch in range(epochs)]
    return [
      jax.random.fold_in(first, n) if n else first
      for first in firsts
      for n in range(draws)
    ]

  return keys


def _round(build, data, federation, local, **own):
  """The change of the parameters in the first round, and its metrics."""
  algorithm = build(federation, local, round_settings.RoundSettings(), **own)
  state = cases.start(algorithm, data)
  new, metrics = testing.jit(algorithm.round)(state, data)
  change = jax.tree.map(np.subtract, new.params, state.params)
  return state.params, change, metrics


def _largest(tree, other):
  """The largest difference of two trees."""
  differences = jax.tree.map(
    lambda x, y: np.abs(np.subtract(x, y)).max(), tree, other
  )
  return max(map(float, jax.tree.leaves(differences)))


class PerFedAvgTest(parameterized.TestCase):
  @parameterized.parameters('first', 'hessian_free')
  def test_rounds_are_those_of_the_paper(self, order):
    cases.compare(
      ('common', 'common'),
      testing.toy_data(7, 3),
      local=cases.Local(batch_size=2, epochs=2, momentum=0.5),
      clients_per_task=(2, 1, 2),
      rounds=3,
      build=per_fedavg.per_fedavg,
      reference=PerFedAvg,
      own={'alpha': 0.3, 'order': order, 'delta': 0.1, 'finetune_epochs': 0},
      keys_fn=_keys(2 if order == 'first' else 3),
    )

  def test_any_layer_types_and_several_tasks_for_each_client(self):
    cases.compare(
      ('common', 'task', 'personal'),
      testing.toy_data(5, 3, 2, missing=0.4),
      clients_per_task=1,
      rounds=3,
      build=per_fedavg.per_fedavg,
      reference=PerFedAvg,
      own={'alpha': 0.3, 'order': 'exact', 'finetune_epochs': 2},
      keys_fn=_keys(3),
    )

  def test_on_a_quadratic_it_goes_to_the_optimum_of_the_meta_function(self):
    """f_m = mean (w - y)^2 has F_m' = 2 (1 - 2 alpha)^2 (w - mean y)."""
    alpha, rate, mean = 0.2, 0.1, 4.0
    federation, data = testing.mean_estimation([[1.0, 7.0]], [0], 'common')
    local = local_optimizers.LocalSgd(learning_rate=rate, batch_size=0)
    slope = {'exact': (1 - 2 * alpha) ** 2, 'first': 1 - 2 * alpha}
    slope['hessian_free'] = slope['exact']
    for order, factor in slope.items():
      start, change, _ = _round(
        per_fedavg.per_fedavg,
        data,
        federation,
        local,
        alpha=alpha,
        order=order,
      )
      np.testing.assert_allclose(
        change['output']['bias'],
        rate * 2 * factor * (mean - np.asarray(start['output']['bias'])),
        rtol=1e-4,
      )

  def test_exact_steps_follow_the_gradient_of_the_meta_function(self):
    """Of F(w) = f(w - alpha grad f(w)), by the rule for compositions."""
    alpha, rate = 0.5, 0.1
    data = testing.toy_data(1, 1, sizes=(6,))
    federation, _ = testing.toy_federation(('common', 'common'), data)
    local = local_optimizers.LocalSgd(learning_rate=rate, batch_size=0)

    def loss(w):
      everyone = cohorts.take(cohorts.everyone(data), 0)
      batch = client_batches.LocalData(data, everyone).batch(jnp.arange(6))
      objective, _ = federation.objective(
        w, federation.frozen, batch, everyone.active
      )
      return objective

    def meta(w):
      inner = jax.grad(loss)(w)
      return loss(jax.tree.map(lambda w, g: w - alpha * g, w, inner))

    changes, found = {}, {}
    for order in per_fedavg.ORDERS:
      start, changes[order], metrics = _round(
        per_fedavg.per_fedavg,
        data,
        federation,
        local,
        alpha=alpha,
        order=order,
      )
      found[order] = metrics['loss_sum'].sum() / 6
    value, slope, plain = testing.jit(
      lambda w: (*jax.value_and_grad(meta)(w), jax.grad(loss)(w))
    )(start)
    for of_order in found.values():
      np.testing.assert_allclose(of_order, value, rtol=1e-5)
    expected = jax.tree.map(lambda g: -rate * np.asarray(g), slope)
    testing.assert_trees_close(changes['exact'], expected, 1e-4, 1e-6)
    testing.assert_trees_close(changes['hessian_free'], expected, 1e-3, 1e-5)
    # The curvature counts, and so does the step inside.
    self.assertGreater(_largest(changes['first'], expected), 1e-3)
    plain = jax.tree.map(lambda g: -rate * np.asarray(g), plain)
    self.assertGreater(_largest(changes['first'], plain), 1e-3)

  def test_without_the_step_inside_it_is_fedavg(self):
    """On the batches D', in all layers; also before a client predicts."""
    federation, data = testing.toy_federation(('common', 'task', 'personal'))
    local = local_optimizers.LocalSgd(
      optimizer=local_optimizers.Sgd(momentum=0.5, weight_decay=0.1),
      learning_rate=0.2,
      batch_size=2,
      epochs=2,
    )
    _, expected, its_metrics = _round(
      multi_task_fl.multi_task_fl, data, federation, local
    )
    for order in per_fedavg.ORDERS:
      _, change, metrics = _round(
        per_fedavg.per_fedavg, data, federation, local, alpha=0.0, order=order
      )
      testing.assert_trees_close(change, expected)
      testing.assert_trees_equal(metrics['steps'], its_metrics['steps'])
    algorithm = per_fedavg.per_fedavg(federation, local, alpha=0.0)

    @testing.jit
    def view_and_received(state, data):
      client = cohorts.take(cohorts.everyone(data), 2)
      view = algorithm.view(state, data, client, federation.frozen)
      return view, federation.broadcast(state.params, client.index)

    testing.assert_trees_equal(
      *view_and_received(cases.start(algorithm, data), data)
    )

  @parameterized.parameters(
    ({'order': 'second'}, "one of first, hessian_free, exact, got 'second'"),
    ({'delta': 0.0}, "`delta` > 0, got 0.0; take `order`='exact'"),
  )
  def test_settings_that_it_cannot_have_are_told(self, own, sentence):
    federation, _ = testing.toy_federation(('common', 'common'))
    with self.assertRaisesRegex(ValueError, sentence):
      per_fedavg.per_fedavg(federation, **own)


if __name__ == '__main__':
  absltest.main()
