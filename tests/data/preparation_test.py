"""Laws of preparations: killed ones do not stay, damaged ones are told."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.data import preparation
from fmtl_jax.storage import temporaries

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from tests.data import uci_har_test

# Prepares a data set, and waits to be killed in the middle of it.
_PREPARING = """
import sys, time
from fmtl_jax.data import uci_har
def wait(*args):
  print('begun', flush=True)
  time.sleep(60)
uci_har._read_split = wait
uci_har.load(*sys.argv[1:])
"""


class _TestCase(uci_har_test.UciHarTestCase):
  def setUp(self):
    super().setUp()
    self.write(uci_har_test._zip(uci_har_test.FILES))

  def below(self, pattern):
    return sorted(pathlib.Path(self.data_dir).rglob(pattern))


class KilledTest(_TestCase):
  def begin(self):
    process = subprocess.Popen(
      [sys.executable, '-c', _PREPARING, str(self.manual_dir), self.data_dir],
      env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )
    self.addCleanup(process.stdout.close)
    self.addCleanup(process.wait)
    self.addCleanup(process.kill)
    for line in process.stdout:
      if line == 'begun\n':
        return process
    raise AssertionError('It did not begin.')

  def test_what_was_killed_is_removed_and_what_lives_is_not(self):
    process = self.begin()
    [living] = self.below('incomplete.*')
    self.assert_equal(self.load(), self.expected())
    self.assertEqual(self.below('incomplete.*'), [living])
    process.send_signal(signal.SIGKILL)
    process.wait()
    self.assert_equal(self.load(), self.expected())
    self.assertEmpty(self.below('incomplete.*'))

  def test_that_of_other_data_is_removed_too(self):
    self.load()
    [root] = pathlib.Path(self.data_dir).iterdir()
    other = root.with_name('uci_har_0123456789abcdef')
    stale = other / 'uci_har' / 'features' / 'incomplete.ABCDEF_1.0.0'
    stale.mkdir(parents=True)
    (stale / 'part').touch()
    foreign = root.with_name('faces') / 'incomplete.ABCDEF_1.0.0'
    foreign.mkdir(parents=True)
    with temporaries.locked(other, shared=True):
      self.load()
      self.assertTrue(stale.exists())
    self.load()
    self.assertFalse(stale.exists())
    self.assertTrue(foreign.exists())

  def test_what_another_program_may_be_writing_is_kept_for_a_day(self):
    root = pathlib.Path(self.data_dir)
    stale, new = (
      root / 'celeb_a' / f'incomplete.{name}_2.1.0'
      for name in ('OLDOLD', 'NEW')
    )
    download = root / 'downloads' / 'page.tmp.0123'
    for path in stale, new, download:
      path.mkdir(parents=True)
    yesterday = time.time() - 25 * 60 * 60
    for path in stale, download:
      os.utime(path, (yesterday, yesterday))
    with preparation._cleaned(root, 'celeb_a'):
      pass
    self.assertEqual(self.below('*.*'), [new])


class DamageTest(_TestCase):
  def info(self):
    [path] = self.below('dataset_info.json')
    return path

  def assert_told(self, sentence):
    with self.assertRaisesRegex(ValueError, sentence) as caught:
      self.load()
    self.assertIn('delete this folder and try again', str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    lambda text: '',
    lambda text: text[: len(text) // 2],
    lambda text: '[]',
    lambda text: text.replace('"1.0.0"', '"1.0.1"'),
  )
  def test_damaged_information_is_told(self, change):
    self.load()
    path = self.info()
    path.write_text(change(path.read_text()))
    self.assert_told('Could not read the prepared data set in .*dataset_info')

  def test_another_format_is_no_damage(self):
    self.load()
    path = self.info()
    path.write_text(path.read_text().replace('array_record', 'tfrecord'))
    with self.assertRaisesRegex(
      ValueError, 'Expected uci_har to be .* another format .*give another'
    ):
      self.load()

  @parameterized.parameters('4', '6')
  def test_another_number_of_examples_is_told(self, number):
    self.load()
    path = self.info()
    path.write_text(path.read_text().replace('"5"', f'"{number}"'))
    self.assert_told(f'train has 5 examples, not {number} as dataset_info.json')

  def test_flipped_bits_are_told_or_change_nothing(self):
    self.load()
    rng = np.random.default_rng(0)
    files = [p for p in self.below('*') if p.is_file()]
    told = 0
    for path in files * 6:
      good = path.read_bytes()
      bad = bytearray(good)
      bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
      path.write_bytes(bytes(bad))
      try:
        self.assert_equal(self.load(), self.expected())
      except ValueError as error:
        self.assertRegex(str(error), 'Could not read the prepared data set')
        self.assertNotIn('\n', str(error))
        told += 1
      path.write_bytes(good)
    self.assertGreater(told, 2)


if __name__ == '__main__':
  absltest.main()
