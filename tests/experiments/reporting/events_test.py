"""Law: TensorBoard sees each value once, as soon as it is measured."""

import pathlib
import struct
import sys
import tempfile

from absl.testing import absltest
from tensorboardX.proto import event_pb2

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


def scalars(folder):
  """Every `(tag, step, value)` of a folder's only event file."""
  (path,) = folder.glob('events.out.tfevents.*')
  data, found = path.read_bytes(), []
  while data:
    (length,) = struct.unpack('<Q', data[:8])
    event = event_pb2.Event.FromString(data[12 : 12 + length])
    found += [
      (value.tag, event.step, value.simple_value)
      for value in event.summary.value
    ]
    data = data[16 + length :]
  return found


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

  def test_what_is_there_is_left_and_what_is_missing_is_written(self):
    events.write_missing(self.folder.parent, [record(2, 2)])
    self.assertEqual(scalars(self.folder), [*FIRST, *SECOND, *LOSSES])
    (path,) = self.folder.iterdir()
    before = path.stat()
    events.write_missing(self.folder.parent, [record(2, 2)])
    self.assertEqual(path.stat(), before)


if __name__ == '__main__':
  absltest.main()
