"""Laws of execution: every form runs every client once and adds them all."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import execution
from fmtl_jax import testing
from fmtl_jax.rounds import round_settings

CLIENTS = 7
FORMS = ('scan', 'vmap') + tuple(
  f'chunk:{size}' for size in range(1, CLIENTS + 3)
)


class MapClientsTest(parameterized.TestCase):
  @parameterized.parameters(*FORMS)
  def test_the_sum_is_over_all_clients_and_rows_keep_their_order(self, form):
    rows = {
      'x': jnp.arange(1.0, CLIENTS + 1),
      'weight': jnp.linspace(0.1, 2.0, CLIENTS),
    }

    def client_fn(row):
      # A row of zeros, as blocks are padded with, gives NaN.
      square = row['x'] ** 2
      return {'square': square / (row['x'] > 0)}, (row['x'], {'square': square})

    def add(total, contributions, rows):
      weight = rows['weight']
      value = jnp.where(weight > 0, contributions['square'], 0)
      return {'square': total['square'] + (weight * value).sum()}

    total, kept = jax.jit(
      lambda rows: execution.map_clients(
        client_fn,
        rows,
        add,
        {'square': jnp.float32(0)},
        execution=form,
        sizes=rows['x'] % 3,
      )
    )(rows)
    square = np.arange(1.0, CLIENTS + 1) ** 2
    np.testing.assert_allclose(
      total['square'], (square * np.linspace(0.1, 2.0, CLIENTS)).sum(), 1e-6
    )
    np.testing.assert_array_equal(kept[0], rows['x'])
    np.testing.assert_array_equal(kept[1]['square'], square)

  @parameterized.product(devices=(1, 2, 3, 8), form=('scan', 'vmap', 'chunk:2'))
  def test_devices_share_the_clients_and_rows_keep_their_order(
    self, devices, form
  ):
    sizes = jnp.array([3, 1, 4, 1, 5, 9, 2])
    numbers = jnp.arange(CLIENTS)

    def client_fn(number):
      value = jnp.where(number == 3, jnp.nan, -0.5 * number)
      kept = {'number': number, 'even': number % 2 == 0, 'value': value}
      return number, (kept, jnp.full((2, 3), number, jnp.bfloat16))

    found = jax.jit(
      execution.over_devices(
        lambda numbers: execution.map_clients(
          client_fn,
          numbers,
          lambda total, values, unused_rows: total + values.sum(),
          jnp.int32(0),
          execution=form,
          sizes=sizes,
          axis='client',
        ),
        testing.mesh({'client': devices}),
      )
    )(numbers)
    total = numbers.sum()
    expected = jax.tree.map(jnp.asarray, jax.vmap(client_fn)(numbers)[1])
    testing.assert_trees_equal(found, (total, expected))

  @parameterized.parameters(('scan', 1), ('vmap', 7), ('chunk:3', 3))
  def test_as_many_clients_run_at_once_as_asked(self, form, expected):
    sizes = []

    def add(total, contributions, unused_rows):
      sizes.append(contributions.shape[0])
      return total + contributions.sum()

    execution.map_clients(
      lambda x: (x, ()),
      jnp.arange(7.0),
      add,
      jnp.float32(0),
      execution=form,
      sizes=jnp.ones(7),
    )
    self.assertEqual(set(sizes), {expected})


class SizesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('scan', 100, 1),
    ('vmap', 100, 7),
    ('chunk', 0, 7),
    ('chunk', 100, 4),
    ('low_rank', 50, 7),
    ('chunk', 1000, 1),
    ('chunk:2', 1000, 2),
  )
  def test_a_budget_says_how_many_run_at_once(self, form, each, expected):
    # Blocks are even: of 7 clients of which 5 fit, 4 and 3 run together.
    self.assertEqual(execution.block_size(form, 7, each, 500), expected)

  def test_every_mode_has_all_devices_and_who_asks_is_told(self):
    with self.assertWarnsRegex(DeprecationWarning, 'goes in 0.4'):
      self.assertEqual(execution.num_devices('low_rank', 4, 'cpu'), 4)

  @parameterized.parameters(
    ('low_rank', math.inf), ('low_rank:1', 1), ('low_rank:12', 12)
  )
  def test_a_mode_names_how_many_clients_run_at_once(self, form, together):
    self.assertEqual(execution.clients_at_once(form), together)
    self.assertEqual(execution.low_rank_of(together), form)


class ResolveTest(parameterized.TestCase):
  @parameterized.parameters(('cpu', 'scan'), ('gpu', 'chunk'), ('tpu', 'chunk'))
  def test_auto_depends_on_the_platform(self, platform, expected):
    self.assertEqual(execution.resolve('auto', platform), expected)

  def test_auto_looks_at_the_platform_at_hand(self):
    self.assertEqual(
      execution.resolve('auto'),
      execution.resolve('auto', jax.default_backend()),
    )

  @parameterized.parameters(
    'scan', 'vmap', 'chunk', 'chunk:1', 'chunk:12', 'low_rank', 'low_rank:3'
  )
  def test_a_form_stays(self, form):
    self.assertEqual(execution.resolve(form, 'gpu'), form)

  @parameterized.parameters(
    'pmap', '', 'chunky', 'chunk:', 'chunk:0', 'chunk:-2', 'chunk:2.5', 'Scan'
  )
  def test_another_form_is_an_error(self, form):
    sentence = (
      "Expected `execution` to be 'auto', 'scan', 'vmap', 'chunk', "
      "'low_rank' or one of the last two with a number of clients (for example "
      f"'chunk:8'), got {form!r}."
    )
    with self.assertRaisesWithLiteralMatch(ValueError, sentence):
      execution.resolve(form)
    with self.assertRaisesWithLiteralMatch(ValueError, sentence):
      round_settings.RoundSettings(
        placement=round_settings.Placement(execution=form)
      )


if __name__ == '__main__':
  absltest.main()
