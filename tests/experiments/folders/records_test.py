"""Law: a damaged record is refused by name, never shown in a report."""

import json
import pathlib
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.folders import records
from experiments.folders import workdirs
from experiments.studies import histories

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.console import bad_inputs_test


class _TestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / 'record.json'


class RecordsTest(_TestCase):
  RECORD = bad_inputs_test.RECORD
  ROWS = bad_inputs_test.ROWS

  def test_what_is_written_is_read(self):
    records.write(self.path, self.RECORD)
    self.assertEqual(records.read(self.path, records.check_case), self.RECORD)
    records.write_rows(self.path, self.ROWS)
    self.assertEqual(records.read_rows(self.path), self.ROWS)

  def test_every_flipped_bit_is_reported_or_changes_nothing(self):
    records.write(self.path, self.RECORD)
    good = self.path.read_bytes()
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(300):
      bad = bytearray(good)
      bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
      self.path.write_bytes(bytes(bad))
      try:
        found = records.read(self.path, records.check_case)
      except ValueError as error:
        self.assertRegex(str(error), 'record.json is damaged .* remove it')
        self.assertNotIn('\n', str(error))
        told += 1
        continue
      # The name of the digest alone may be lost.
      self.assertEqual({name: found[name] for name in self.RECORD}, self.RECORD)
    self.assertGreater(told, 200)

  def test_another_number_is_reported(self):
    records.write(self.path, self.RECORD)
    saved = json.loads(self.path.read_text())
    saved['rounds'] += 1
    self.path.write_text(json.dumps(saved))
    with self.assertRaisesRegex(ValueError, 'it is not what was written'):
      records.read(self.path, lambda value: None)

  def test_those_of_version_0_are_read(self):
    self.path.write_text(json.dumps(self.RECORD))
    self.assertEqual(records.read(self.path, records.check_case), self.RECORD)
    self.path.write_text(json.dumps(self.ROWS))
    self.assertEqual(records.read_rows(self.path), self.ROWS)

  def test_a_changed_config_is_reported(self):
    identity, config = {'run.rounds': 3}, {'run.rounds': 3}
    folder = self.path.parent / 'run'
    workdirs.prepare(folder, identity, config)
    saved = {'identity': identity, 'config': config}
    self.assertEqual(workdirs.read_config(folder), saved)
    path = folder / workdirs.CONFIG
    path.write_text(path.read_text().replace('3', '4', 1))
    with self.assertRaisesRegex(ValueError, 'config.json is damaged'):
      workdirs.read_config(folder)
    path.write_text(json.dumps(saved))  # As of version 0.
    self.assertEqual(workdirs.read_config(folder), saved)


class HistoryTest(_TestCase):
  """What a checkpoint without a digest keeps of a case."""

  def history(self):
    history = histories.History()
    count = np.ones((2, 3, 1, 1))
    metrics = {
      'count': count,
      'loss_sum': count / 2,
      'client': np.zeros((2, 3, 1), int),
      'task': np.zeros((2, 3, 1, 1), int),
      'steps': np.ones((2, 3, 1)),
      'simulated_seconds': np.ones((2, 3, 1)),
    }
    history.add_rounds(metrics, 5, 2)
    metrics = {'accuracy': np.full((2, 3), 0.5)}
    history.add_evaluation(
      3, 'test', {'pooled': metrics, 'client': {}, 'each': metrics}
    )
    return json.loads(json.dumps({'history': history.to_dict()}))

  def test_a_history_is_one(self):
    records.check_history(self.history())

  @parameterized.parameters(
    lambda h: h.pop('values'),
    lambda h: h.update(rounds=None),
    lambda h: h['rounds'].append('3'),
    lambda h: h['values']['test/pooled/accuracy'].append([[1.0]]),
    lambda h: h['values'].update({'test/pooled/loss': 3}),
    lambda h: h['train_loss'][0].append(1.0),
    lambda h: h['per_round']['simulated_seconds'].pop(),
    lambda h: h['totals'].pop('steps'),
    lambda h: h.update(seconds='x'),
  )
  def test_an_invalid_record_is_reported(self, change):
    metadata = self.history()
    change(metadata['history'])
    with self.assertRaises((ValueError, KeyError, TypeError)):
      records.check_history(metadata)


if __name__ == '__main__':
  absltest.main()
