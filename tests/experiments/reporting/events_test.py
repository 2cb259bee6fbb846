"""Law: TensorBoard sees each value once, as soon as it is measured."""

import pathlib
import struct
import sys
import tempfile

from absl.testing import absltest
from tensorboardX.proto import event_pb2
from tensorboardX.proto import plugin_hparams_pb2

from experiments.configuration import config as config_lib
from experiments.reporting import events

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.reporting import results_test

CURVE = [[[1, None, 1], [3, 4, 5]], [[2, None, 2], [4, 4, 6]]]
FIRST = [
  ('test_pooled_accuracy/odd', 0, 2.0),
  ('test_pooled_accuracy/mean', 0, 3.0),
]
SECOND = [
  ('test_pooled_accuracy/odd', 5, 3.0),
  ('test_pooled_accuracy/mean', 5, 4.0),
]
LOSSES = [
  ('train_cohort_loss/mean', 1, 1.0),
  ('train_cohort_loss/mean', 2, 2.0),
]


def _values(folder):
  """Every `(value, step)` of a folder's only event file."""
  (path,) = folder.glob('events.out.tfevents.*')
  data, found = path.read_bytes(), []
  while data:
    (length,) = struct.unpack('<Q', data[:8])
    event = event_pb2.Event.FromString(data[12 : 12 + length])
    found += [(value, event.step) for value in event.summary.value]
    data = data[16 + length :]
  return found


def scalars(folder):
  """Every `(tag, step, value)` of a folder's only event file."""
  return [
    (value.tag, step, value.simple_value)
    for value, step in _values(folder)
    if value.HasField('simple_value')
  ]


def hparams(folder):
  """The settings, and how many times it is said that a run ended."""
  found, ended = {}, 0
  for value, _ in _values(folder):
    if value.metadata.plugin_data.plugin_name == 'hparams':
      data = plugin_hparams_pb2.HParamsPluginData.FromString(
        value.metadata.plugin_data.content
      )
      ended += data.HasField('session_end_info')
      assert not data.HasField('experiment')  # Columns are those of all runs.
      for name, setting in data.session_start_info.hparams.items():
        found[name] = getattr(setting, setting.WhichOneof('kind'))
  return found, ended


def record(evaluations, rounds):
  """A case so far."""
  curves = {'test/pooled/accuracy': CURVE[:evaluations]}
  losses = [[0.5, 1.5], [1.0, 3.0]][:rounds]
  return results_test._record(curves, train_loss=losses)


class EventsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder, 'toy')

  def test_values_are_there_when_they_are_added(self):
    """A process that is killed then has lost none."""
    written = events.Events(self.folder)
    self.addCleanup(written.close)
    written.add(record(1, 0))
    self.assertEqual(scalars(self.folder), FIRST)
    written.add(record(2, 2))
    self.assertEqual(scalars(self.folder), [*FIRST, *SECOND, *LOSSES])

  def test_a_resumed_run_begins_with_what_was_saved(self):
    """Rounds that were lost are not there twice."""
    killed = events.Events(self.folder)
    killed.add(record(2, 2))
    again = events.Events(self.folder)
    self.addCleanup(again.close)
    again.add(record(1, 1))
    self.assertEqual(scalars(self.folder), [*FIRST, *LOSSES[:1]])
    again.add(record(2, 2))
    self.assertCountEqual(scalars(self.folder), [*FIRST, *SECOND, *LOSSES])
    killed.close()

  def test_settings_are_there_from_the_start_and_once(self):
    config = config_lib.flatten(config_lib.default_config()) | {
      'client.learning_rate': 0.25,
      'model.hidden': [4],
      'data.manual_dir': '/somewhere',
      'report.title': 'a title',
    }
    written = events.Events(self.folder, events.hparams_of('toy', config))
    written.add(record(1, 0))
    expected = {
      'case': 'toy',
      'client.learning_rate': 0.25,
      'client.batch_size': 16,
      'model.hidden': '(4,)',
    }
    found, ended = hparams(self.folder)
    self.assertEqual(found | expected, found)
    self.assertNoCommonElements(found, ('data.manual_dir', 'report.title'))
    self.assertEqual(ended, 0)
    written.add(record(2, 2))
    written.finish()
    self.assertEqual(hparams(self.folder), (found, 1))
    self.assertEqual(scalars(self.folder), [*FIRST, *SECOND, *LOSSES])

  def test_points_of_a_sweep_are_runs(self):
    rows = [
      {'case': 'a', 'rounds': [0, 4], 'curve': curve, 'settings': settings}
      for curve, settings in (
        ([50.0, 60.0], {'client.learning_rate': 0.5, 'model.hidden': [4, 2]}),
        ([50.0, None], {'client.learning_rate': 2.0, 'model.hidden': [8]}),
      )
    ]
    folder = self.folder.parent
    name = 'validation/pooled/accuracy'
    for parts in ({'b_0': rows[:1]}, {'a_0': rows, 'b_0': rows[:1]}):
      events.write_points(folder, parts, name)
    names = {path.name for path in folder.iterdir()}
    self.assertEqual(names, {'a_0_0', 'a_0_1', 'b_0_0'})
    tag = 'validation_pooled_accuracy/mean'
    self.assertEqual(
      scalars(folder / 'a_0_0'), [(tag, 0, 50.0), (tag, 4, 60.0)]
    )
    self.assertEqual(scalars(folder / 'a_0_1'), [(tag, 0, 50.0)])
    found, ended = hparams(folder / 'a_0_1')
    self.assertEqual(
      found, {'case': 'a', 'client.learning_rate': 2, 'model.hidden': '(8,)'}
    )
    self.assertEqual(ended, 1)

  def test_what_is_there_is_left_and_what_is_missing_is_written(self):
    events.write_missing(self.folder.parent, [record(2, 2)])
    self.assertEqual(scalars(self.folder), [*FIRST, *SECOND, *LOSSES])
    (path,) = self.folder.iterdir()
    before = path.stat()
    events.write_missing(self.folder.parent, [record(2, 2)])
    self.assertEqual(path.stat(), before)


if __name__ == '__main__':
  absltest.main()
