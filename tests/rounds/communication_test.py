"""Laws of communication: bytes and parameters by layer type, by hand."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from fmtl_jax import federation as federation_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import communication

C, T, P = layer_types.COMMON, layer_types.TASK, layer_types.PERSONAL
FROZEN = layer_types.PRETRAINED


def _federation(types, num_slots=1, **settings):
  """Layers of 3 x 4 + 4 = 16, 4 x 4 + 4 = 20, ... and 4 x 5 + 5 = 25 values."""
  data = settings.pop('data', None) or testing.toy_data(7, 3, num_slots)
  return testing.toy_federation(types, data, **settings)[0]


def _message(federation):
  """What a client of averaged layers sends, and is sent."""
  (up, down, all_copies) = multi_task_fl.multi_task_fl(federation).messages()
  assert up == down and not all_copies
  return up


def _bytes(federation):
  return communication.message_bytes(federation, _message(federation))


class MessageBytesTest(parameterized.TestCase):
  @parameterized.parameters(1, 2)
  def test_task_layers_move_for_each_slot(self, num_slots):
    federation = _federation([FROZEN, C, C, T, T], num_slots)
    once, each_slot = _bytes(federation)
    self.assertEqual(once, {C: 4 * (20 + 20)})
    self.assertEqual(each_slot, {T: 4 * (20 + 25)})

  @parameterized.parameters(1, 2)
  def test_personal_and_pretrained_layers_stay(self, num_slots):
    federation = _federation([P, FROZEN, C, P], num_slots)
    self.assertEqual(_bytes(federation), ({C: 80}, {}))
    federation = _federation([P, P], num_slots)
    self.assertEqual(_bytes(federation), ({}, {}))

  def test_layers_of_a_cluster_move_once(self):
    data = testing.toy_data(7, 3, 2)
    partition = dataclasses.replace(
      data.partition, owner_index={'cluster': np.arange(7) % 2}
    )
    federation = _federation(
      ['cluster', C],
      data=dataclasses.replace(data, partition=partition),
      owners={
        **federation_lib.OWNERS,
        'cluster': federation_lib.Owner('cluster'),
      },
      num_owners={'cluster': 2},
    )
    once, each_slot = _bytes(federation)
    self.assertEqual(once, {'cluster': 64, C: 100})
    self.assertEqual(each_slot, {})
    self.assertEqual(
      communication.cohort_bytes(federation, _message(federation), 3, 5),
      {'cluster': 192, C: 300, T: 0, P: 0},
    )
    self.assertEqual(communication.parameter_counts(federation)['cluster'], 32)

  def test_bytes_follow_the_type_of_a_leaf(self):
    def init(unused_key):
      return {
        'half': jnp.zeros((3, 7), jnp.bfloat16),
        'output': jnp.zeros((7, 5), jnp.float32),
      }

    federation = federation_lib.Federation.create(
      (init, lambda params, x: x @ params['half'] @ params['output']),
      [('half', C), ('output', T)],
      testing.toy_data(),
    )
    self.assertEqual(_bytes(federation), ({C: 42}, {T: 140}))
    self.assertEqual(
      communication.parameter_counts(federation),
      {FROZEN: 0, C: 21, T: 105, P: 0},
    )


class CohortBytesTest(parameterized.TestCase):
  def test_a_common_layer_counts_once_and_a_head_for_each_slot(self):
    federation = _federation([FROZEN, C, T, P], 2)
    self.assertEqual(
      communication.cohort_bytes(federation, _message(federation), 4, 6),
      {C: 4 * 4 * 20, T: 6 * 4 * 20, P: 0},
    )

  def test_numbers_may_be_means(self):
    federation = _federation([C, T])
    self.assertEqual(
      communication.cohort_bytes(federation, _message(federation), 2.5, 3.25),
      {C: 2.5 * 64, T: 3.25 * 100, P: 0},
    )


class ParameterCountsTest(parameterized.TestCase):
  @parameterized.parameters(
    # Seven clients, three tasks; only the last layer can be by slot.
    ([FROZEN, C, T, P], 1, 16, 20, 3 * 20, 7 * 25),
    ([FROZEN, C, T, P], 2, 16, 20, 3 * 20, 7 * 2 * 25),
    ([P, C, T, T], 2, 0, 20, 3 * (20 + 25), 7 * 16),
    ([P, P], 2, 0, 0, 0, 7 * 16 + 7 * 2 * 25),
    ([C, C], 2, 0, 16 + 25, 0, 0),
  )
  def test_copies_of_all_owners(
    self, types, num_slots, frozen, common, task, personal
  ):
    self.assertEqual(
      communication.parameter_counts(_federation(types, num_slots)),
      {FROZEN: frozen, C: common, T: task, P: personal},
    )


if __name__ == '__main__':
  absltest.main()
