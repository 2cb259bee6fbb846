"""Laws of pages that are made: what there is has its page."""

import pathlib
import tempfile
import zlib

from absl.testing import absltest

from docs.making import algorithm_pages
from docs.making import api_pages
from docs.making import checks
from docs.making import law_pages
from docs.making import notebook_pages
from docs.making import pictures
from fmtl_jax import algorithms
import fmtl_jax

ROOT = pathlib.Path(__file__).resolve().parents[2]


class AlgorithmsTest(absltest.TestCase):
  def test_a_page_has_all_that_its_file_says(self):
    laws = list(law_pages.laws())
    pages = algorithm_pages.pages(laws)
    for name, spec in algorithms.ALGORITHMS.items():
      page = pages[f'algorithms/{name}']
      self.assertIn(f'# {spec.label}\n', page)
      self.assertIn(name, page.partition('## The file')[2])
      for setting in spec.settings:
        self.assertIn(f'| `{setting}` | `{spec.defaults[setting]}` |', page)
    self.assertIn(r'\eta (\nabla F_{m} (v_{m})', pages['algorithms/ditto'])
    self.assertIn('`ditto_test.DittoTest`', pages['algorithms/ditto'])
    scaffold = pages['algorithms/scaffold']
    self.assertRegex(scaffold, r'common \| \d+ \| 2 × \| 2 × \|')
    isolated = pages['algorithms/isolated']
    self.assertRegex(isolated, r'personal \| \d+ \| nothing \| nothing \|')
    self.assertCountEqual(pages, ['algorithms/index', *algorithm_pages.names()])


class ApiTest(absltest.TestCase):
  def test_every_public_name_is_on_the_page_of_its_module(self):
    pages = api_pages.pages()
    needed = api_pages.needed()
    self.assertContainsSubset(
      [f'fmtl_jax.{name}' for name in fmtl_jax.__all__], needed
    )
    self.assertIn('fmtl_jax.experiments.datasets.Source', needed)
    for full in needed:
      module, _, name = full.rpartition('.')
      page = pages[f'api/{module}']
      self.assertTrue(
        f':: {full}\n' in page
        or f':: {name}\n' in page
        or f':doc:`{full}`' in page,
        full,
      )

  def test_a_docstring_means_what_it_says(self):
    self.assertEqual(api_pages.escaped('`a`=1, *b, c_'), '`a`\\ =1, \\*b, c\\_')
    self.assertEqual(
      api_pages.as_rst('Law:\n\n  a = b\n\nIt is so.'),
      'Law:\n\n::\n\n    a = b\n\nIt is so.',
    )


class LawsTest(absltest.TestCase):
  def test_every_class_has_a_section(self):
    laws = list(law_pages.laws())
    pages = law_pages.pages(laws)
    for law in laws:
      page = pages[f'laws/{law.file}']
      self.assertIn(f'({law_pages.target(law.label)})=\n## {law.name}', page)
    text = law_pages.fixed_point('fedper', 'fedper')
    self.assertStartsWith(text, 'fedavg under other labels')


class NotebooksTest(absltest.TestCase):
  def test_they_are_there_if_the_folder_is(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    none = notebook_pages.pages(folder / 'none', folder / 'source')
    self.assertIn('none in this version', none['notebooks/index'])
    (folder / 'start.ipynb').write_text('{}')
    some = notebook_pages.pages(folder, folder / 'source')
    self.assertIn('\nstart\n', some['notebooks/index'])
    self.assertTrue((folder / 'source' / 'start.ipynb').is_file())


class ChecksTest(absltest.TestCase):
  def test_links_and_anchors_are_followed(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    pages = {
      folder / 'a.html': checks.Page(
        '<p id="x"><a href="#x"><a href="b.html#y"><a href="c.html">'
        '<a href="#z"><a href="https://example.org/">'
        '<script src="https://cdn.example.org/x.js"></script>'
      ),
      folder / 'b.html': checks.Page('<p id="y">'),
    }
    pages = {path.resolve(): page for path, page in pages.items()}
    found = '\n'.join(checks.broken_links(pages))
    self.assertEqual(found.count('\n'), 1, found)
    self.assertIn("'c.html' leads to no file", found)
    self.assertIn("'#z' leads to no anchor", found)
    [elsewhere] = checks.from_elsewhere(pages)
    self.assertIn('cdn.example.org', elsewhere)

  def test_what_is_missing_is_named(self):
    text = b'fmtl_jax.Task py:class 1 x -\nalgorithms/ditto std:doc -1 x -\n'
    inventory = b'#\n#\n#\n#\n' + zlib.compress(text)
    names = checks.names(inventory, 'py:')
    self.assertEqual(names, {'fmtl_jax.Task'})
    [missing] = checks.missing('name', ['fmtl_jax.Task', 'fmtl_jax.x'], names)
    self.assertIn('fmtl_jax.x', missing)


class PicturesTest(absltest.TestCase):
  def test_copies_are_those_of_the_library(self):
    federation, data = pictures._federation()
    self.assertEqual(
      dict(pictures.copies(federation)),
      {'pretrained': 1, 'common': 1, 'task': 3, 'personal': 6},
    )
    self.assertEqual(pictures.used(data)['task'].tolist(), [0, 1, 2] * 2)

  def test_bars_are_those_of_the_table(self):
    page = ROOT / 'docs' / 'results.md'
    head, *rows = pictures.read_table(page, 'Faces')
    self.assertEqual(head[:2], ['case', 'gender'])
    self.assertEqual(rows[0][:2], ['Majority class', '51.55'])
    self.assertLen(rows, 8)
    with self.assertRaisesRegex(ValueError, "a table below 'Birds'"):
      pictures.read_table(page, 'Birds')


if __name__ == '__main__':
  absltest.main()
