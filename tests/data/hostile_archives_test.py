"""Archives of data name nothing outside, and unpack to what is expected."""

import io
import pathlib
import stat
import struct
import sys
import tempfile
from unittest import mock
import zipfile
import zlib

from absl.testing import absltest
import numpy as np
from PIL import Image

from fmtl_jax.data import images
from fmtl_jax.data import uci_har
from fmtl_jax.data import utkface

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from tests.data import uci_har_test


def _jpeg(value):
  buffer = io.BytesIO()
  Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, 'jpeg')
  return buffer.getvalue()


def _large_png():
  """Says that it has 60,000 x 60,000 pixels: ten gigabytes."""

  def chunk(kind, content):
    check = struct.pack('>I', zlib.crc32(kind + content))
    return struct.pack('>I', len(content)) + kind + content + check

  header = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(bytes(1000)))
    + chunk(b'IEND', b'')
  )


class PhotographsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    self.manual = self.folder / 'manual'
    self.manual.mkdir()
    (self.folder / 'secret.jpg').write_bytes(_jpeg(99))

  def load(self, files):
    with zipfile.ZipFile(
      self.manual / 'UTKFace.zip', 'w', zipfile.ZIP_DEFLATED
    ) as archive:
      for name, content in files.items():
        archive.writestr(name, content)
    before = self.files()
    found = utkface.load(self.manual, str(self.folder / 'prepared'))
    self.assertEqual(self.files(), before)
    return found

  def files(self):
    """All that is not prepared data."""
    return {
      path: path.read_bytes()
      for path in self.folder.rglob('*')
      if path.is_file() and 'prepared' not in path.parts
    }

  def test_names_are_no_paths_on_this_machine(self):
    good = '20_0_0_a.jpg'
    found = self.load(
      {
        f'UTKFace/{good}': _jpeg(1),
        f'UTKFace/../../{good}': _jpeg(2),
        f'{self.folder}/{good}': _jpeg(3),
        '../secret.jpg': _jpeg(4),
      }
    )
    self.assertEqual(found.names, (good,))
    self.assertEqual(found.encoded[0], _jpeg(1))

  def test_links_are_not_followed(self):
    link = zipfile.ZipInfo('UTKFace/21_0_0_b.jpg')
    link.create_system = 3  # Unix
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    found = self.load(
      {
        'UTKFace/20_0_0_a.jpg': _jpeg(1),
        link: str(self.folder / 'secret.jpg'),
      }
    )
    self.assertEqual(found.names, ('20_0_0_a.jpg',))
    self.assertIn('1 unreadable images', found.summary)

  def test_images_that_are_too_large_are_left_out(self):
    with mock.patch.object(images, 'MOST', 10_000):
      found = self.load(
        {
          'UTKFace/20_0_0_a.jpg': _jpeg(1),
          'UTKFace/21_0_0_b.jpg': _jpeg(2) + bytes(10_000),
          'UTKFace/22_0_0_c.png': _large_png(),
        }
      )
    self.assertEqual(found.names, ('20_0_0_a.jpg',))
    self.assertIn('2 unreadable images', found.summary)

  def test_an_archive_of_too_much_is_refused(self):
    files = {f'UTKFace/{n}_0_0_a.jpg': bytes(2**20) for n in range(20)}
    with self.assertRaisesRegex(
      ValueError, 'Expected a zip of images, got .* unpack to 20,971,520'
    ):
      self.load(files)


class ActivityTest(uci_har_test.UciHarTestCase):
  def assert_refused(self, sentence):
    with self.assertRaisesRegex(ValueError, sentence) as caught:
      self.load()
    self.assertNotIn('\n', str(caught.exception))
    self.assert_nothing_is_prepared()

  def test_a_file_that_is_too_large_is_refused(self):
    self.write(uci_har_test._zip(uci_har_test.FILES))
    with mock.patch.object(uci_har, '_MOST', 5000):
      self.assert_refused('Could not read .* says that it unpacks to')

  def test_an_archive_of_too_much_is_refused(self):
    zeros = '0' * (20 * 2**20)
    self.write(uci_har_test._zip({'train/y_train.txt': zeros}))
    self.assert_refused('Expected a zip of the UCI HAR .* say that they unpack')

  def test_an_archive_of_too_much_in_an_archive_is_refused(self):
    inner = uci_har_test._zip({'train/y_train.txt': '0' * (20 * 2**20)})
    self.write(uci_har_test._zip({'inner.zip': inner}, folder=''))
    self.assert_refused('Expected a zip of the UCI HAR .* say that they unpack')

  def test_archives_are_not_followed_further(self):
    inner = uci_har_test._zip(uci_har_test.FILES)
    for _ in range(2):
      inner = uci_har_test._zip({'inner.zip': inner}, folder='')
    self.write(inner)
    self.assert_refused('Expected the file activity_labels.txt')


if __name__ == '__main__':
  absltest.main()
