"""Laws of tables: every rendering says what the table says."""

from absl.testing import absltest

from experiments.reporting import case_tables
from experiments.reporting import tables
from tests.experiments.reporting import toy_records


class PublishedTest(absltest.TestCase):
  def test_published_figures_keep_their_columns(self):
    table = tables.with_published(
      case_tables.results_table([toy_records.last('toy', 94.0)]),
      {'Paper': {'mean': '93.1'}},
      'A paper.',
    )
    self.assertEqual(table.published, (('Paper', '–', '93.1'),))
    self.assertIn('Published figures: A paper.', table.notes)

  def test_an_unknown_column_is_named(self):
    record = toy_records.last('toy', 94.0)
    with self.assertRaisesRegex(ValueError, r"\(odd, mean\), got 'gender'"):
      tables.with_published(
        case_tables.results_table([record]), {'Paper': {'gender': '1'}}, ''
      )


class RenderingTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.table = tables.Table(
      title='A 100 % title',
      header=('case', 'a_b', 'mean'),
      rows=(('R&D | x', '1.00 ± 0.10', '10.25'), ('Other', '–', '9.50')),
      bold={(0, 2)},
      published=(('Paper', '–', '123.4'),),
      notes=('Note *one*.', 'Note #2.'),
    )

  def test_markdown(self):
    self.assertEqual(
      tables.to_markdown(self.table),
      '**A 100 % title**\n\n'
      '| case | a_b | mean |\n'
      '| :-- | --: | --: |\n'
      '| R&D \\| x | 1.00 ± 0.10 | **10.25** |\n'
      '| Other | – | 9.50 |\n'
      '| *Published figures* |  |  |\n'
      '| Paper | – | 123.4 |\n\n'
      'Note \\*one\\*.\n\n'
      'Note #2.\n',
    )

  def test_latex(self):
    self.assertEqual(
      tables.to_latex(self.table),
      '\\begin{table}\n'
      '  \\centering\n'
      '  \\caption{A 100 \\% title}\n'
      '  \\begin{tabular}{lrr}\n'
      '    \\toprule\n'
      '    case & a\\_b & mean \\\\\n'
      '    \\midrule\n'
      '    R\\&D | x & 1.00 $\\pm$ 0.10 & \\textbf{10.25} \\\\\n'
      '    Other & -- & 9.50 \\\\\n'
      '    \\midrule\n'
      '    \\multicolumn{3}{l}{\\emph{Published figures}} \\\\\n'
      '    Paper & -- & 123.4 \\\\\n'
      '    \\bottomrule\n'
      '  \\end{tabular}\n\n'
      '  \\smallskip\n'
      '  \\parbox{\\linewidth}{\\small Note *one*. Note \\#2.}\n'
      '\\end{table}\n',
    )

  def test_text_keeps_digits_in_line(self):
    self.assertEqual(
      tables.to_text(self.table),
      'A 100 % title\n'
      '----------------------------\n'
      'case             a_b   mean\n'
      '----------------------------\n'
      'R&D | x  1.00 ± 0.10  10.25*\n'
      'Other              –   9.50\n'
      '----------------------------\n'
      'Published figures\n'
      'Paper              –  123.4\n'
      '----------------------------\n'
      'Note *one*.\n'
      'Note #2.\n',
    )


if __name__ == '__main__':
  absltest.main()
