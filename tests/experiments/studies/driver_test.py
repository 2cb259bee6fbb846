"""Laws of the driver: a study is what is particular to it, and no more."""

import contextlib
import io
import pathlib
import sys
import tempfile

from absl.testing import absltest

from experiments.configuration import config as config_lib
from experiments.folders import environments
from experiments.folders import records
from experiments.studies import driver

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test


class Counts:
  """A study of another kind: how many examples there are, squared and cubed."""

  def __init__(self, powers=(2, 3), wrong=False):
    self.powers, self.wrong, self.done = powers, wrong, []

  def study(self):
    config = program_test.toy_config()
    return driver.Study(
      config,
      config_lib.identity(config),
      self.check,
      self.prepare,
      report='counts.json',
      parts='powers',
    )

  def check(self, workdir):
    for path in sorted((workdir / 'cases').glob('*.json')):
      records.read(path, self.check_record)

  def check_record(self, record):
    if not isinstance(record['power'], int):
      raise ValueError('its power is no number')

  def prepare(self, source, workdir):
    if self.wrong:
      raise ValueError('Expected powers, got none.')

    def run(power, flag):
      del flag
      self.done.append(f'power_{power}')
      return {
        'case': f'power_{power}',
        'rounds': 0,
        'power': len(source.labels) ** power,
        environments.KEY: environments.extended([], 0, 0),
      }

    return driver.Work(
      [
        driver.case(
          workdir / 'cases' / f'power_{power}.json',
          lambda flag, power=power: run(power, flag),
          self.check_record,
        )
        for power in self.powers
      ],
      lambda missing: self.report(workdir, missing),
      lambda: self.done.append('begin'),
    )

  def report(self, workdir, missing):
    self.done.append(('report', *missing))
    return {
      path.stem: records.read(path, self.check_record)['power']
      for path in sorted((workdir / 'cases').glob('*.json'))
    }


class DriverTest(program_test.ToyTestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(folder, 'counts')

  def run_counts(self, counts):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      found = driver.run(counts.study(), self.workdir)
    return found, printed.getvalue()

  def test_parts_are_run_in_order_and_reported_as_they_end(self):
    counts = Counts()
    found, printed = self.run_counts(counts)
    size = len(program_test.toy_source().labels)
    self.assertEqual(found, {'power_2': size**2, 'power_3': size**3})
    self.assertEqual(
      counts.done,
      ['begin', 'power_2', ('report', 'power_3'), 'power_3', ('report',)],
    )
    self.assertNotIn('nothing was trained', printed)

  def test_a_finished_part_is_not_run_again(self):
    self.run_counts(Counts((3,)))
    counts = Counts()
    self.run_counts(counts)
    self.assertEqual(counts.done, ['begin', 'power_2', ('report',)])

  def test_a_finished_study_is_reported_again(self):
    first, _ = self.run_counts(Counts())
    counts = Counts()
    again, printed = self.run_counts(counts)
    self.assertEqual(again, first)
    self.assertEqual(counts.done, ['begin', ('report',)])
    self.assertIn('All powers were finished: nothing was trained', printed)

  def test_nothing_is_written_before_everything_was_checked(self):
    counts = Counts(wrong=True)
    with self.assertRaisesRegex(ValueError, 'Expected powers, got none'):
      self.run_counts(counts)
    self.assertFalse(self.workdir.exists())
    self.assertEmpty(counts.done)

  def test_a_damaged_record_is_found_before_anything_is_run(self):
    self.run_counts(Counts((2,)))
    (self.workdir / 'cases' / 'power_2.json').write_text('{}')
    counts = Counts()
    with self.assertRaisesRegex(ValueError, 'power_2.json is damaged'):
      self.run_counts(counts)
    self.assertEmpty(counts.done)

  def test_loading_writes_nothing(self):
    source = driver.load(Counts().study(), self.workdir)
    self.assertLen(source.labels, len(program_test.toy_source().labels))
    self.assertFalse(self.workdir.exists())


if __name__ == '__main__':
  absltest.main()
