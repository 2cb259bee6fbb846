"""UTKFace is read as it is, in order, and what cannot be used is told.

All photographs are made here, a few pixels each.
"""

import contextlib
import io
import os
import pathlib
import sys
import tempfile
from unittest import mock
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow_datasets as tfds

from fmtl_jax.data import images
from fmtl_jax.data import utkface

# Of each file: age, gender, race. Sorted as names, not as numbers.
LABELS = {
  '100_0_1_20170112213500903.jpg.chip.jpg': (100, 0, 1),
  '1_1_4_20161219140623097.jpg.chip.jpg': (1, 1, 4),
  '26_0_3_20170104225502159.jpg.chip.jpg': (26, 0, 3),
  '26_1_0_20170104225502160.jpg.chip.jpg': (26, 1, 0),
  '8_0_2_20170109204617417.jpg.chip.jpg': (8, 0, 2),
}
NAMES = tuple(LABELS)
# Some miss a label, the others have one out of range.
NO_LABEL = (
  '39_1_20170116174525125.jpg.chip.jpg',
  '53__0_20170116184028385.jpg.chip.jpg',
  '61_3_20170109150557335.jpg.chip.jpg',
  '44_2_0_20170109150557336.jpg.chip.jpg',
  '44_1_5_20170109150557337.jpg.chip.jpg',
  '1000_1_0_20170109150557338.jpg.chip.jpg',
  'portrait.jpg',
)


def _photographs(names=NAMES, seed=0) -> dict[str, bytes]:
  """Draws a JPEG file for each name."""
  import PIL.Image

  rng = np.random.default_rng(seed)
  files = {}
  for name in names:
    buffer = io.BytesIO()
    pixels = rng.integers(0, 256, (16, 12, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(buffer, 'jpeg')
    files[name] = buffer.getvalue()
  return files


def _zip(files) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    for path, content in reversed(files.items()):
      head, tail = os.path.split(path)
      archive.writestr(f'__MACOSX/{head}/._{tail}', 'not data')
      archive.writestr(path, content)
  return buffer.getvalue()


def _within(folder, files):
  return {f'{folder}{name}': content for name, content in files.items()}


class UtkfaceTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    tfds.disable_progress_bar()
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data_dir = folder / 'prepared'
    self.manual_dir = folder / 'manual'
    self.manual_dir.mkdir()
    self.files = _photographs()

  def write(self, files, form='folder'):
    if form == 'zip':
      (self.manual_dir / 'UTKFace.zip').write_bytes(_zip(files))
    else:
      for path, content in files.items():
        target = self.manual_dir / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

  def load(self):
    return utkface.load(str(self.manual_dir), str(self.data_dir))

  def assert_faces(self, faces, files, summary=''):
    self.assertEqual(faces.names, tuple(files))
    self.assertLen(faces.encoded, len(files))
    for position, content in enumerate(files.values()):
      self.assertEqual(faces.encoded[position], content)
    for column, name in enumerate(('age', 'gender', 'race')):
      found = getattr(faces, name)
      self.assertEqual(found.dtype, np.int32)
      expected = [LABELS[file][column] for file in files]
      np.testing.assert_array_equal(found, expected)
    self.assertEqual(faces.summary, summary)


class LoadTest(UtkfaceTestCase):
  @parameterized.product(
    form=('zip', 'folder'), folder=('UTKFace/', '', 'a/UTKFace/')
  )
  def test_files_come_back_as_they_are_in_the_order_of_names(
    self, form, folder
  ):
    self.write(_within(folder, self.files), form)
    self.assert_faces(self.load(), self.files)
    # Again, now from the prepared copy.
    self.assert_faces(self.load(), self.files)

  def test_a_zip_and_a_folder_share_a_prepared_copy(self):
    self.write(_within('UTKFace/', self.files))
    self.load()
    self.write(self.files, 'zip')
    self.load()
    self.assertLen(list(self.data_dir.iterdir()), 1)

  def test_images_in_a_second_folder_are_not_read_twice(self):
    self.write(_within('UTKFace/', self.files))
    self.write(_within('1/', _photographs(NAMES[:2], seed=1)))
    self.assert_faces(self.load(), self.files)

  def test_other_zips_are_left_alone(self):
    self.write(self.files, 'zip')
    for name in ('har.zip', '._UTKFace.zip'):
      (self.manual_dir / name).write_bytes(b'no zip')
    self.assert_faces(self.load(), self.files)

  @parameterized.parameters('zip', 'folder')
  def test_other_content_is_not_taken_for_that_prepared_before(self, form):
    for seed in (0, 1, 0):
      files = _photographs(seed=seed)
      self.write(files, form)
      self.assert_faces(self.load(), files)
    self.assertLen(list(self.data_dir.iterdir()), 2)

  def test_prepared_images_are_not_decoded_again(self):
    self.write(self.files)
    self.load()
    with mock.patch.dict(sys.modules, {'PIL': None}):
      self.assert_faces(self.load(), self.files)

  def test_they_decode_to_photographs(self):
    self.write(self.files)
    photographs = images.Images(self.load().encoded, (16, 12))
    expected = images.Images(list(self.files.values()), (16, 12))
    np.testing.assert_array_equal(photographs[:], expected[:])

  def test_a_path_that_is_not_utf_8_comes_back(self):
    name = os.fsdecode(b'9_1_0_\xff.jpg')
    self.write(self.files)
    files = self.files | _photographs([name])
    # Not every file system takes such a name.
    opened = images.Files(sorted(files), files.__getitem__)
    with mock.patch.object(
      images, 'open_files', return_value=contextlib.nullcontext(opened)
    ):
      faces = self.load()
    self.assertEqual(faces.names, (*NAMES, name))
    self.assertEqual(faces.encoded[len(NAMES)], files[name])

  def test_examples_are_documented(self):
    self.write(self.files)
    builder = utkface.Utkface(
      data_dir=self.data_dir, file_format='array_record'
    )
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=self.manual_dir)
    )
    self.assertEqual(builder.name, 'utkface')
    self.assertEqual(tuple(builder.info.features['race'].names), utkface.RACES)
    first = builder.as_data_source('train')[0]
    self.assertEqual(
      first,
      {
        'image': self.files[NAMES[0]],
        'name': NAMES[0].encode(),
        'age': 100,
        'gender': utkface.GENDERS.index('male'),
        'race': utkface.RACES.index('black'),
      },
    )


