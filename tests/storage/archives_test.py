"""Laws of archives: they unpack to what they say, and to no more than most."""

import io
import pathlib
import struct
import tempfile
import zipfile

from absl.testing import absltest
from absl.testing import parameterized

from fmtl_jax.storage import archives

MEGABYTE = 2**20


def zip_of(files, method=zipfile.ZIP_DEFLATED):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', method) as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return buffer.getvalue()


class ZipTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = folder / 'archive.zip'

  @parameterized.parameters(True, False)
  def test_files_are_read_as_they_are(self, on_disk):
    content = zip_of({'a.txt': 'text', 'folder/b.txt': bytes(1000)})
    self.path.write_bytes(content)
    source = self.path if on_disk else io.BytesIO(content)
    with archives.Zip(source, most=1000) as archive:
      self.assertEqual(archive.read('a.txt'), b'text')
      with archive.open('folder/b.txt') as file:
        self.assertEqual(file.read(), bytes(1000))

  def test_an_entry_that_is_too_large_is_refused(self):
    self.path.write_bytes(zip_of({'a': bytes(1001), 'b': b'text'}))
    with archives.Zip(self.path, most=1000) as archive:
      for read in archive.read, archive.open:
        with self.assertRaisesRegex(ValueError, 'a .* 1,001 bytes, more'):
          read('a')
      self.assertEqual(archive.read('b'), b'text')

  @parameterized.parameters(
    {'files': {'a': bytes(20 * MEGABYTE)}},
    {'files': {str(n): bytes(MEGABYTE) for n in range(20)}},
  )
  def test_entries_that_are_too_large_together_are_refused(self, files):
    """Twenty megabytes out of twenty thousand bytes."""
    self.path.write_bytes(zip_of(files))
    self.assertLess(self.path.stat().st_size, MEGABYTE / 20)
    with self.assertRaisesRegex(ValueError, 'unpack to 20,971,520, more than'):
      archives.Zip(self.path, most=2**40)

  def test_what_unpacks_to_another_size_than_it_says_is_an_error(self):
    """A size is not believed: the one of the list is made a small one."""
    content = zip_of({'a': bytes(MEGABYTE)})
    size = struct.pack('<I', MEGABYTE)
    self.assertEqual(content.count(size), 2)  # At the entry, and in the list.
    self.path.write_bytes(content.replace(size, struct.pack('<I', 100)))
    with (
      archives.Zip(self.path, most=1000) as archive,
      self.assertRaises(zipfile.BadZipFile),
    ):
      archive.read('a')

  @parameterized.parameters(b'', b'no zip', zip_of({'a': b'b'})[:-30])
  def test_what_is_no_zip_is_an_error_of_zipfile(self, content):
    self.path.write_bytes(content)
    with self.assertRaises(zipfile.BadZipFile):
      archives.Zip(self.path, most=1000)


if __name__ == '__main__':
  absltest.main()
