"""A run leaves the split of each seed, and another one takes it as it is."""

import pathlib
import sys
import tempfile

from absl.testing import absltest
import jax
import numpy as np

from experiments.building import backbones
from experiments.building import checks
from experiments.building import federating
from experiments.building import fingerprints
from experiments.studies import train
from fmtl_jax.data import split_files

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test


def _config(**fields):
  return program_test.toy_config(
    {'cases': ('majority',)}
    | {name.replace('_', '.', 1): value for name, value in fields.items()}
  )


class SplitFilesTest(program_test.ToyTestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.folder = pathlib.Path(folder) / 'run'
    cls.results = train.train_and_evaluate(_config(), cls.folder)
    cls.splits = cls.folder / 'splits'

  def from_file(self, **fields):
    return _config(data_protocol='file', data_splits=str(self.splits), **fields)

  def test_there_is_a_file_for_each_seed(self):
    self.assertCountEqual(
      [path.name for path in self.splits.iterdir()],
      [split_files.name_of(seed) for seed in program_test.SEEDS],
    )

  def test_the_same_data_come_of_it(self):
    # The partition of the config does not count, nor does the order of draws.
    config = self.from_file(data_partition='dirichlet')
    source = program_test.toy_source()
    for seed in program_test.SEEDS:
      drawn = federating.federate(source, _config().data, seed)
      read = federating.federate(source, config.data, seed)
      jax.tree.map(np.testing.assert_array_equal, drawn, read)

  def test_natural_owners_have_their_rows(self):
    source = program_test.toy_source()
    by_key = _config(data_partition='key')
    drawn = federating.federate(source, by_key.data, 0)
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (folder / split_files.name_of(0)).write_text(federating.split_text(drawn))
    config = _config(
      data_partition='key', data_protocol='file', data_splits=str(folder)
    )
    read = federating.federate(source, config.data, 0)
    jax.tree.map(np.testing.assert_array_equal, drawn, read)

  def test_results_are_those_of_the_run(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    found = train.train_and_evaluate(self.from_file(), folder / 'again')
    for before, after in zip(
      self.results['results'], found['results'], strict=True
    ):
      self.assertEqual(after['protocol'], 'file')
      self.assertEqual(before | {'protocol': 'file'}, after)

  def test_other_files_are_other_data(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    config = self.from_file()
    train.train_and_evaluate(config, folder / 'run')
    path = self.splits / split_files.name_of(program_test.SEEDS[0])
    text = path.read_text()
    self.addCleanup(path.write_text, text)
    path.write_text(text.replace(',test', ',train', 1))
    source = backbones.load_source(config)
    with self.assertRaisesRegex(ValueError, 'the files in data.splits were'):
      fingerprints.check(folder / 'run', source.fingerprint)

  def test_a_folder_belongs_to_the_protocol(self):
    for config in (
      _config(data_splits='somewhere'),
      _config(data_protocol='file'),
    ):
      with self.assertRaisesRegex(ValueError, 'neither without the other'):
        checks.check(config)

  def test_a_seed_without_a_file_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'Could not read the split .*_77'):
      federating.federate(program_test.toy_source(), self.from_file().data, 77)


if __name__ == '__main__':
  absltest.main()
