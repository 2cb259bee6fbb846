"""Programs are compiled while the ones behind them are traced."""

import threading

from absl.testing import absltest
import jax
import jax.numpy as jnp

from fmtl_jax import testing
from fmtl_jax.running import compilation


class _Slow:
  """A lowered program that compiles once the next one was asked for."""

  def __init__(self):
    self.next_is_traced = threading.Event()

  def compile(self, options):
    if not self.next_is_traced.wait(timeout=60):
      raise AssertionError('Tracing waited for the compilation before it.')
    return options


class CompilationTest(absltest.TestCase):
  def test_programs_compute_what_they_do(self):
    x = jnp.arange(3.0)
    found = compilation.compile_all(
      (f'plus {n}', jax.jit(lambda x, n=n: x + n).lower(x), {})
      for n in range(3)
    )
    self.assertEqual(list(found), ['plus 0', 'plus 1', 'plus 2'])
    testing.assert_trees_equal(found['plus 2'].program(x), x + 2)

  def test_a_program_is_traced_while_the_one_before_it_compiles(self):
    first = _Slow()

    def programs():
      yield 'first', first, {'level': 1}
      first.next_is_traced.set()
      yield 'second', first, {'level': 2}

    found = compilation.compile_all(programs())
    self.assertEqual(
      {name: one.program for name, one in found.items()},
      {'first': {'level': 1}, 'second': {'level': 2}},
    )
    self.assertGreater(found['first'].seconds, 0)

  def test_a_check_stops_it_while_it_compiles(self):
    slow, calls = _Slow(), []

    def check():
      calls.append(len(calls))
      if len(calls) > 1:  # All are traced; the compiler is at work.
        raise KeyboardInterrupt

    with self.assertRaises(KeyboardInterrupt):
      compilation.compile_all([('first', slow, {})], check)
    slow.next_is_traced.set()

  def test_a_check_stops_it(self):
    def check():
      raise KeyboardInterrupt

    lowered = jax.jit(jnp.negative).lower(1.0)
    with self.assertRaises(KeyboardInterrupt):
      compilation.compile_all([('first', lowered, {})], check)

  def test_what_cannot_be_traced_or_compiled_is_reported(self):
    def programs():
      yield 'first', jax.jit(jnp.negative).lower(1.0), {}
      raise ValueError('cannot be traced')

    with self.assertRaisesRegex(ValueError, 'cannot be traced'):
      compilation.compile_all(programs())
    lowered = jax.jit(jnp.negative).lower(1.0)
    with self.assertRaisesRegex(jax.errors.JaxRuntimeError, 'no_such'):
      compilation.compile_all([('first', lowered, {'no_such': 1})])


if __name__ == '__main__':
  absltest.main()
