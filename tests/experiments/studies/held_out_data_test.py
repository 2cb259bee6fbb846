"""Laws of held-out data: disjoint, unseen by training, the same for all."""

import pathlib
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.studies import held_out_data
from fmtl_jax import testing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test
from tests.experiments.studies import toy_held_out as toy


def _rows(data):
  """All rows that a data set points to, client by client."""
  part = data.partition
  groups = zip(
    *(x.groups() for x in (part.train, part.validation, part.test)),
    strict=True,
  )
  return [np.concatenate(group) for group in groups]


class HoldOutTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_held_out_clients_and_the_others_share_no_example(self, of_people):
    source = toy.people() if of_people else program_test.toy_source()
    config = toy.config(toy.OF_PEOPLE if of_people else {})
    drawn = set()
    for seed in range(8):
      held = held_out_data.hold_out(source, config, seed)
      drawn.add(tuple(held.clients))
      self.assertEqual(held.held_out.num_clients, 2)
      self.assertEqual(held.train.num_clients, program_test.CLIENTS - 2)
      own, others = _rows(held.held_out), _rows(held.train)
      everything = np.concatenate([*own, *others])
      self.assertLen(set(everything), len(source.strata))
      self.assertLen(everything, len(source.strata))
      for part in (held.train.partition, held.held_out.partition):
        self.assertTrue((part.train.sizes > 0).all())
      if of_people:
        for client, rows in zip(held.clients, own, strict=True):
          self.assertEqual(set(source.keys[rows]), {client})
        names = [task.name for task in held.held_out.tasks]
        self.assertEqual(names, [f'person {c}' for c in held.clients])
    self.assertGreater(len(drawn), 1)

  def test_task_groups_have_the_same_sizes_for_all_seeds(self):
    config = toy.config({'data.clients': 9})
    sizes = {
      tuple(
        held_out_data.hold_out(
          program_test.toy_source(), config, seed
        ).train.partition.members.sizes
      )
      for seed in range(5)
    }
    self.assertEqual(sizes, {(4, 3)})

  def test_held_out_clients_keep_their_tasks_and_numbers(self):
    source = program_test.toy_source()
    held = held_out_data.hold_out(source, toy.config(), 0)
    both = [held.train.partition, held.held_out.partition]
    ids = np.concatenate([p.client_ids for p in both])
    self.assertCountEqual(ids, range(program_test.CLIENTS))
    np.testing.assert_array_equal(both[1].client_ids, held.clients)
    tasks = np.concatenate([p.client_tasks for p in both])[np.argsort(ids)]
    np.testing.assert_array_equal(tasks[:, 0], [0, 0, 0, 1, 1])

  def test_numbers_of_examples_are_nested_and_the_test_is_the_rest(self):
    source = program_test.toy_source()
    one, two = (
      held_out_data.hold_out(source, toy.config({'unseen.examples': n}), 0)
      for n in ((0, 3), (5, 8))
    )
    np.testing.assert_array_equal(one.clients, two.clients)
    pairs = [
      [data.held_out.partition.train.groups() for data in (one, two)],
      [data.held_out.partition.test.groups() for data in (one, two)],
    ]
    for few, many in zip(*pairs[0], strict=True):
      self.assertEqual((len(few), len(many)), (3, 8))
      np.testing.assert_array_equal(few, many[:3])
    for more, less in zip(*pairs[1], strict=True):
      self.assertContainsSubset(less, more)
      self.assertLen(more, len(less) + 5)

  def test_standardization_knows_nothing_of_held_out_clients(self):
    source, config = (
      toy.people(),
      toy.config(toy.OF_PEOPLE),
    )
    clean = held_out_data.hold_out(source, config, 0)
    features = source.features.copy()
    features[np.isin(source.keys, clean.clients)] = 1e30
    poisoned = held_out_data.hold_out(
      source._replace(features=features), config, 0
    )
    wanted = clean.train.partition.standardization
    for data in (poisoned.train, poisoned.held_out, clean.held_out):
      testing.assert_trees_equal(data.partition.standardization, wanted)
    rows = np.concatenate(clean.train.partition.train.groups())
    np.testing.assert_allclose(
      wanted[0], source.features[rows].mean(0), atol=1e-6
    )

  def test_blocked_tests_on_no_neighbour(self):
    runs = np.arange(100) // program_test.CLIENTS // 10
    source = toy.people(runs=runs)
    config = toy.config(
      toy.OF_PEOPLE | {'data.protocol': 'blocked', 'unseen.examples': (4,)}
    )
    blocked = held_out_data.hold_out(source, config, 0)
    self.assertEqual(held_out_data.overlapping_pairs(source, blocked), 0)
    self.assertTrue((blocked.held_out.partition.test.sizes > 0).all())
    config.data.protocol = 'random'
    random = held_out_data.hold_out(source, config, 0)
    self.assertGreater(held_out_data.overlapping_pairs(source, random), 0)

  @parameterized.parameters(
    ({'unseen.clients': 4}, 'unseen.clients <= 3, .* got 4'),
    ({'unseen.examples': (1, 20)}, 'got 20 of the 20 examples of client'),
  )
  def test_what_cannot_be_held_out_is_reported(self, fields, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      held_out_data.hold_out(program_test.toy_source(), toy.config(fields), 0)


if __name__ == '__main__':
  absltest.main()
