"""UCI HAR is read as it is, in order, and damaged files are told in words.

All files are made here, with the layout of the public download and few rows.
"""

import io
import os
import pathlib
import tempfile
from typing import Any
from unittest import mock
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow_datasets as tfds

from fmtl_jax.data import uci_har

FOLDER = 'UCI HAR Dataset'
SUBJECTS = {'train': [1, 1, 3, 3, 3], 'test': [2, 2, 2]}
ACTIVITY = {'train': [5, 1, 2, 2, 6], 'test': [3, 4, 1]}  # As in the files.
X_TEST = 'test/X_test.txt'
Y_TRAIN = 'train/y_train.txt'
SUBJECT_TEST = 'test/subject_test.txt'
SIGNAL = 'test/Inertial Signals/body_gyro_y_test.txt'


def _text(table):
  """Writes numbers as the public files do: in columns, with leading spaces."""
  rows = (''.join(f' {value: .8e}' for value in row) for row in table)
  return '\n'.join(rows) + '\n'


def _windows(seed=0) -> dict[str, dict[str, Any]]:
  """Draws the arrays of both splits."""
  rng = np.random.default_rng(seed)
  return {
    split: {
      'features': rng.uniform(-1, 1, (len(rows), 561)).astype(np.float32),
      'signals': rng.normal(size=(len(rows), 128, 9)).astype(np.float32),
    }
    for split, rows in SUBJECTS.items()
  }


def _files(windows) -> dict[str, str]:
  """Gives the text of every file by its path in the folder."""
  files = {
    'README.txt': 'Universit\xe0\n',
    'features.txt': ''.join(f'{n} feature-{n}\n' for n in range(1, 562)),
    'activity_labels.txt': ''.join(
      f'{number} {name.upper()}\n'
      for number, name in enumerate(uci_har.ACTIVITIES, start=1)
    ),
  }
  for split, arrays in windows.items():
    files[f'{split}/X_{split}.txt'] = _text(arrays['features'])
    for stem, numbers in (('y', ACTIVITY), ('subject', SUBJECTS)):
      lines = ''.join(f'{number}\n' for number in numbers[split])
      files[f'{split}/{stem}_{split}.txt'] = lines
    for channel, name in enumerate(uci_har.CHANNELS):
      path = f'{split}/Inertial Signals/{name}_{split}.txt'
      files[path] = _text(arrays['signals'][..., channel])
  return files


def _zip(files, folder=f'{FOLDER}/') -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
    for path, text in files.items():
      head, tail = os.path.split(folder + path)
      archive.writestr(f'__MACOSX/{head}/._{tail}', 'not data')
      archive.writestr(folder + path, text)
  return buffer.getvalue()


WINDOWS = _windows()
FILES = _files(WINDOWS)


class UciHarTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    tfds.disable_progress_bar()
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data_dir = str(folder / 'prepared')
    self.manual_dir = folder / 'manual'
    self.manual_dir.mkdir()
    no_network = AssertionError('A test may not download.')
    for name in ('socket.getaddrinfo', 'socket.socket.connect'):
      self.enterContext(mock.patch(name, side_effect=no_network))

  def write(self, data, name=f'{FOLDER}.zip'):
    (self.manual_dir / name).write_bytes(data)

  def unpack(self, files, folder):
    for path, text in files.items():
      target = folder / path
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_text(text, encoding='latin-1')

  def load(self, kind='features'):
    return uci_har.load(str(self.manual_dir), self.data_dir, kind)

  def expected(self, kind='features', windows=None):
    windows = windows or WINDOWS
    return uci_har.HumanActivity(
      features=np.concatenate([windows['train'][kind], windows['test'][kind]]),
      activity=np.array([4, 0, 1, 1, 5, 2, 3, 0], np.int32),
      subject=np.array([1, 1, 3, 3, 3, 2, 2, 2], np.int32),
      is_test=np.arange(8) >= 5,
    )

  def assert_equal(self, found, expected):
    for name in expected._fields:
      a, b = getattr(found, name), getattr(expected, name)
      self.assertEqual(a.dtype, b.dtype, name)
      np.testing.assert_array_equal(a, b, name)

  def assert_nothing_is_prepared(self):
    found = list(pathlib.Path(self.data_dir).rglob('*.array_record*'))
    found += list(pathlib.Path(self.data_dir).rglob('dataset_info.json'))
    self.assertEmpty(found)


