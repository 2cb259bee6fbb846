"""Laws of pages: all that a report says, in one file that loads nothing."""

import html
from html import parser
import pathlib
import sys
import tempfile

from absl.testing import absltest

from experiments.configuration import config as config_lib
from experiments.reporting import pages
from experiments.reporting import reports
from experiments.reporting import tables

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.reporting import toy_records

HOSTILE = '<script>alert("1")</script> & \'co\''
MADE_WITH = {
  'environment': {'fmtl_jax': '9.8.7', 'device_kind': 'cpu'},
  'environments': [
    {'environment': {'jax': '1.2.3'}, 'cases': {HOSTILE: [[1, 4], [5, 6]]}},
    {'environment': None, 'cases': {'old': [[1, 2]]}},
  ],
}
LOG = """2026-01-02 10:00:00+00:00 Process 7 began: /x/experiments/main.py \
'--config.cases=('"'"'a'"'"',)' '--config.name=a$b'
2026-01-02 10:00:01+00:00 A line that says Process 8 began: nothing
2026-01-02 11:00:00+00:00 Process 9 began: /x/ipykernel_launcher.py -f x
2026-01-02 12:00:00+00:00 Process 9 began: '/x/main.py
"""


class _Reader(parser.HTMLParser):
  """Tags that are open, what they load, and the texts of cells."""

  def __init__(self):
    super().__init__()
    self.open, self.loaded, self.cells, self.scripts = [], [], [], 0

  def handle_starttag(self, tag, attrs):
    if tag not in ('meta', 'img'):
      self.open.append(tag)
    self.scripts += tag == 'script'
    self.loaded += [v for k, v in attrs if k in ('src', 'href', 'srcset')]
    if tag in ('td', 'th'):
      self.cells.append('')

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if 'td' in self.open or 'th' in self.open:
      self.cells[-1] += data


def _read(path):
  reader = _Reader()
  reader.feed(path.read_text(encoding='utf-8'))
  assert not reader.open
  return reader


class PagesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    self.config = config_lib.default_config()

  def page(self, table, **settings):
    pages.write(self.folder, 'toy', self.config, [table], MADE_WITH, **settings)
    return _read(self.folder / 'toy.html')

  def test_whatever_is_said_is_text(self):
    table = tables.Table(
      title=HOSTILE,
      header=('case', HOSTILE),
      rows=((HOSTILE, '1.00'), ('b', '2.00')),
      bold={(1, 1)},
      published=((HOSTILE, '3.00'),),
      notes=(HOSTILE,),
    )
    self.config.name = HOSTILE
    (self.folder / 'partition.txt').write_text(HOSTILE, encoding='utf-8')
    found = self.page(table)
    self.assertEqual(found.scripts, 1)
    self.assertEqual(found.cells.count(HOSTILE), 5)  # And in two settings.
    text = (self.folder / 'toy.html').read_text(encoding='utf-8')
    self.assertNotIn('<script>alert', text)
    self.assertIn('<td><strong>2.00</strong></td>', text)
    self.assertIn('rounds 1 to 4, 5 to 6', text)

  def test_nothing_is_loaded(self):
    (self.folder / 'toy.png').write_bytes(b'pixels')
    found = self.page(tables.Table(title='t', header=('a',), rows=()))
    self.assertEqual(found.loaded, ['data:image/png;base64,cGl4ZWxz'])
    text = (self.folder / 'toy.html').read_text(encoding='utf-8')
    self.assertIn("default-src 'none'", text)
    self.assertNotIn('http', text.replace('http-equiv', ''))

  def test_settings_and_commands_are_as_one_types_them(self):
    self.config.client.learning_rate = 0.3
    (self.folder / 'log.txt').write_text(LOG, encoding='utf-8')
    found = self.page(tables.Table(title='t', header=('a',), rows=()))
    self.assertEqual(found.cells.count('client.learning_rate'), 2)
    self.assertEqual(found.cells.count('client.momentum'), 1)
    text = (self.folder / 'toy.html').read_text(encoding='utf-8')
    command = (
      "python -m experiments.main \"--config.cases=('a',)\" '--config.name=a$b'"
    )
    self.assertIn(f'<pre>{html.escape(command)}</pre>', text)

  def test_a_report_has_the_cells_of_its_tables(self):
    (self.folder / 'cases').mkdir()
    record = toy_records.last('separate_fl', 90.0, 92.5, train_loss=[[1.0] * 2])
    reports.records_lib.write(self.folder / 'cases/separate_fl.json', record)
    reports.write(self.folder, self.config, missing=['multi_task_fl'])
    cells = _read(self.folder / 'results.html').cells
    markdown = (self.folder / 'results.md').read_text(encoding='utf-8')
    for cell in ('91.25 ± 1.77', 'a round'):
      self.assertIn(cell, markdown)
      self.assertIn(cell, cells)
    self.assertContainsSubset(['seed 1', '92.50'], cells)


if __name__ == '__main__':
  absltest.main()
