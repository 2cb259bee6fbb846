"""Law: the table says of every algorithm what its own file says."""

import importlib
import inspect

from absl.testing import absltest
from absl.testing import parameterized

from fmtl_jax import algorithms

# Algorithms that share a file.
_FILES = dict.fromkeys(('fedadagrad', 'fedadam', 'fedyogi'), 'adaptive')


def _paragraph(name):
  """The paragraph of an algorithm's file that says where it deviates."""
  file = _FILES.get(name, name)
  module = importlib.import_module(f'fmtl_jax.algorithms.{file}')
  for paragraph in inspect.getdoc(module).split('\n\n'):
    words = paragraph.split()
    if words[0] == 'Deviations:':
      return ' '.join(words[1:])
  return ''


class DeviationsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (name, name) for name in algorithms.ALGORITHMS
  )
  def test_the_table_has_the_words_of_the_file(self, name):
    self.assertEqual(algorithms.ALGORITHMS[name].deviations, _paragraph(name))

  def test_defaults_that_papers_have_otherwise_are_said(self):
    """Those whose papers have plain means, and a criterion that is off."""
    table = algorithms.ALGORITHMS
    for name in (
      *('scaffold', 'feddyn', 'ditto', 'pfedme', 'apfl', 'mr_mtl'),
      *('fedrep', 'ifca', 'cfl'),
    ):
      self.assertIn("the paper's are plain", table[name].deviations)
    self.assertIn('takes plain means', table['fedprox'].deviations)
    self.assertEqual(table['cfl'].defaults['gamma'], 0)
    self.assertIn('gamma is 0', table['cfl'].deviations)


if __name__ == '__main__':
  absltest.main()
