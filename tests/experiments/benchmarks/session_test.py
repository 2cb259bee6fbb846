"""Laws of a session: rows are measured once, and one failure costs one row."""

import contextlib
import io
import pathlib
import sys
import tempfile
import time
from unittest import mock

from absl.testing import absltest

from experiments.benchmarks import session

CHOSEN = {'device': 'cpu', 'matmul': 'highest'}
CEILINGS = {
  'device_kind': 'cpu',
  'jax': '0',
  'size': 8,
  'products': {
    'highest': {'flops_per_second': 2e12, 'relative_error': 1e-7},
    'BF16': {'error': 'It has none.'},
  },
  'copy_bytes_per_second': 3e12,
}
ROW = {
  'execution': 'scan',
  'matmul': 'highest',
  'seconds_per_round': 0.0025,
  'teraflops_per_second': 1.5,
  'compile_seconds': 3.0,
  'step_operations': 12,
  'cost_bytes_accessed': 4e6,
  'references': {
    'torch': {'seconds_per_round': 1.25},
    'torch_manual': {'error': 'It took longer than 3 seconds.'},
  },
  'published_rounds': 100,
  'seconds_of_published_rounds': 0.25,
  'extrapolated': True,
  'published_seconds': {'FLUTE': 95},
}


def _figures(command, seconds):
  name = command[1].removeprefix('--workload=')
  if name == 'F2':
    return {'error': 'It ran out of memory.'}
  return CEILINGS if name == 'ceilings' else {'workload': name} | ROW


class SessionTest(absltest.TestCase):
  def _run(self, folder, names, run=_figures, **changes):
    arguments = {'seconds': 100.0, 'row_seconds': 30.0} | changes
    out = io.StringIO()
    with (
      mock.patch.object(session, '_run', side_effect=run) as measured,
      contextlib.redirect_stdout(out),
    ):
      code = session.run(folder, CHOSEN, names=names, **arguments)
    return code, out.getvalue(), measured

  def test_rows_that_are_there_are_not_measured_again(self):
    with tempfile.TemporaryDirectory() as folder:
      code, printed, measured = self._run(folder, ['F1', 'F2'])
      self.assertEqual((code, measured.call_count), (1, 3))
      self.assertIn('F2: It ran out of memory.\n', printed)
      self.assertIn('F1, torch_manual: It took longer than 3 ', printed)
      self.assertIn('Missing: F2;', printed)
      path = pathlib.Path(folder, 'rows.jsonl')
      self.assertLen(path.read_text().splitlines(), 2)
      well = lambda *_: {'workload': 'F2'} | ROW
      code, printed, measured = self._run(folder, ['F1', 'F2'], well)
      self.assertEqual((code, measured.call_count), (0, 1))
      self.assertIn('F1: there already.', printed)
      rows = session.table(session.read(path.parent)).splitlines()
      self.assertIn(
        '| F1 | scan | highest | 2.5 | 1.5 | 1.25e+03 |  | 3 | 12 | 4 | '
        '100 in 0.2\\* | FLUTE 95 |',
        rows,
      )
      self.assertIn('highest 2 TFLOP/s (1e-07). Copy 3 TB/s.', rows[0])

  def test_no_row_is_begun_that_cannot_end(self):
    with tempfile.TemporaryDirectory() as folder:
      code, printed, measured = self._run(folder, ['F1'], seconds=5.0)
    self.assertEqual((code, measured.call_count), (1, 0))
    self.assertIn('Missing: ceilings, F1;', printed)

  def test_references_are_those_that_can_run(self):
    for name, peers in (('W2', 'torch,torch_manual'), ('F4', 'torch')):
      command = session._command(name, CHOSEN, 60.0)
      self.assertIn(f'--reference={peers}', command)
      self.assertIn('--matmul=highest', command)

  def test_what_takes_too_long_is_ended_with_its_sentence(self):
    start = time.monotonic()
    with mock.patch.object(sys, 'executable', '/bin/sh'):
      found = session._run(['-c', 'sleep 60'], 0.2)
    self.assertLess(time.monotonic() - start, 30)
    self.assertStartsWith(found['error'], 'It took longer than')


if __name__ == '__main__':
  absltest.main()