class LoadTest(UciHarTestCase):
  @parameterized.product(
    kind=('features', 'signals'), folder=(f'{FOLDER}/', '', 'x/y/')
  )
  def test_a_zip_is_read_in_order(self, kind, folder):
    self.write(_zip(FILES, folder))
    self.assert_equal(self.load(kind), self.expected(kind))
    # Again, now from the prepared copy.
    self.assert_equal(self.load(kind), self.expected(kind))

  def test_a_zip_in_a_zip_is_read(self):
    outer = {
      f'{FOLDER}.names': 'text',
      f'{FOLDER}.zip': _zip(FILES),
    }
    name = 'human+activity+recognition+using+smartphones.zip'
    self.write(_zip(outer, folder=''), name)
    self.assert_equal(self.load(), self.expected())

  @parameterized.parameters(FOLDER, '.')
  def test_an_unpacked_folder_is_read(self, folder):
    self.unpack(FILES, self.manual_dir / folder)
    for kind in ('features', 'signals'):
      self.assert_equal(self.load(kind), self.expected(kind))

  def test_other_zips_are_left_alone(self):
    self.write(_zip(FILES), 'uci_har.zip')
    self.write(b'no zip', 'faces.zip')
    self.write(b'no zip', '._uci_har.zip')
    self.assert_equal(self.load(), self.expected())

  @parameterized.parameters('zip', 'folder')
  def test_other_data_are_not_taken_for_those_prepared_before(self, form):
    for seed in (0, 1, 0):
      windows = _windows(seed)
      if form == 'zip':
        self.write(_zip(_files(windows)))
      else:
        self.unpack(_files(windows), self.manual_dir / FOLDER)
      self.assert_equal(self.load(), self.expected(windows=windows))

  def test_data_are_prepared_once(self):
    self.write(_zip(FILES))
    self.load()
    with mock.patch.object(
      uci_har, '_read_split', side_effect=AssertionError('Prepared twice.')
    ):
      self.load()

  def test_blank_lines_at_the_end_and_carriage_returns_do_not_matter(self):
    files = {
      path: text.replace('\n', '\r\n') + '\r\n \r\n'
      for path, text in FILES.items()
    }
    self.write(_zip(files))
    for kind in ('features', 'signals'):
      self.assert_equal(self.load(kind), self.expected(kind))

  def test_two_processes_may_prepare_the_same_data(self):
    self.write(_zip(FILES))
    read_split = uci_har._read_split
    other: list[Any] = []

    def read_while_another_process_finishes(*args):
      if not other:
        other.append(None)
        other.append(self.load())
      return read_split(*args)

    with mock.patch.object(
      uci_har, '_read_split', read_while_another_process_finishes
    ):
      self.assert_equal(self.load(), self.expected())
    self.assert_equal(other[1], self.expected())


class BuilderTest(UciHarTestCase):
  @parameterized.parameters(('features', (561,)), ('signals', (128, 9)))
  def test_examples_are_documented_and_in_order(self, kind, shape):
    self.write(_zip(FILES))
    builder = uci_har.UciHar(config=kind, data_dir=self.data_dir)
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=self.manual_dir),
      file_format='array_record',
    )
    self.assertEqual(builder.name, 'uci_har')
    features = builder.info.features
    self.assertEqual(set(features), {kind, 'activity', 'subject', 'row'})
    self.assertEqual(features[kind].shape, shape)
    self.assertEqual(features[kind].np_dtype, np.float32)
    self.assertEqual(tuple(features['activity'].names), uci_har.ACTIVITIES)
    for split, subjects in SUBJECTS.items():
      examples = list(builder.as_data_source(split))
      self.assertEqual([int(e['subject']) for e in examples], subjects)
      rows = [int(example['row']) for example in examples]
      self.assertEqual(rows, list(range(len(subjects))))
      np.testing.assert_array_equal(
        [example[kind] for example in examples], WINDOWS[split][kind]
      )

  def test_a_download_is_read_without_a_manual_dir(self):
    self.write(_zip(FILES))
    path = self.manual_dir / f'{FOLDER}.zip'
    with mock.patch.object(
      tfds.download.DownloadManager, 'download', return_value=path
    ) as download:
      self.assert_equal(uci_har.load(None, self.data_dir), self.expected())
    download.assert_called_once_with(uci_har.URL)

  def test_a_failed_download_is_told(self):
    with (
      mock.patch.object(
        tfds.download.DownloadManager,
        'download',
        side_effect=OSError('cable'),
      ),
      self.assertRaisesRegex(ValueError, 'cable.* as manual_dir'),
    ):
      uci_har.load(None, self.data_dir)
    self.assert_nothing_is_prepared()


