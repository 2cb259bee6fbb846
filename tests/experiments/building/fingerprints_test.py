"""Laws: other data are refused; other code for the same data is reported."""

import contextlib
import functools
import importlib.util
import io
import pathlib
import shutil
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

import fmtl_jax

from experiments.building import backbones
from experiments.building import datasets
from experiments.building import fingerprints
from experiments.folders import workdirs
from experiments.studies import case_runs
from experiments.studies import models_of_runs
from experiments.studies import train
from fmtl_jax.data import images
from fmtl_jax.storage import checkpoints

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test
from tests.experiments.studies import train_test


def _changed(array, row=-1):
  """A copy in which one number is the next one."""
  array = array.copy()
  place = (row,) + (0,) * (array.ndim - 1)
  array[place] = np.nextafter(array[place], np.inf, dtype=array.dtype)
  return array


class ArraysTest(parameterized.TestCase):
  """What of an array counts."""

  def fingerprint(self, array):
    return fingerprints._of_array(array)

  @parameterized.parameters(np.float32, np.int64, 'U3', 'datetime64[s]', object)
  def test_every_value_counts(self, dtype):
    values = np.arange(12).reshape(6, 2).astype(dtype)
    if dtype is object:
      values = values.astype(str).astype(object)
    found = self.fingerprint(values)
    self.assertEqual(self.fingerprint(values.copy()), found)
    self.assertEqual(self.fingerprint(np.asfortranarray(values)), found)
    for row in range(6):
      other = values.copy()
      other[row] = values[row - 1]
      self.assertNotEqual(self.fingerprint(other), found)
    self.assertNotEqual(self.fingerprint(values[::-1]), found)
    self.assertNotEqual(self.fingerprint(values.reshape(2, 6)), found)

  def test_chunks_are_the_whole(self):
    values = np.random.default_rng(0).normal(size=(50, 3))
    found = self.fingerprint(values)
    for size in (1, 100, 24 * 50):
      with mock.patch.object(fingerprints, '_CHUNK', size):
        self.assertEqual(self.fingerprint(values), found)

  def test_of_data_on_disk_a_documented_sample_counts(self):
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, 'features')
      rows = 3 * fingerprints.SAMPLE
      stored = np.memmap(path, np.float32, 'w+', shape=(rows, 2))
      stored[:] = np.arange(2 * rows).reshape(rows, 2)
      found = self.fingerprint(stored)
      self.assertEqual(found['sampled_rows'], fingerprints.SAMPLE)
      for row, differs in ((0, True), (rows - 1, True), (1, False)):
        other = np.memmap(path, np.float32, 'c', shape=(rows, 2))
        other[row] += 1
        self.assertEqual(self.fingerprint(other) != found, differs)

  def test_photos_count_by_their_files(self):
    found = images.Images([b'one', b'two'], (4, 4)).content()
    self.assertEqual(images.Images([b'one', b'two'], (8, 8)).content(), found)
    self.assertNotEqual(images.Images([b'one', b'2'], (4, 4)).content(), found)
    self.assertNotEqual(
      images.Images([b'two', b'one'], (4, 4)).content(), found
    )

  def test_what_is_not_there_is_null(self):
    self.assertIsNone(self.fingerprint(None))


