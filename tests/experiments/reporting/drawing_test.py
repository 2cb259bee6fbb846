"""Law: the same figure is the same bytes in every format."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from experiments.building import checks
from experiments.configuration import config as config_lib
from experiments.reporting import drawing


def _drawn(folder, formats):
  paths = drawing.paths(folder, 'figure', formats)
  with drawing.figure(paths, height=2.0) as figure:
    axes = figure.subplots()
    axes.plot([0, 1], [1, 3], label='a line')
    axes.fill_between([0, 1], [0, 2], [2, 4])
    figure.legend(loc='outside lower center')
  return {path.suffix: path.read_bytes() for path in paths}


class FormatsTest(parameterized.TestCase):
  def test_files_do_not_depend_on_when_they_are_written(self):
    with tempfile.TemporaryDirectory() as folder:
      first, again = (
        _drawn(pathlib.Path(folder), ('pdf', 'svg')) for _ in range(2)
      )
    self.assertEqual(first, again)
    self.assertEqual(list(first), ['.png', '.pdf', '.svg'])
    self.assertStartsWith(first['.pdf'], b'%PDF')
    self.assertNotIn(b'CreationDate', first['.pdf'])
    self.assertIn(b'<svg', first['.svg'])
    self.assertNotIn(b'dc:date', first['.svg'])

  def test_an_unknown_format_is_refused(self):
    config = config_lib.default_config()
    config.report.figure_formats = ('svg', 'gif')
    with self.assertRaisesRegex(ValueError, 'figure_formats .*out of pdf, svg'):
      checks.check(config)


if __name__ == '__main__':
  absltest.main()
