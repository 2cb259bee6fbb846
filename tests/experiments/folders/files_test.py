"""Law: a file is the old or the new one, whatever happens meanwhile."""

import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from matplotlib import figure as figure_lib

from experiments.folders import files
from experiments.reporting import drawing
from experiments.reporting import results
from experiments.reporting import tables


class ReplacingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)

  def test_text_is_utf_8(self):
    path = self.folder / 'table.md'
    files.write_text(path, 'mean ± sd')
    self.assertEqual(path.read_bytes(), 'mean ± sd'.encode())
    self.assertEqual(list(self.folder.iterdir()), [path])

  @parameterized.parameters('old.md', 'old.csv', 'old.png')
  def test_who_is_killed_in_the_middle_leaves_the_old_one(self, name):
    path = self.folder / name
    path.write_bytes(b'old')

    def half(where, *args, **kwargs):
      with open(where, 'wb') as file:
        file.write(b'half')
      raise KeyboardInterrupt

    table = tables.Table(title='Toy', header=('a',), rows=(('1',),))
    cut = lambda path, text, **unused: half(path)
    with (
      mock.patch.object(pathlib.Path, 'write_text', cut),
      mock.patch.object(pathlib.Path, 'open', half),
      mock.patch.object(
        figure_lib.Figure, 'savefig', lambda self, path, **unused: half(path)
      ),
      self.assertRaises(KeyboardInterrupt),
    ):
      if name.endswith('csv'):
        results.write_metrics_csv(path, [])
      elif name.endswith('png'):
        with drawing.figure(path, 1.0):
          pass
      else:
        tables.write([table], self.folder, 'old')
    self.assertEqual(path.read_bytes(), b'old')


if __name__ == '__main__':
  absltest.main()
