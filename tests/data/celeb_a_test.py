"""CelebA is prepared and read without TensorFlow, and nothing is decoded.

The files are made here, for a few images; no image can be decoded.
"""

import importlib.abc
import pathlib
import shutil
import sys
import tempfile
from unittest import mock
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.celeb_a import celeb_a_dataset_builder

from fmtl_jax.data import celeb_a

ATTRIBUTES = celeb_a_dataset_builder.ATTR_HEADINGS
LANDMARKS = celeb_a_dataset_builder.LANDMARK_HEADINGS
ZIP = 'img_align_celeba.zip'
FILES = (
  ZIP,
  'list_eval_partition.txt',
  'list_attr_celeba.txt',
  'list_landmarks_align_celeba.txt',
  'identity_CelebA.txt',
)

# Of each image: the split, who is on it, the eyes and the nose, and whether
# this is a turned head.
PEOPLE = {
  '000001.jpg': (0, 2880, (69, 111, 109, 111, 89, 135), 0),
  '000002.jpg': (0, 17, (69, 111, 109, 111, 94, 135), 0),
  '000003.jpg': (0, 17, (69, 111, 109, 111, 96, 135), 1),
  '000004.jpg': (1, 10177, (69, 111, 109, 111, 82, 135), 1),
  # The same heads, tilted by a right angle: only `y` tells them apart.
  '000005.jpg': (2, 5, (89, 71, 89, 111, 60, 95), 0),
  '000006.jpg': (0, 2880, (89, 71, 89, 111, 60, 99), 1),
  # Twice and half as near: the same angle is more, or fewer, pixels.
  '000007.jpg': (1, 4, (49, 111, 129, 111, 99, 140), 0),
  '000008.jpg': (0, 3, (79, 111, 99, 111, 93, 120), 1),
}
NAMES = tuple(PEOPLE)


def _image(name) -> bytes:
  return f'the content of {name}'.encode()


def _attributes(seed=0) -> np.ndarray:
  return np.random.default_rng(seed).choice([-1, 1], (len(NAMES), 40))


def _expected(name) -> list[int]:
  row = dict(zip(ATTRIBUTES, _attributes()[NAMES.index(name)], strict=True))
  return [
    row['Male'] == 1,
    row['Young'] == 1,
    row['Eyeglasses'] == 1,
    PEOPLE[name][3],
    row['Mouth_Slightly_Open'] == 1,
  ]


def _write_table(path, columns, rows):
  lines = [
    f'{name} {" ".join(map(str, row))}\n'
    for name, row in zip(NAMES, rows, strict=True)
  ]
  header = [f'{len(NAMES)}\n', ' '.join(columns) + '\n'] if columns else []
  path.write_text(''.join(header + lines))


def _write_files(folder):
  """Writes the five files as they are published."""
  images, split, attributes, landmarks, identity = (
    folder / name for name in FILES
  )
  with zipfile.ZipFile(images, 'w') as archive:
    for name in NAMES:
      # Of one date, so that files written again are the same.
      info = zipfile.ZipInfo(f'img_align_celeba/{name}')
      archive.writestr(info, _image(name))
  people = list(PEOPLE.values())
  _write_table(split, None, [[person[0]] for person in people])
  _write_table(attributes, ATTRIBUTES, _attributes())
  mouth = (75, 150, 103, 150)
  _write_table(landmarks, LANDMARKS, [person[2] + mouth for person in people])
  _write_table(identity, None, [[person[1]] for person in people])


class _NoTensorFlow(importlib.abc.MetaPathFinder):
  """Keeps TensorFlow from being imported where it is installed."""

  def find_spec(self, fullname, path, target=None):
    if fullname.partition('.')[0] == 'tensorflow':
      raise ModuleNotFoundError('A test may not import TensorFlow.')


class CelebATestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    tfds.disable_progress_bar()
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data_dir = str(folder / 'prepared')
    self.manual_dir = folder / 'manual'
    self.manual_dir.mkdir()
    _write_files(self.manual_dir)
    infos = {
      url: tfds.download.checksums.compute_url_info(
        self.manual_dir / info.filename
      )
      for url, info in celeb_a.CelebA.url_infos.items()
    }
    self.enterContext(mock.patch.dict(celeb_a.CelebA.url_infos, infos))
    finders = [_NoTensorFlow(), *sys.meta_path]
    self.enterContext(mock.patch.object(sys, 'meta_path', finders))
    no_network = AssertionError('A test may not download.')
    for name in ('socket.getaddrinfo', 'socket.socket.connect'):
      self.enterContext(mock.patch(name, side_effect=no_network))

  def load(self):
    return celeb_a.load(self.data_dir, self.manual_dir)

  def assert_complete(self, faces):
    """Asserts that every image is there, with its own labels."""
    contents = [faces.encoded[i] for i in range(len(faces.encoded))]
    self.assertCountEqual(contents, map(_image, NAMES))
    names = [NAMES[[*map(_image, NAMES)].index(c)] for c in contents]
    np.testing.assert_array_equal(faces.labels, [*map(_expected, names)])
    self.assertEqual(faces.identity.tolist(), [PEOPLE[n][1] for n in names])
    self.assertEqual(faces.split.tolist(), [PEOPLE[n][0] for n in names])

  def assert_error(self, sentence, manual_dir=None):
    with self.assertRaisesRegex(ValueError, sentence) as caught:
      celeb_a.load(self.data_dir, manual_dir)
    self.assertNotIn('\n', str(caught.exception))
    return str(caught.exception)

  def assert_nothing_is_prepared(self):
    found = list(pathlib.Path(self.data_dir).rglob('*.array_record*'))
    found += list(pathlib.Path(self.data_dir).rglob('dataset_info.json'))
    self.assertEmpty(found)


