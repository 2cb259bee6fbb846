"""Laws of equations: docstrings become mathematics, words stay words."""

from absl.testing import absltest
from absl.testing import parameterized

from docs.making import equations


class TexTest(parameterized.TestCase):
  @parameterized.parameters(
    ('v_m <- v_m - eta grad F(v_m)',
     r'v_{m} \leftarrow v_{m} - \eta \nabla F (v_{m})'),
    ('mu / 2 ||w - w^r||^2',
     r'\frac{\mu}{2} {\lVert w - w^{r}\rVert }^{2}'),
    ('c_m+ = (x - y) / (K eta)', r'c_{m}^{+} = \frac{x - y}{K \eta}'),
    ('x_{t+1} = tau_eff', r'x_{t + 1} = \tau_{\text{eff}}'),
    ('<lambda_k, theta> < 2', r'\langle  \lambda_{k} , \theta \rangle  < 2'),
    ('sqrt(v_t) + eps1', r'\sqrt{v_{t}} + \varepsilon_{1}'),
    ('argmin_j F(w_j)', r'\operatorname{argmin}_{j} F (w_{j})'),
    ('w   for the others', r'w \quad  \text{ for the others }'),
  )  # fmt: skip
  def test_notation(self, text, expected):
    self.assertEqual(equations.tex(text), expected)

  def test_a_line_that_is_indented_further_goes_on_with_one(self):
    block = '  a = b\n      + c,\n  d = e'
    self.assertEqual(equations.lines(block), ['a = b + c,', 'd = e'])

  def test_what_means_nothing_is_refused(self):
    with self.assertRaisesRegex(ValueError, "notation of equations, got '&'"):
      equations.tex('a & b')

  @parameterized.parameters(
    ('With lambda = 0 it is FedAvg, for c_m too.', ['lambda = 0', 'c_m']),
    ('eta lambda < 2, or they diverge', ['eta lambda < 2']),
    ('p_m are (x - y) / (K eta).', ['p_m', '(x - y) / (K eta)']),
    ('at most max_clusters clusters, a client and K steps', []),
  )
  def test_formulas_in_a_sentence(self, text, formulas):
    parts = list(equations.inline(text))
    self.assertEqual(''.join(words for words, _ in parts), text)
    found = [words.strip() for words, is_formula in parts if is_formula]
    self.assertEqual(found, formulas)


if __name__ == '__main__':
  absltest.main()
