"""A folder of photographs and a CSV become images and labels, in order.

All photographs are made here, a few pixels each.
"""

import contextlib
import io
import os
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from fmtl_jax.data import face_folder
from fmtl_jax.data import images

NAMES = ('10.jpg', '9.jpg', 'b/10.PNG', 'b/a/x.jpeg')
TABLE = """file,Smiling,Grey hair
9.jpg,1,0
10.jpg,0,1
b/a/x.jpeg,1,1
b/10.PNG,0,0
"""
LABELS = [[0, 1], [1, 0], [0, 0], [1, 1]]  # In the order of names.


def _photographs(names=NAMES, seed=0) -> dict[str, bytes]:
  """Draws an image file for each name."""
  import PIL.Image

  rng = np.random.default_rng(seed)
  files = {}
  for name in names:
    buffer = io.BytesIO()
    pixels = rng.integers(0, 256, (16, 12, 3), np.uint8)
    kind = 'png' if name.endswith('PNG') else 'jpeg'
    PIL.Image.fromarray(pixels).save(buffer, kind)
    files[name] = buffer.getvalue()
  return files


class FaceFolderTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    tfds.disable_progress_bar()
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data_dir = folder / 'prepared'
    self.folder = folder / 'faces'
    self.files = _photographs()
    self.write(self.files)
    self.write_table(TABLE)

  def write(self, files):
    for path, content in files.items():
      target = self.folder / path
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(content)

  def write_table(self, text, name='faces.csv'):
    self.write({name: text.encode()})

  def load(self):
    return face_folder.load(str(self.folder), str(self.data_dir))

  def assert_faces(self, faces, files, labels=LABELS, summary=''):
    self.assertEqual(faces.names, tuple(files))
    self.assertLen(faces.encoded, len(files))
    for position, content in enumerate(files.values()):
      self.assertEqual(faces.encoded[position], content)
    self.assertEqual(faces.labels.dtype, np.float32)
    np.testing.assert_array_equal(faces.labels, labels)
    self.assertEqual(faces.attributes, ('Smiling', 'Grey hair'))
    self.assertEqual(faces.summary, summary)


class LoadTest(FaceFolderTestCase):
  def test_files_come_back_as_they_are_in_the_order_of_paths(self):
    self.assert_faces(self.load(), self.files)
    # Again, now from the prepared copy.
    self.assert_faces(self.load(), self.files)

  def test_a_file_name_is_enough_where_one_image_has_it(self):
    self.write_table(TABLE.replace('b/a/x.jpeg', 'x.jpeg'))
    self.assert_faces(self.load(), self.files)

  def test_minus_one_means_zero(self):
    self.write_table(
      'file,Smiling,Grey hair\n'
      '9.jpg,1,-1\n10.jpg,-1,1\nx.jpeg,1,1\nb/10.PNG,-1,-1\n'
    )
    self.assert_faces(self.load(), self.files)

  def test_an_empty_value_is_a_missing_label(self):
    self.write_table(TABLE.replace('1,0', '1,').replace('0,1', ' ,1'))
    labels = [[np.nan, 1], [1, np.nan], [0, 0], [1, 1]]
    self.assert_faces(self.load(), self.files, labels)
    self.assert_faces(self.load(), self.files, labels)

  def test_a_byte_order_mark_spaces_quotes_and_line_ends_do_not_matter(self):
    text = TABLE.replace('9.jpg,1', '"9.jpg", 1').replace('\n', '\r\n\r\n')
    self.write_table('\ufeff' + text.replace(',Smiling', ', Smiling '))
    self.assert_faces(self.load(), self.files)

  def test_other_content_is_not_taken_for_that_prepared_before(self):
    for seed in (0, 1, 0):
      files = _photographs(seed=seed)
      self.write(files)
      self.assert_faces(self.load(), files)
    self.write_table(TABLE.replace('9.jpg,1', '9.jpg,0'))
    labels = [[0, 1], [0, 0], [0, 0], [1, 1]]
    self.assert_faces(self.load(), self.files, labels)
    self.assertLen(list(self.data_dir.iterdir()), 3)

  def test_prepared_images_are_not_decoded_again(self):
    self.load()
    with mock.patch.dict(sys.modules, {'PIL': None}):
      self.assert_faces(self.load(), self.files)

  def test_more_than_tfds_holds_in_memory_is_prepared(self):
    with mock.patch.object(shuffle, 'MAX_MEM_BUFFER_SIZE', 1):
      self.assert_faces(self.load(), self.files)