class ChecksumTest(UciHarTestCase):
  """TFDS takes a file in `downloads/manual` for the download, and checks it."""

  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.data_dir) / 'downloads' / 'manual'
    folder.mkdir(parents=True)
    self.download = folder / uci_har.UciHar.url_infos[uci_har.URL].filename
    self.download.write_bytes(_zip(FILES))

  def test_another_file_than_the_published_one_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'wrong checksum.* as manual_dir'):
      uci_har.load(None, self.data_dir)
    self.assert_nothing_is_prepared()

  def test_the_published_file_is_taken(self):
    info = tfds.download.checksums.compute_url_info(self.download)
    with mock.patch.dict(uci_har.UciHar.url_infos, {uci_har.URL: info}):
      found = uci_har.load(None, self.data_dir)
    self.assert_equal(found, self.expected())


class ErrorTest(UciHarTestCase):
  def assert_error(self, sentence, kind='features'):
    with self.assertRaisesRegex(ValueError, sentence) as caught:
      self.load(kind)
    self.assertIn(uci_har.URL, str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))
    self.assert_nothing_is_prepared()

  def assert_error_then_recovery(self, sentence, kind='features'):
    """A failed preparation is not taken for a good one, and does no harm."""
    self.assert_error(sentence, kind)
    self.assert_error(sentence, kind)
    self.write(_zip(FILES))
    self.assert_equal(self.load(kind), self.expected(kind))

  def damage(self, path, change):
    text = FILES[path]
    self.write(_zip(FILES | {path: change(text)}))
    self.assertNotEqual(change(text), text)

  def test_an_unknown_kind_is_named(self):
    with self.assertRaisesRegex(ValueError, "features, signals, got 'images'"):
      uci_har.load(str(self.manual_dir), self.data_dir, 'images')

  def test_a_missing_folder_is_named(self):
    self.manual_dir.rmdir()
    self.assert_error('Expected manual_dir to be a folder')

  def test_a_folder_without_a_zip_is_named(self):
    self.write(b'', 'faces.zip')
    self.assert_error(f"zip with HAR in its name or the folder '{FOLDER}'")

  def test_several_zips_are_listed(self):
    self.write(_zip(FILES), 'HAR a.zip')
    self.write(_zip(FILES), 'HAR b.zip')
    self.assert_error('Expected one UCI HAR zip .*HAR a.zip, HAR b.zip')

  @parameterized.parameters(0, 1, 50, 1000, -1000, -30, -1)
  def test_a_truncated_zip_is_told(self, size):
    self.write(_zip(FILES)[:size])
    self.assert_error_then_recovery('Expected a zip of the UCI HAR data set')

  def test_random_bytes_are_told(self):
    self.write(np.random.default_rng(0).bytes(5000))
    self.assert_error_then_recovery('Expected a zip of the UCI HAR data set')

  @parameterized.parameters(range(25))
  def test_wrong_bytes_give_the_data_or_an_error(self, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(_zip(FILES))
    # Half of them where the zip lists its files.
    start = 0 if seed % 2 else len(data) - 5000
    for position in rng.integers(start, len(data), 5):
      data[position] = rng.integers(256)
    self.write(bytes(data))
    try:
      found = self.load('signals')
    except ValueError as error:
      self.assertIn(uci_har.URL, str(error))
      self.assert_nothing_is_prepared()
    else:
      self.assert_equal(found, self.expected('signals'))

  @parameterized.parameters(
    'activity_labels.txt',
    'features.txt',
    X_TEST,
    Y_TRAIN,
    SUBJECT_TEST,
    SIGNAL,
  )
  def test_a_missing_file_is_named(self, path):
    files = {name: text for name, text in FILES.items() if name != path}
    self.write(_zip(files))
    self.assert_error_then_recovery(f'Expected the file {path} in')

  def test_a_missing_file_of_an_unpacked_folder_is_named(self):
    folder = self.manual_dir / FOLDER
    self.unpack(FILES, folder)
    os.remove(folder / Y_TRAIN)
    self.assert_error(f'Expected the file {Y_TRAIN} in')

  def test_a_damaged_zip_in_a_zip_is_told(self):
    inner = _zip(FILES)
    self.write(_zip({f'{FOLDER}.zip': inner[: len(inner) // 2]}, folder=''))
    self.assert_error_then_recovery('Expected a zip of the UCI HAR data set')

  def test_a_zip_of_something_else_is_told(self):
    self.write(_zip({'data.csv': '1,2,3'}, folder=''))
    self.assert_error_then_recovery('Expected the file activity_labels.txt')

  @parameterized.product(
    path=(X_TEST, Y_TRAIN, SUBJECT_TEST, SIGNAL),
    kind=('features', 'signals'),
  )
  def test_a_short_file_is_told(self, path, kind):
    self.damage(path, lambda text: ''.join(text.splitlines(True)[:-1]))
    self.assert_error('Expected a row for each window in ', kind)

  @parameterized.parameters(
    (lambda text: '', 'at least one, got 0'),
    (lambda text: text.replace('\n', '\n\n', 1), 'in line 2 .*got 0'),
  )
  def test_an_empty_split_or_line_is_told(self, change, sentence):
    files = {
      path: change(text) if path.startswith('test/') else text
      for path, text in FILES.items()
    }
    self.write(_zip(files))
    self.assert_error_then_recovery(sentence)

  @parameterized.parameters(
    (X_TEST, 'features', 561),
    (SIGNAL, 'signals', 128),
    (Y_TRAIN, 'signals', 1),
  )
  def test_a_row_of_another_length_is_told(self, path, kind, size):
    self.damage(path, lambda text: text.replace('\n', ' 0.5\n', 1))
    self.assert_error(
      f'Expected {size} numbers in line 1 of {path}, got {size + 1};', kind
    )

    def drop_last_of_line_1(text):
      first, rest = text.split('\n', 1)
      return ' '.join(first.split()[:-1]) + '\n' + rest

    self.damage(path, drop_last_of_line_1)
    self.assert_error(
      f'Expected {size} numbers in line 1 of {path}, got {size - 1};', kind
    )

  @parameterized.parameters(
    (X_TEST, 'features'),
    (SIGNAL, 'signals'),
    (Y_TRAIN, 'features'),
    (SUBJECT_TEST, 'signals'),
  )
  def test_what_is_no_finite_number_is_told(self, path, kind):
    def change_line_2(value):
      def change(text):
        lines = text.splitlines(keepends=True)
        return (
          lines[0]
          + ' '.join([value, *lines[1].split()[1:]])
          + '\n'
          + (''.join(lines[2:]))
        )

      return change

    for value in ('zero', '1,5', '0x1', '1.5e', '\x00', '\xff'):
      self.damage(path, change_line_2(value))
      self.assert_error(f'Expected numbers in line 2 of {path}', kind)
    for value in ('nan', 'inf', '-inf', '1e39'):
      self.damage(path, change_line_2(value))
      self.assert_error(
        f'Expected finite numbers in {path}, got .* line 2, column 1', kind
      )

  def test_windows_with_nan_are_read_where_they_are_allowed(self):
    self.damage(X_TEST, lambda text: 'nan ' + text.split(maxsplit=1)[1])
    found = uci_har.load(
      str(self.manual_dir), self.data_dir, allow_nonfinite=True
    )
    nan = np.isnan(found.features)
    np.testing.assert_array_equal(np.argwhere(nan), [[5, 0]])
    expected = self.expected().features
    np.testing.assert_array_equal(found.features[~nan], expected[~nan])
    # What was prepared then is refused where they are not.
    with self.assertRaisesRegex(
      ValueError, 'The windows of subject 2 hold NaN'
    ):
      self.load()

  @parameterized.parameters('0', '7', '-1', '1.5')
  def test_an_activity_without_a_label_is_told(self, value):
    self.damage(Y_TRAIN, lambda text: text.replace('6', value))
    self.assert_error_then_recovery(
      f'whole numbers from 1 to 6 in {Y_TRAIN}, got {value} in line 5'
    )

  @parameterized.parameters('0', '2.5', '1e12')
  def test_a_subject_that_is_no_number_of_a_person_is_told(self, value):
    self.damage(SUBJECT_TEST, lambda text: value + text[1:])
    self.assert_error(f'Expected whole numbers from 1 .* in {SUBJECT_TEST}')

  @parameterized.parameters(
    lambda text: text.replace('SITTING', 'STANDING'),
    lambda text: text.replace('6', '7'),
    lambda text: text + '7 RUNNING\n',
  )
  def test_other_activities_are_told(self, change):
    self.damage('activity_labels.txt', change)
    self.assert_error('Expected the lines 1 walking, .* 6 laying')

  def test_other_features_are_told(self):
    self.damage('features.txt', lambda text: text[: len(text) // 2])
    self.assert_error('Expected 561 names in features.txt')

  def test_a_full_disk_is_not_taken_for_damaged_data(self):
    self.write(_zip(FILES))
    with (
      mock.patch.object(uci_har, '_read_split', side_effect=OSError('full')),
      self.assertRaisesRegex(OSError, 'full'),
    ):
      self.load()
    self.assert_nothing_is_prepared()

  def test_a_damaged_prepared_copy_is_told(self):
    self.write(_zip(FILES))
    self.load()
    for path in pathlib.Path(self.data_dir).rglob('*test.array_record*'):
      path.write_bytes(b'damaged')
    with self.assertRaisesRegex(ValueError, 'delete this folder'):
      self.load()


if __name__ == '__main__':
  absltest.main()
