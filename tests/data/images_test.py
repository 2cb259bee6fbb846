"""Photographs are decoded when they are asked for, as Pillow decodes them."""

import contextlib
import io
import os
import pathlib
import sys
import tempfile
from typing import Any
from unittest import mock
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.data import features
from fmtl_jax.data import images


def _encode(pixels, kind='jpeg') -> bytes:
  import PIL.Image

  buffer = io.BytesIO()
  PIL.Image.fromarray(pixels).save(buffer, kind)
  return buffer.getvalue()


class _Counted(list):
  """A list that counts how often its elements are read."""

  reads = 0

  def __getitem__(self, index):
    self.reads += 1
    return super().__getitem__(index)


class ImagesTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.pixels = rng.integers(0, 256, (6, 20, 30, 3), np.uint8)
    self.encoded = _Counted(map(_encode, self.pixels))
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))


class ImagesTest(ImagesTestCase):
  def test_nothing_is_read_before_it_is_asked_for(self):
    photographs = images.Images(self.encoded, (8, 12))
    self.assertLen(photographs, 6)
    self.assertEqual(photographs.shape, (6, 8, 12, 3))
    self.assertEqual(photographs.dtype, np.uint8)
    self.assertEqual(self.encoded.reads, 0)
    photographs[2:4]
    self.assertEqual(self.encoded.reads, 2)

  @parameterized.parameters('RGB', 'L')
  def test_images_of_their_own_size_are_those_of_pillow(self, mode):
    import PIL.Image

    photographs = images.Images(self.encoded, (20, 30), grey=mode == 'L')
    for data, found in zip(self.encoded, photographs[:], strict=True):
      expected = np.asarray(PIL.Image.open(io.BytesIO(data)).convert(mode))
      np.testing.assert_array_equal(found, expected.reshape(found.shape))

  def test_an_image_is_turned_upright(self):
    import PIL.Image

    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:10] = 255  # White at the top.
    buffer = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # The camera was held upside down.
    PIL.Image.fromarray(pixels).save(buffer, 'jpeg', exif=exif)
    [image] = images.Images([buffer.getvalue()], (20, 20))[:]
    self.assertLess(image[:8].mean(), 20)
    self.assertGreater(image[12:].mean(), 235)

  @parameterized.parameters(
    slice(None),
    slice(1, 5, 2),
    slice(-2, None),
    slice(3, 3),
    ([4, 0, 4],),
    ([[1, 2], [3, -1]],),
    ([True, False, True, False, False, True],),
    3,
  )
  def test_an_index_means_what_it_means_in_numpy(self, index):
    index = np.array(index) if isinstance(index, list) else index
    photographs = images.Images(self.encoded, (8, 12))
    eager = np.concatenate([photographs[[n]] for n in range(6)])
    found = photographs[index]
    self.assertEqual(found.dtype, np.uint8)
    np.testing.assert_array_equal(found, eager[index])

  def test_the_center_is_kept_in_the_shape_of_the_target(self):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30, 0] = 200  # The square in the middle is red,
    pixels[5:15, 15:25] = [0, 200, 0]  # and its middle green.
    encoded = [_encode(pixels, 'png')]
    wide = images.Images(encoded, (20, 40))[0]
    np.testing.assert_array_equal(wide, pixels)
    square = images.Images(encoded, (20, 20))[0]
    np.testing.assert_array_equal(square, pixels[:, 10:30])
    half = images.Images(encoded, (10, 10), crop=0.5)[0]
    np.testing.assert_array_equal(half, pixels[5:15, 15:25])

  @parameterized.parameters(True, False)
  def test_sixteen_bits_are_scaled_to_eight(self, grey):
    import PIL.Image

    levels = np.array([[0, 257, 10 * 257], [32768, 65408, 65535]], np.uint16)
    image = PIL.Image.fromarray(levels)
    buffer = io.BytesIO()
    image.save(buffer, 'png')
    found = images.Images([buffer.getvalue()], (2, 3), grey=grey)[0]
    for channel in np.moveaxis(found, -1, 0):
      np.testing.assert_array_equal(channel, [[0, 1, 10], [128, 255, 255]])

  def test_what_is_transparent_shows_the_background(self):
    import PIL.Image

    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 0], pixels[0, :, 3] = 200, [255, 0, 51]  # 51 is a fifth.
    encoded = [_encode(pixels, 'png')]
    on_white, on_blue = (
      images.Images(encoded, (1, 3), **how)[0][0].tolist()
      for how in ({}, {'background': (0, 0, 100)})
    )
    self.assertEqual(on_white, [[200, 0, 0], [255, 255, 255], [244, 204, 204]])
    self.assertEqual(on_blue, [[200, 0, 0], [0, 0, 100], [40, 0, 80]])
    palette = PIL.Image.fromarray(np.array([[0, 1]], np.uint8), mode='P')
    palette.putpalette([255, 0, 0, 0, 255, 0])
    for image, expected in (
      (palette, [[255, 0, 0], [255, 255, 255]]),
      (PIL.Image.fromarray(np.array([[9, 1]], np.uint8)), [[9] * 3, [255] * 3]),
      (
        PIL.Image.fromarray(np.array([[257, 1]], np.uint16)),
        [[1] * 3, [255] * 3],
      ),
    ):
      buffer = io.BytesIO()
      image.save(buffer, 'png', transparency=1)
      found = images.Images([buffer.getvalue()], (1, 2))[0][0].tolist()
      self.assertEqual(found, expected, image.mode)

  def test_pixels_without_a_white_are_refused(self):
    encoded = [_encode(np.ones((2, 2), np.float32), 'tiff')]
    with self.assertRaisesRegex(ValueError, "mode 'F'.* whose white is not"):
      images.Images(encoded, (2, 2))[:]

  def test_a_damaged_image_is_named(self):
    encoded = [self.encoded[0], self.encoded[1][:100]]
    photographs = images.Images(encoded, (8, 8))
    self.assertEqual(photographs[:1].shape, (1, 8, 8, 3))
    with self.assertRaisesRegex(ValueError, 'at position 1, got 100 bytes'):
      photographs[:]

  @parameterized.parameters(
    ({'size': (0, 8)}, 'Expected size'),
    ({'size': (8, 8, 3)}, 'Expected size'),
    ({'size': (8, 8), 'crop': 0}, 'Expected crop'),
    ({'size': (8, 8), 'crop': 1.1}, 'Expected crop'),
  )
  def test_settings_out_of_range_are_named(self, settings, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      images.Images(self.encoded, **settings)

  def test_a_missing_pillow_is_told(self):
    with (
      mock.patch.dict(sys.modules, {'PIL': None}),
      self.assertRaisesRegex(ValueError, r'pip install .fmtl_jax\[faces\]'),
    ):
      images.Images(self.encoded, (8, 8))

  def test_features_are_computed_from_them(self):
    photographs: Any = images.Images(self.encoded, (8, 12))
    means = features.precompute(lambda x: x.mean((1, 2)), photographs, 4)
    np.testing.assert_allclose(means, photographs[:].mean((1, 2)), rtol=1e-5)


class FingerprintTest(ImagesTestCase):
  def test_the_same_content_and_settings_have_the_same(self):
    one = images.Images(self.encoded, (8, 8), crop=1).fingerprint()
    size: Any = [8, 8]  # As a list, which configs may give.
    two = images.Images(tuple(self.encoded), size, crop=1.0).fingerprint()
    self.assertEqual(one, two)
    self.assertRegex(one, '^[0-9a-f]{16}$')

  def test_nothing_is_decoded_for_it(self):
    photographs = images.Images([b'no', b'images'], (8, 8))
    self.assertNotEmpty(photographs.fingerprint())

  def test_other_content_or_settings_have_another(self):
    encoded = list(self.encoded)
    found = [
      images.Images(contents, **({'size': (8, 8)} | settings)).fingerprint()
      for contents, settings in (
        (encoded, {}),
        (encoded, {'size': (8, 9)}),
        (encoded, {'crop': 0.9}),
        (encoded, {'grey': True}),
        (encoded[:-1], {}),
        (encoded[::-1], {}),
        ([*encoded[:-1], encoded[-1] + b'\0'], {}),
        ([b'ab', b'c'], {}),
        ([b'a', b'bc'], {}),
      )
    ]
    self.assertLen(set(found), len(found))


class FilesTest(ImagesTestCase):
  def fill(self, form):
    contents = {'b.jpg': b'1', 'a/c.JPG': b'2', 'a/_d.jpg': b'3'}
    ignored = ('.e.jpg', '__MACOSX/a.jpg', 'text.txt')
    path = self.folder / form
    if form == 'zip':
      with zipfile.ZipFile(path, 'w') as archive:
        for name, content in contents.items():
          archive.writestr(name, content)
        for name in ignored:
          archive.writestr(name, b'')
    else:
      for name in (*contents, *ignored):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(contents.get(name, b''))
    return path

  @parameterized.parameters('zip', 'folder')
  def test_files_of_the_kind_are_listed_in_order(self, form):
    with images.open_files(self.fill(form), '.jpg') as files:
      self.assertEqual(list(files.names), ['a/_d.jpg', 'a/c.JPG', 'b.jpg'])
      self.assertEqual([files.read(n) for n in files.names], [b'3', b'2', b'1'])
      self.assertEqual(files.read('missing.jpg'), b'')

  def test_a_file_is_read_by_the_name_that_the_file_system_gives_it(self):
    # The first of them that can be written: not all take what is no UTF-8.
    for name in (os.fsdecode(b'\xff.jpg'), 'plain.jpg'):
      with contextlib.suppress(OSError):
        (self.folder / name).write_bytes(b'1')
        break
    with images.open_files(self.folder, '.jpg') as files:
      self.assertEqual(files.names, [name])
      self.assertEqual(files.read(name), b'1')
      self.assertLen(files.fingerprint(), 16)

  def test_a_zip_and_a_folder_have_the_same_fingerprint(self):
    with (
      images.open_files(self.fill('zip'), '.jpg') as one,
      images.open_files(self.fill('folder'), '.jpg') as two,
    ):
      self.assertEqual(one.fingerprint(), two.fingerprint())
      renamed = images.Files(['x.jpg', *one.names[1:]], lambda name: b'')
      emptied = images.Files(one.names, lambda name: b'')
      found = {f.fingerprint() for f in (one, renamed, emptied)}
      self.assertLen(found, 3)

  def test_a_damaged_zip_is_told(self):
    path = self.fill('zip')
    path.write_bytes(path.read_bytes()[:-30])
    with (
      self.assertRaisesRegex(ValueError, 'zip of images, got .*again'),
      images.open_files(path, '.jpg'),
    ):
      pass

  @parameterized.parameters(1, 2, 100)
  def test_only_images_that_decode_are_read(self, chunk):
    contents = {
      'a': self.encoded[0],
      'b': self.encoded[1][:-300],
      'c': b'',
      'd': _encode(self.pixels[2], 'png'),
    }
    files = images.Files(list(contents), contents.__getitem__)
    self.assertEqual(
      list(images.read_images(files, files.names, chunk)),
      list((contents | {'b': None, 'c': None}).items()),
    )


if __name__ == '__main__':
  absltest.main()