class LeftOutTest(FaceFolderTestCase):
  def test_a_damaged_image_is_named_on_every_load(self):
    self.write({'9.jpg': self.files['9.jpg'][:-100]})
    kept = {name: self.files[name] for name in NAMES if name != '9.jpg'}
    labels = [LABELS[0], *LABELS[2:]]
    summary = "Left out: 1 unreadable images ('9.jpg')"
    self.assert_faces(self.load(), kept, labels, summary)
    self.assert_faces(self.load(), kept, labels, summary)

  def test_images_and_rows_without_the_other_are_counted_and_named(self):
    self.write(_photographs([f'new/{n}.jpg' for n in range(5)], seed=1))
    self.write_table(TABLE + 'gone.jpg,0,0\n')
    summary = (
      "Left out: 5 images without a row ('new/0.jpg', 'new/1.jpg', "
      "'new/2.jpg', ...); 1 rows without an image ('gone.jpg')"
    )
    self.assert_faces(self.load(), self.files, summary=summary)
    self.assert_faces(self.load(), self.files, summary=summary)

  def test_a_path_that_is_not_utf_8_is_told_in_print(self):
    files = self.files | _photographs([os.fsdecode(b'\xff.jpeg')])
    files['faces.csv'] = TABLE.encode()
    # Not every file system takes such a name.
    opened = images.Files(sorted(files), files.__getitem__)
    summary = r"Left out: 1 images without a row ('\udcff.jpeg')"
    with mock.patch.object(
      images, 'open_files', return_value=contextlib.nullcontext(opened)
    ):
      self.assert_faces(self.load(), self.files, summary=summary)


class ErrorTest(FaceFolderTestCase):
  def assert_error(self, sentence):
    for _ in range(2):  # A failed preparation is not taken for a good one.
      with self.assertRaisesRegex(ValueError, sentence) as caught:
        self.load()
      self.assertNotIn('\n', str(caught.exception))

  def test_a_missing_folder_is_named(self):
    with self.assertRaisesRegex(ValueError, 'Expected a folder .*nowhere, wh'):
      face_folder.load(self.folder / 'nowhere', str(self.data_dir))

  def test_no_table_is_told(self):
    os.remove(self.folder / 'faces.csv')
    self.assert_error('Expected one CSV .* got none')

  def test_two_tables_are_listed(self):
    self.write_table(TABLE, 'b/more.CSV')
    self.assert_error('Expected one CSV .* got b/more.CSV, faces.csv')

  @parameterized.parameters('2', '0.5', '-2', 'yes', 'nan', '1 1')
  def test_a_value_that_is_not_binary_is_told_with_its_line(self, value):
    self.write_table(TABLE.replace('10.jpg,0,1', f'10.jpg,0,{value}'))
    self.assert_error(
      f"Expected 0 or 1 .* for 'Grey hair' in line 3 of faces.csv, got '{value}"
    )
    self.write_table(TABLE)
    self.assert_faces(self.load(), self.files)

  def test_a_column_with_both_zero_and_minus_one_is_told(self):
    self.write_table(TABLE.replace('b/10.PNG,0', 'b/10.PNG,-1'))
    self.assert_error("all of a column\\) for 'Smiling' in line 5 .*got '-1'")

  @parameterized.parameters(('9.jpg,1,0,0', 4), ('9.jpg,1', 2))
  def test_a_row_of_another_length_is_told_with_its_line(self, row, size):
    self.write_table(TABLE.replace('9.jpg,1,0', row))
    self.assert_error(f'Expected 3 values in line 2 of .*got {size}')

  @parameterized.parameters(
    'file', 'file;a;b', 'file,Smiling,Smiling', 'file,Smiling,', ''
  )
  def test_a_header_that_does_not_name_each_column_is_told(self, header):
    self.write_table(TABLE.replace('file,Smiling,Grey hair', header))
    self.assert_error('Expected a header in faces.csv')

  def test_another_encoding_is_told(self):
    self.write({'faces.csv': TABLE.encode('utf-16')})
    self.assert_error('Expected faces.csv to be a CSV in UTF-8')

  @parameterized.parameters('9.jpg', 'x.jpeg')
  def test_a_second_row_for_an_image_is_told_with_its_line(self, name):
    self.write_table(TABLE + f'{name},0,0\n')
    self.assert_error(f"one image for each row, got '{name}' again in line 6")

  def test_a_file_name_of_several_images_is_told_with_its_line(self):
    self.write(_photographs(['c/x.jpeg']))
    self.write_table(TABLE.replace('b/a/x.jpeg', 'x.jpeg'))
    self.assert_error("got 'x.jpeg' again in line 4 .*write paths")

  @parameterized.parameters('damaged', 'no row')
  def test_no_image_left_is_told(self, why):
    if why == 'damaged':
      self.write(dict.fromkeys(NAMES, b''))
    else:
      self.write_table(TABLE.splitlines()[0])
    self.assert_error(
      r'Expected at least one image .*got none \(Left out: 4 .*\); add some'
    )


if __name__ == '__main__':
  absltest.main()