class LoadTest(CelebATestCase):
  def test_every_image_has_its_own_labels(self):
    faces = self.load()
    self.assert_complete(faces)
    self.assertLen(faces.encoded, len(NAMES))
    self.assertEqual(faces.tasks, celeb_a.TASKS)
    self.assertEqual(faces.labels.dtype, np.float32)
    self.assertEqual(faces.identity.dtype, np.int32)
    self.assertEqual(faces.split.dtype, np.int32)

  def test_splits_stand_in_their_order(self):
    self.assertEqual(self.load().split.tolist(), [0] * 5 + [1] * 2 + [2])

  @parameterized.parameters(1, 3, 8)
  def test_how_many_are_read_at_once_changes_nothing(self, chunk):
    with mock.patch.object(celeb_a, '_CHUNK', chunk):
      self.assert_complete(self.load())

  def test_a_prepared_data_set_needs_no_files(self):
    first = self.load()
    shutil.rmtree(self.manual_dir)
    second = celeb_a.load(self.data_dir)
    self.assert_complete(second)
    np.testing.assert_array_equal(second.identity, first.identity)
    self.assert_complete(self.load())

  def test_files_in_the_download_folder_are_not_downloaded(self):
    folder = pathlib.Path(self.data_dir) / 'downloads' / 'manual'
    shutil.copytree(self.manual_dir, folder)
    self.assert_complete(celeb_a.load(self.data_dir))

  def test_two_processes_may_prepare_the_same_data(self):
    finish = celeb_a.CelebA.download_and_prepare

    def finish_after_another_process(builder, **kwargs):
      finish(builder, **kwargs)
      raise FileExistsError(builder.data_dir)

    with mock.patch.object(
      celeb_a.CelebA, 'download_and_prepare', finish_after_another_process
    ):
      self.assert_complete(self.load())

  def test_a_full_disk_is_not_taken_for_damaged_data(self):
    with (
      mock.patch.object(
        celeb_a.CelebA, '_generate_examples', side_effect=OSError('full')
      ),
      self.assertRaisesRegex(OSError, 'full'),
    ):
      self.load()
    self.assert_nothing_is_prepared()


class BuilderTest(CelebATestCase):
  def test_it_reads_and_writes_what_tfds_does(self):
    self.load()
    builder = tfds.builder('celeb_a', data_dir=self.data_dir)
    self.assertEqual(
      builder.info.full_name,
      f'celeb_a/{celeb_a_dataset_builder.Builder.VERSION}',
    )
    source = builder.as_data_source(
      'validation', decoders={'image': tfds.decode.SkipDecoding()}
    )
    people = {PEOPLE[name][1]: name for name in ('000004.jpg', '000007.jpg')}
    self.assertLen(source, len(people))
    for example in source:
      name = people.pop(example['identity']['Identity_No'])
      self.assertEqual(example['image'], _image(name))
      attributes = [example['attributes'][a] * 2 - 1 for a in ATTRIBUTES]
      self.assertEqual(attributes, _attributes()[NAMES.index(name)].tolist())
      self.assertEqual(example['landmarks']['rightmouth_x'], 103)


class ErrorTest(CelebATestCase):
  @parameterized.parameters(*FILES)
  def test_a_missing_file_is_named(self, name):
    (self.manual_dir / name).unlink()
    error = self.assert_error(f'none of the name {name};', self.manual_dir)
    self.assertIn(celeb_a.URL, error)
    self.assert_nothing_is_prepared()

  def test_a_missing_folder_is_named(self):
    self.assert_error('in manual_dir .*absent, got', self.manual_dir / 'absent')
    self.assert_nothing_is_prepared()

  @parameterized.parameters(*FILES)
  def test_another_file_than_the_published_one_is_refused(self, name):
    with (self.manual_dir / name).open('ab') as file:
      file.write(b' ')
    error = self.assert_error('checksum.* as manual_dir', self.manual_dir)
    self.assertIn(celeb_a.URL, error)
    self.assert_nothing_is_prepared()
    _write_files(self.manual_dir)
    self.assert_complete(self.load())

  def test_a_failed_download_is_told(self):
    with mock.patch.object(
      tfds.download.DownloadManager, 'download', side_effect=OSError('quota')
    ):
      error = self.assert_error('quota.* as manual_dir')
    for name in (*FILES, celeb_a.URL):
      self.assertIn(name, error)
    self.assert_nothing_is_prepared()

  def test_a_data_set_in_another_format_is_told(self):
    self.load()
    for info in pathlib.Path(self.data_dir).rglob('dataset_info.json'):
      info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    self.assert_error('another format .*TFRECORD.*; give another data_dir')

  @parameterized.parameters(*celeb_a.SPLITS)
  def test_a_damaged_prepared_copy_is_told(self, split):
    self.load()
    for path in pathlib.Path(self.data_dir).rglob(f'*-{split}.array_record*'):
      path.write_bytes(b'damaged')
    self.assert_error('Could not read .*delete this folder')


if __name__ == '__main__':
  absltest.main()
