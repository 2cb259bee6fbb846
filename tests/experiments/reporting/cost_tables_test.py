"""Laws of tables of costs: bytes, parameters and times of records."""

from absl.testing import absltest

from experiments.reporting import cost_tables
from tests.experiments.reporting import toy_records


class CostTest(absltest.TestCase):
  def test_bytes_are_shown_by_layer_type_and_direction(self):
    record = toy_records.last('toy', 90.0)
    record['cost'] |= {
      'bytes_up_per_round': toy_records.BYTES
      | {'common': 2048, 'cluster': 512},
      'bytes_down_per_round': toy_records.BYTES | {'common': 3 * 1024**2},
      'bytes_up_per_client': toy_records.BYTES
      | {'common': 1024, 'cluster': 256},
      'bytes_down_per_client': toy_records.BYTES | {'common': 1.5 * 1024**2},
    }
    table = cost_tables.communication_table(
      [record, toy_records.last('still', 90.0)]
    )
    self.assertEqual(
      table.header,
      (
        'case',
        'direction',
        'common',
        'task',
        'personal',
        'cluster',
        'all',
        'all, one client',
      ),
    )
    self.assertEqual(
      table.rows,
      (
        ('Toy', 'up', '2 KiB', '0 B', '0 B', '512 B', '2.50 KiB', '1.25 KiB'),
        ('Toy', 'down', '3 MiB', '0 B', '0 B', '0 B', '3 MiB', '1.50 MiB'),
        ('Still', 'each way', *['0 B'] * 6),
      ),
    )

  def test_a_case_without_rounds_has_no_times(self):
    record = toy_records.last('toy', 90.0)
    record['cost']['parameters'] = {
      'task': 50,
      'pretrained': 5_000_000,
      'common': 1200,
      'personal': 0,
    }
    table = cost_tables.cost_table(
      [record, toy_records.last('majority', 50.0, rounds=0)]
    )
    self.assertEqual(
      table.rows,
      (
        (
          'Toy',
          '5,000,000',
          '1,200',
          '50',
          '0',
          '5,001,250',
          '12.3 ms',
          '3.25 s',
          '1,500',
        ),
        ('Majority', '0', '0', '0', '0', '0', '–', '–', '–'),
      ),
    )


if __name__ == '__main__':
  absltest.main()
