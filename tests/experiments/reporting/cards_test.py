"""Laws of cards: they are what the Hugging Face Hub reads, and say the numbers.

The header is also read by the Hub's own library, where it is installed.
"""

import importlib.util
import tempfile

from absl.testing import absltest
import numpy as np
import yaml

from experiments.configuration import config as config_lib
from experiments.reporting import cards
from experiments.reporting import reports
from fmtl_jax import predictors
from fmtl_jax import tasks as tasks_lib
from tests.experiments.reporting import toy_records

TASK = 'a | <b> *c*: "d"'


def _record(case='multi_task_fl', **changes):
  settings = config_lib.flatten(config_lib.default_config())
  record = toy_records.record(
    case,
    [[[80.0, None, 80.0], [90.0, None, 90.0]]],
    tasks=(TASK, 'e'),
    clients=['7', '9'],
    client_tasks=[[0], [0]],
    settings=settings | {'client.learning_rate': 0.25},
    **changes,
  )
  values = record['curve']['values']
  values['test/pooled/accuracy_worst_decile'] = [[[1.0] * 3] * 2]
  values['test/client/auc'] = [[[0.5, None, 0.5], [0.7, None, 0.7]]]
  values['validation/pooled/accuracy'] = [[[2.0] * 3] * 2]
  record['client_values'] = {
    'test/accuracy': [[[70.0], [60.0]], [[50.0], [None]]],
    'test/count': [[[4.0], [4.0]], [[4.0], [0.0]]],
  }
  return record


def _model():
  return predictors.Predictor(
    apply_fn=lambda params, x: x,
    params={'body': {'w': np.zeros((2, 3))}, 'head': {'b': np.zeros(())}},
    task=tasks_lib.Task(name=TASK),
    layer_types={'body/w': 'common', 'head/b': 'task'},
    owners={'body/w': 'all clients', 'head/b': f'task {TASK}'},
  )


def _card(values, **changes):
  settings = {
    'seed': 1,
    'whose': 'client 7 predicts',
    'licence': 'cc-by-4.0',
    'tags': ['fedavg'],
    'sections': [('Data', 'body')],
  }
  return cards.model_card(_model(), _record(), values, **settings | changes)


def header_of(text):
  """The YAML header of a card, as the Hub reads it."""
  _, header, _ = text.split('---\n', 2)
  found = yaml.safe_load(header)
  if importlib.util.find_spec('huggingface_hub'):
    import huggingface_hub

    with tempfile.NamedTemporaryFile('w', encoding='utf-8') as file:
      file.write(text)
      file.flush()
      data = huggingface_hub.ModelCard.load(file.name).data
    for field in ('license', 'library_name', 'tags', 'datasets', 'metrics'):
      assert getattr(data, field) == found[field], field
    count = sum(
      len(result['metrics'])
      for entry in found['model-index']
      for result in entry['results']
    )
    assert len(data.eval_results) == count
  return found


class ModelCardTest(absltest.TestCase):
  def test_a_model_has_the_numbers_of_its_seed_and_of_all(self):
    values = cards.values_of_task(_record(), 1, TASK)
    self.assertEqual(
      [(v.metric, v.view, v.value) for v in values],
      [('accuracy', 'pooled', 90.0), ('auc', 'client', 0.7)],
    )
    self.assertEqual(values[0].mean, 85.0)
    header = header_of(_card(values))
    (entry,) = header['model-index']
    (result,) = entry['results']
    self.assertEqual(entry['name'], f'Multi_task_fl: {TASK}')
    self.assertEqual(result['task']['name'], TASK)
    self.assertEqual(result['dataset']['type'], 'digits')
    accuracy, auc = result['metrics']
    self.assertEqual((accuracy['type'], accuracy['value']), ('accuracy', 90.0))
    self.assertEqual(accuracy['args']['mean_over_seeds'], 85.0)
    self.assertAlmostEqual(accuracy['args']['std_over_seeds'], 50**0.5)
    self.assertEqual((auc['type'], auc['value']), ('roc_auc', 0.7))
    self.assertEqual(header['metrics'], ['accuracy', 'roc_auc'])
    self.assertEqual(header['tags'][-1], 'fedavg')
    self.assertEqual(cards.values_of_task(_record(), 1, 'e'), [])

  def test_a_clients_model_has_its_own_numbers(self):
    (value,) = cards.values_of_client(_record(), 0, '9', 0)
    self.assertEqual((value.value, value.mean), (60.0, None))
    self.assertEqual(cards.values_of_client(_record(), 1, '9', 0), [])
    ((entry,),) = [
      e['results'] for e in header_of(_card([value]))['model-index']
    ]
    self.assertEqual(
      entry['metrics'][0]['args'], {'view': 'client', 'metric': 'accuracy'}
    )

  def test_text_says_whose_layers_are_and_is_escaped(self):
    text = _card(cards.values_of_task(_record(), 1, TASK))
    body = text.split('---\n', 2)[2]
    self.assertIn('| 90.00 | 85.00 ± 7.07 |', body)
    self.assertIn('| `body/w` | 2 × 3 | 6 | common | all clients |', body)
    self.assertIn(r'task a \| &lt;b> \*c\*: "d" |', body)
    self.assertIn('7 values.', body)
    self.assertNotIn('<b>', body)
    self.assertIn('## Data\n\nbody', body)


class AboutTest(absltest.TestCase):
  def test_data_have_their_terms(self):
    settings = config_lib.flatten(config_lib.default_config())
    data = {'features': {'shape': [1797, 8, 8], 'sha256': 'abc'}}
    text = cards.about_data(settings, data)
    self.assertIn('CC BY 4.0', text)
    self.assertIn('1,797 examples of the shape [8, 8], SHA-256 `abc`', text)
    text = cards.about_data(settings | {'data.name': 'mine:rain'}, None)
    self.assertIn("the user's own; ask", text)

  def test_settings_are_those_that_differ(self):
    text = cards.about_settings(_record()['settings'])
    self.assertEqual(
      text.splitlines()[2:], ['| `client.learning_rate` | 0.25 |']
    )


class ResultCardTest(absltest.TestCase):
  def test_it_has_all_cases_and_tables(self):
    records = [_record('separate_fl'), _record()]
    config = config_lib.default_config()
    tables = reports.build_tables(
      [r | {'settings': r['settings']} for r in records], config
    )
    text = cards.result_card(
      records, tables, config, licence='unknown', sections=[]
    )
    header = header_of(text)
    names = [entry['name'] for entry in header['model-index']]
    self.assertEqual(names, ['Separate_fl', 'Multi_task_fl'])
    tasks = [r['task']['name'] for r in header['model-index'][0]['results']]
    self.assertEqual(tasks, [TASK, 'mean'])
    self.assertIn('85.00 ± 7.07', text)
    self.assertIn('Communication', text)


if __name__ == '__main__':
  absltest.main()
