"""Laws of servers over all owners: a relation between tasks is one value.

Here tasks are mixed by a matrix; all that it takes is in this file.
"""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import federation as federation_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import scaffold
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import servers

import cases

MATRIX = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.5, 0.25, 0.25]])
# Of three tasks; their means are 2, -4 and 8.
LABELS = [[1.0, 2.0, 3.0], [-4.0], [7.0, 8.0, 9.0]]


def mixing(matrix):
  """Tasks go on with mixtures of the models of all tasks.

  Args:
    matrix: `[T, T]`, whose row t are the shares of the models in task t.
  """

  def init(unused_params, num_owners):
    return jnp.asarray(matrix, jnp.float32).reshape(num_owners, num_owners)

  def step(unused_key, params, state, reported, unused_round):
    mix = lambda w, u: jnp.tensordot(state, w + u, 1)
    return jax.tree.map(mix, params, reported.update), state

  return servers.Server(init, step)


def _recording():
  """A server that keeps what it was given and moves nothing."""

  def init(params, num_owners):
    zeros = jax.tree.map(jnp.zeros_like, params)
    shape = () if num_owners is None else (num_owners,)
    return zeros, jnp.zeros(shape), jnp.zeros(2, jnp.uint32), jnp.int32(-1)

  def step(key, params, unused_state, reported, round_number):
    bits = jax.random.bits(key, (2,), jnp.uint32)
    return params, (reported.update, reported.share, bits, round_number)

  return servers.Server(init, step)


def _run(federation, data, rounds=1, local=testing.TO_THE_MEAN, **settings):
  algorithm = multi_task_fl.multi_task_fl(
    federation, local, round_settings.RoundSettings(**settings)
  )
  return cases.run(algorithm, data, rounds).state


class MixingServerTest(parameterized.TestCase):
  def test_heads_are_mixtures_of_the_means_of_all_tasks(self):
    federation, data = testing.mean_estimation(LABELS, (0, 1, 2), 'task')
    state = _run(federation, data, server={'task': mixing(MATRIX)})
    np.testing.assert_allclose(
      state.params['output']['bias'][:, 0],
      MATRIX @ [2.0, -4.0, 8.0],
      rtol=1e-5,
    )
    self.assertEqual(state.server['task'].optimizer.shape, (3, 3))

  def test_models_of_clients_are_mixtures_of_those_of_all_clients(self):
    """Clients that own averaged layers; one that is not drawn sends nothing."""
    owners = federation_lib.OWNERS | {'related': federation_lib.Owner('client')}
    federation, data = testing.mean_estimation(
      LABELS, (0, 0, 0), 'related', owners=owners
    )
    settings = {'server': {'related': mixing(MATRIX)}}
    state = _run(federation, data, **settings)
    np.testing.assert_allclose(
      state.params['output']['bias'][:, 0],
      MATRIX @ [2.0, -4.0, 8.0],
      rtol=1e-5,
    )
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      testing.TO_THE_MEAN,
      round_settings.RoundSettings(clients_per_task=1, **settings),
    )
    _, state, metrics, _ = cases.run(algorithm, data)
    ((client,),) = np.asarray(metrics['client'])
    mean = np.mean(LABELS[client])
    np.testing.assert_allclose(
      state.params['output']['bias'][:, 0], MATRIX[:, client] * mean, 1e-5
    )

  def test_tasks_that_are_all_mixed_alike_are_one_model(self):
    """That of the plain mean over clients, one of them for each task."""
    federation, data = testing.mean_estimation(LABELS, (0, 1, 2), 'task')
    alike = {'task': mixing(np.full((3, 3), 1 / 3))}
    state = _run(federation, data, server=alike)
    common, data = testing.mean_estimation(LABELS, (0, 1, 2), 'common')
    one = _run(common, data, weighting={'common': 'uniform'})
    found = state.params['output']['bias']
    np.testing.assert_allclose(
      found, np.broadcast_to(one.params['output']['bias'], (3, 1)), rtol=1e-5
    )

  def test_tasks_that_are_not_mixed_train_as_ever(self):
    federation, data = testing.toy_federation(data=cases.toy_data(7, 3, 2))
    given = {'rounds': 2, 'local': cases.Local().package()}
    plain = _run(federation, data, **given)
    server = {'task': mixing(np.eye(3))}
    testing.assert_trees_close(
      _run(federation, data, server=server, **given).params, plain.params
    )
    server = {'task': mixing(MATRIX)}
    mixed = _run(federation, data, server=server, **given)
    head = 'layer_1'
    difference = mixed.params[head]['bias'] - plain.params[head]['bias']
    self.assertGreater(abs(difference).max(), 1e-2)

  def test_an_algorithm_with_a_rule_of_its_own_steps_by_it(self):
    federation, data = testing.toy_federation(data=cases.toy_data(7, 3))

    def run(**server):
      algorithm = scaffold.scaffold(
        federation,
        cases.Local().package(),
        round_settings.RoundSettings(clients_per_task=1, server=server),
      )
      return cases.run(algorithm, data, 3).state

    plain, mixed = run(), run(task=mixing(np.eye(3)))
    testing.assert_trees_close(mixed.params, plain.params)
    testing.assert_trees_close(
      mixed.server['task'].memory, plain.server['task'].memory
    )

  def test_tasks_cannot_have_devices_of_their_own(self):
    federation, _ = cases.toy_federation()
    settings = round_settings.RoundSettings(
      server={'task': mixing(MATRIX)},
      placement=round_settings.Placement(task_axis='task'),
    )
    with self.assertRaisesRegex(
      ValueError, 'does not mix tasks with `task_axis`'
    ):
      multi_task_fl.multi_task_fl(federation, settings=settings)


