"""Speakers of plays and users of a folder are clients of tasks of tokens."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.building import data_notes
from experiments.building import datasets
from experiments.building import federating
from experiments.building import networks
from experiments.building import text_sources
from experiments.configuration import config as config_lib
from experiments.studies import held_out_data
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import shakespeare
from tests.data import small_texts


class TextSourcesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def _config(self, name='shakespeare', **data):
    config = config_lib.default_config()
    config.data.name = name
    config.data.manual_dir = str(self.folder)
    config.data.partition = 'key'
    config.data.protocol = 'blocked'
    config.data.window = 10
    config.data.least_characters = 100
    config.data.test_fraction = 0.25
    config.data.validation_fraction = 0.0
    for field, value in data.items():
      config.data[field] = value
    return config

  def _plays(self, **data):
    small_texts.write_plays(self.folder)
    config = self._config(**data)
    return config, datasets.load(config.data)

  def test_plays_are_tasks_of_their_speakers(self):
    config, source = self._plays()
    self.assertEqual(
      [task.name for task in source.tasks],
      [play.title for play in shakespeare.PLAYS],
    )
    dataset = federating.federate(source, config.data, 0)
    # Three speakers of a play say enough; who begins does not.
    self.assertEqual(dataset.num_clients, 27)
    tasks = dataset.partition.client_tasks[:, 0]
    self.assertEqual(tasks.tolist(), np.repeat(np.arange(9), 3).tolist())
    names = [source.key_names[c] for c in dataset.partition.client_ids.tolist()]
    self.assertEqual(names[1], 'Coriolanus/Messenger')
    pooled = dataset.partition.pooled_test.groups()
    test = dataset.partition.test.groups()
    np.testing.assert_array_equal(pooled[2], np.concatenate(test[6:9]))

  @parameterized.parameters((0, 0), (5, 1), (3, 3))
  def test_blocks_share_no_target(self, stride, gap):
    config, source = self._plays(stride=stride)
    self.assertEqual(source.gap, gap)
    partition = federating.federate(source, config.data, 0).partition
    step = stride or 10
    for train, test in zip(
      partition.train.groups(), partition.test.groups(), strict=True
    ):
      self.assertNotEmpty(test)
      self.assertGreaterEqual(
        step * (test.min() - train.max()), config.data.window
      )

  @parameterized.parameters((0, 0), (5, 1))
  def test_a_random_split_tells_of_windows_that_share(self, stride, least):
    config, source = self._plays(stride=stride, protocol='random')
    dataset = federating.federate(source, config.data, 0)
    found = data_notes.overlapping_pairs(source, dataset)
    (self.assertGreater if least else self.assertEqual)(found, 0)

  def test_speakers_below_one_window_are_clients_with_padding(self):
    config, source = self._plays(
      window=100, least_characters=0, test_fraction=0.5
    )
    lengths = [len(user.text) for user in text_sources.users(config.data)]
    short = [number for number, n in enumerate(lengths) if n <= 100]
    self.assertLen(short, 9)  # Who begins a play.
    mask = source.labels['mask'][:, 0]
    partition = federating.federate(source, config.data, 0).partition
    self.assertLen(partition.client_ids, 36)
    parts = (partition.train.groups(), partition.test.groups())
    for client, (train, test) in enumerate(zip(*parts, strict=True)):
      if client in short:
        self.assertLen(train, 1)
        self.assertEmpty(test)
        self.assertEqual(mask[train].sum(), lengths[client] - 1)
      else:
        self.assertNotEmpty(test)

  def test_held_out_speakers_keep_the_tasks(self):
    config, source = self._plays()
    config.unseen.clients = 3
    config.unseen.examples = (0, 2)
    split = held_out_data.hold_out(source, config, 0)
    for part, count in ((split.train, 24), (split.held_out, 3)):
      self.assertEqual(part.num_clients, count)
      self.assertEqual(part.tasks, source.tasks)
    whole = federating.federate(source, config.data, 0).partition
    np.testing.assert_array_equal(
      split.held_out.partition.client_tasks, whole.client_tasks[split.clients]
    )
    tests = split.held_out.partition.test.groups()
    pooled = split.held_out.partition.pooled_test.groups()
    self.assertEqual(sum(map(len, pooled)), sum(map(len, tests)))
    for client, (task,) in enumerate(split.held_out.partition.client_tasks):
      self.assertContainsSubset(tests[client], pooled[task])

  def test_words_are_tokens_and_rare_ones_do_not_count(self):
    config, source = self._plays(kind='word', vocabulary=5)
    self.assertEqual(source.tasks[0].num_classes, 6)
    self.assertIn('bits_per_token', [m.name for m in source.tasks[0].metrics])
    unknown = source.labels['tokens'] == 0
    self.assertTrue(unknown.any())
    self.assertFalse(source.labels['mask'][unknown].any())
    self.assertEqual(config.data.vocabulary, 5)

  def test_a_folder_is_one_task(self):
    small_texts.write_folder(self.folder)
    config = self._config('text_folder')
    source = datasets.load(config.data)
    self.assertEqual([task.name for task in source.tasks], ['text'])
    dataset = federating.federate(source, config.data, 0)
    self.assertEqual(dataset.num_clients, 3)
    self.assertEqual(
      list(source.key_names.values()), ['text/ann', 'text/bob', 'text/cy']
    )

  @parameterized.parameters('lstm', 'gru', 'transformer')
  def test_the_output_belongs_to_the_play(self, name):
    config, source = self._plays()
    config.model.name = name
    config.model.hidden = (8, 8)
    config.model.heads = 2
    network = networks.build_network(config, source, 'multi_task_fl')
    labels = dict(network.rules)
    self.assertEqual(labels['output(/.*)?'], 'task')
    others = {label for rule, label in labels.items() if 'output' not in rule}
    self.assertEqual(others, {'common'})

  @parameterized.parameters(
    ({'manual_dir': ''}, 'data.manual_dir to be the folder with input.txt'),
    ({'kind': 'line'}, "data.kind of 'shakespeare' to be one of character, "),
    ({'stride': 11}, 'data.stride <= data.window = 10, got 11'),
    ({'least_characters': 9999}, 'got none of 36, of which the longest has'),
  )
  def test_what_does_not_fit_is_refused(self, data, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      self._plays(**data)

  def test_other_data_have_no_tokens(self):
    config, source = self._plays()
    config.model.name = 'gru'
    config.data.name = 'digits'
    task = tasks_lib.binary('one')
    source = source._replace(tasks=(task,))
    with self.assertRaisesRegex(ValueError, "data set of tokens, got 'digits'"):
      networks.build_network(config, source, 'fedavg')


if __name__ == '__main__':
  absltest.main()