class CodeTest(absltest.TestCase):
  def load(self, folder, text):
    path = pathlib.Path(folder, 'my_data.py')
    path.write_text(text, encoding='utf-8')
    spec = importlib.util.spec_from_file_location('my_data', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

  def test_code_of_a_user_is_its_file(self):
    text = (
      'def load(data):\n  return 1\n'
      'class Loader:\n  def __call__(self, data):\n    return 1\n'
    )
    with tempfile.TemporaryDirectory() as folder:
      module = self.load(folder, text)
      found = fingerprints.of_code(module.load)
      self.assertRegex(found, r'^my_data.load [0-9a-f]{64}$')
      self.assertEqual(
        fingerprints.of_code(functools.partial(module.load, 1)), found
      )
      self.assertEqual(fingerprints.of_code(module.Loader())[-64:], found[-64:])
      other = self.load(folder, text.replace('1', '2'))
      self.assertNotEqual(fingerprints.of_code(other.load), found)

  def test_code_of_this_project_is_its_version(self):
    for function in datasets.SOURCES.values():
      self.assertEqual(
        fingerprints.of_code(function), f'fmtl_jax {fmtl_jax.__version__}'
      )

  def test_code_without_a_file_has_a_name(self):
    names = {'__name__': 'typed'}
    exec('def load(data): pass', names)
    self.assertEqual(fingerprints.of_code(names['load']), 'typed.load')


class RunTest(program_test.ToyTestCase):
  """A run, and the same command with other data."""

  finished: pathlib.Path

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.finished = pathlib.Path(folder, 'run')
    cls.config = program_test.toy_config({'run.rounds': 1, 'run.seeds': 1})
    with mock.patch.object(
      case_runs, 'run_case', return_value=train_test.canned_history()
    ):
      train.train_and_evaluate(cls.config, cls.finished)

  def setUp(self):
    super().setUp()
    self.workdir = train_test.new_folder(self)
    shutil.copytree(self.finished, self.workdir)

  def again(self, **changes):
    """Runs the same command on changed data; what it warns of."""
    source = program_test.toy_source(**changes)
    with (
      mock.patch.dict(datasets.SOURCES, toy=lambda data: source),
      contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
      train.train_and_evaluate(self.config, self.workdir)
    return errors.getvalue()

  @parameterized.parameters('features', 'labels', 'strata', 'keys')
  def test_other_data_are_refused_by_name(self, name):
    values = getattr(program_test.toy_source(), name)
    if values.dtype.kind == 'f':
      other = _changed(values)
    else:
      other = values.copy()
      other[-1] += 1
    before = train_test.snapshot(self.workdir)
    with self.assertRaisesRegex(
      ValueError, f'run on other data: its {name} had other values; name a new'
    ) as caught:
      self.again(**{name: other})
    self.assertNotIn('\n', str(caught.exception))
    self.assertEqual(train_test.snapshot(self.workdir), before)

  @parameterized.parameters(
    ({'keys': None}, 'it had keys, and now has none'),
    ({'standardized_axes': (0,)}, r'standardized_axes were \[\] and are \[0\]'),
  )
  def test_whatever_is_different_is_reported(self, changes, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      self.again(**changes)

  def test_another_shape_or_type_is_reported(self):
    features = program_test.toy_source().features
    for other, sentence in (
      (
        features[:, :2],
        r'shape of its features was \[100, 3\] and is \[100, 2',
      ),
      (features.astype(float), 'dtype of its features was float32 and is floa'),
    ):
      with self.assertRaisesRegex(ValueError, sentence):
        self.again(features=other)

  def test_other_code_with_the_same_data_is_a_warning(self):
    with mock.patch.object(fingerprints, 'of_code', lambda fn: 'new'):
      errors = self.again()
    self.assertRegex(
      errors, '^warning: The code that loads the data was changed .* same.\n$'
    )
    with mock.patch.object(
      fingerprints, 'of_code', return_value=self.kept()['code']
    ):
      self.assertEmpty(self.again())

  def kept(self):
    return workdirs.read_config(self.workdir)['data']

  def test_a_folder_without_a_fingerprint_is_read_and_gets_one(self):
    whole = workdirs.read_config(self.workdir)
    older = {k: v for k, v in whole.items() if k != 'data'}
    workdirs.write_json(self.workdir / workdirs.CONFIG, older)
    train.train_and_evaluate(self.config, self.workdir)
    self.assertEqual(workdirs.read_config(self.workdir), whole)

  def test_a_model_is_not_given_the_means_of_other_data(self):
    features = _changed(program_test.toy_source().features)
    source = program_test.toy_source(features=features)
    (self.workdir / 'checkpoints' / 'multi_task_fl').mkdir(parents=True)
    with (
      mock.patch.dict(datasets.SOURCES, toy=lambda data: source),
      self.assertRaisesRegex(ValueError, 'its features had other values'),
    ):
      models_of_runs.load(self.workdir, 'multi_task_fl', 0, task='top')

  def test_trained_parameters_that_runs_begin_with_count(self):
    folder = self.workdir / 'exported'
    found = []
    for value in (1.0, 2.0):
      shutil.rmtree(folder, ignore_errors=True)
      checkpoints.save_params(folder, {'layer': {'kernel': np.array([value])}})
      config = self.config.copy_and_resolve_references()
      config.model.pretrained = str(folder)
      found.append(backbones.load_source(config).fingerprint)
    with self.assertRaisesRegex(
      ValueError, 'the parameters in model.pretrained were others'
    ):
      workdirs.prepare(self.workdir / 'new', {}, {}, found[0])
      fingerprints.check(self.workdir / 'new', found[1])


if __name__ == '__main__':
  absltest.main()