class ServerInputsTest(parameterized.TestCase):
  """What a server over all owners is told."""

  def test_owners_without_reporting_clients_have_no_share_and_no_update(self):
    num_owners = {'cluster': 4}
    owners = federation_lib.OWNERS | {
      'cluster': federation_lib.Owner('cluster')
    }
    data = cases.toy_data(7, 3)
    clusters = np.array([0, 2, 0, 2, 0, 2, 0], np.int32)
    data = dataclasses.replace(
      data,
      partition=dataclasses.replace(
        data.partition, owner_index={'cluster': clusters}
      ),
    )
    federation, _ = testing.toy_federation(
      ('cluster', 'task'), data, owners=owners, num_owners=num_owners
    )
    state = _run(
      federation,
      data,
      local=cases.Local().package(),
      server={'cluster': _recording()},
    )
    update, share, _, _ = state.server['cluster'].optimizer
    np.testing.assert_array_equal(share, [1, 0, 1, 0])
    moved = np.abs(update['layer_0']['kernel']).max((1, 2))
    np.testing.assert_array_equal(moved > 0, share > 0)

  def test_a_layer_type_with_a_single_copy_has_no_axis_of_owners(self):
    federation, data = cases.toy_federation()
    state = _run(federation, data, server={'common': _recording()})
    update, share, _, _ = state.server['common'].optimizer
    self.assertEqual(share.shape, ())
    self.assertEqual(
      update['layer_0']['bias'].shape, state.params['layer_0']['bias'].shape
    )

  def test_keys_differ_between_rounds_and_layer_types_alone(self):
    def bits(types, rounds):
      federation, data = cases.toy_federation(types)
      names = dict.fromkeys(types, _recording())
      state = _run(federation, data, rounds=rounds, server=names)
      found = {}
      for name, server in state.server.items():
        _, _, found[name], number = server.optimizer
        self.assertEqual(number, rounds - 1)
      return found

    one, two = bits(('common', 'task'), 1), bits(('common', 'task'), 2)
    alone = bits(('task', 'task'), 1)
    np.testing.assert_array_equal(one['task'], alone['task'])
    keys = [tuple(x.tolist()) for x in (*one.values(), *two.values())]
    self.assertLen(set(keys), 4)


if __name__ == '__main__':
  absltest.main()