class LeftOutTest(UtkfaceTestCase):
  def assert_left_out(self, files, kept, summary):
    self.write(files)
    self.assert_faces(self.load(), kept, summary)
    self.assert_faces(self.load(), kept, summary)  # From the prepared copy.

  @parameterized.parameters(
    lambda content: b'',
    lambda content: b'<html>Not found</html>',
    lambda content: content[:-100],
  )
  def test_a_damaged_image_is_named_on_every_load(self, change):
    damaged = NAMES[2]
    files = self.files | {damaged: change(self.files[damaged])}
    kept = {name: files[name] for name in NAMES if name != damaged}
    self.assert_left_out(
      files, kept, f"Left out: 1 unreadable images ('{damaged}')"
    )

  def test_a_damaged_part_of_a_zip_is_an_unreadable_image(self):
    data = _zip(self.files)
    position = data.index(self.files[NAMES[0]]) + 200
    data = data[:position] + b'\0\0\0\0' + data[position + 4 :]
    (self.manual_dir / 'UTKFace.zip').write_bytes(data)
    kept = {name: self.files[name] for name in NAMES[1:]}
    self.assert_faces(
      self.load(), kept, f"Left out: 1 unreadable images ('{NAMES[0]}')"
    )

  @parameterized.parameters(*NO_LABEL)
  def test_an_image_without_labels_is_named_on_every_load(self, name):
    self.assert_left_out(
      self.files | _photographs([name]),
      self.files,
      f"Left out: 1 images without labels in their names ('{name}')",
    )

  def test_all_are_counted_and_the_first_are_named(self):
    files = self.files | _photographs(NO_LABEL) | {NAMES[4]: b''}
    first = ', '.join(repr(name) for name in sorted(NO_LABEL)[:3])
    self.assert_left_out(
      files,
      {name: files[name] for name in NAMES[:4]},
      f"Left out: 1 unreadable images ('{NAMES[4]}'); "
      f'{len(NO_LABEL)} images without labels in their names ({first}, ...)',
    )


class ErrorTest(UtkfaceTestCase):
  def assert_error(self, sentence):
    for _ in range(2):  # A failed preparation is not taken for a good one.
      with self.assertRaisesRegex(ValueError, sentence) as caught:
        self.load()
      self.assertNotIn('\n', str(caught.exception))

  def test_a_missing_folder_is_told_and_where_to_get_the_data(self):
    self.manual_dir.rmdir()
    self.assert_error(f'Expected manual_dir to be a folder .*{utkface.URL}')

  def test_a_folder_without_images_is_told_and_where_to_get_them(self):
    self.assert_error(f'Expected images of UTKFace in .*{utkface.URL}')

  def test_several_zips_are_listed(self):
    for name in ('utk a.zip', 'UTK b.zip'):
      (self.manual_dir / name).write_bytes(_zip(self.files))
    self.assert_error('Expected one UTKFace zip .*UTK b.zip, utk a.zip')

  @parameterized.parameters(0, 1, -1, -1000)
  def test_a_truncated_zip_is_told(self, size):
    (self.manual_dir / 'UTKFace.zip').write_bytes(_zip(self.files)[:size])
    self.assert_error('Expected a zip of images, got .*download it again')

  def test_no_image_left_is_told_and_does_no_harm(self):
    self.write(dict.fromkeys(self.files, b'') | _photographs(['x.jpg']))
    self.assert_error(
      r"Expected at least one .*got none \(Left out: 5 .*; 1 .*\('x.jpg'\)\)"
    )
    self.write(self.files)
    os.remove(self.manual_dir / 'x.jpg')
    self.assert_faces(self.load(), self.files)

  def test_a_damaged_prepared_copy_is_told(self):
    self.write(self.files)
    self.load()
    for path in self.data_dir.rglob('*.array_record*'):
      path.write_bytes(b'damaged')
    self.assert_error('delete this folder')


if __name__ == '__main__':
  absltest.main()
