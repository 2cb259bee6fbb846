"""Clients on nodes give the numbers of the simulator; nodes may come and go."""

import dataclasses
import functools
import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from configs import digits
from configs import vertical
from experiments.building import backbones
from experiments.console import describe
from experiments.flower import node as node_lib
from experiments.flower import parts
from experiments.flower import secure_program
from experiments.flower import secure_server
from experiments.studies import train
from fmtl_jax import evaluation
from fmtl_jax import execution
from fmtl_jax import federation as federation_lib
from fmtl_jax import secure_aggregation
from fmtl_jax import testing
from fmtl_jax.rounds import communication
from fmtl_jax.running import program

from tests import needs

ROUNDS = 2
# Fields of cases: four clients of each task take part in sums of their task.
_FIELDS = {
  'multi_task_fl': {
    'data.clients': 20,
    'cohort.clients_per_task': 0,
    'secure.aggregation': True,
    'secure.clip': 20.0,
    'secure.threshold': 0.5,
  },
  'fedavg': {'compression.common': 'qsgd', 'compression.bits': 4},
  'fedprox': {
    'privacy.unit': 'example',
    'privacy.clipping_norm': 1.0,
    'privacy.noise_multiplier': 1.0,
  },
}
testing.use_cpu_devices(8)


@functools.cache
def _config():
  config = digits.get_config('smoke')
  config.data.clients = 10
  config.cohort.clients_per_task = 1
  config.model.hidden = (8, 6)
  config.run.rounds = ROUNDS
  config.run.seeds = 1
  config.run.evaluate_every = ROUNDS
  config.cases = ('fedper', 'scaffold')
  return config


@functools.cache
def _source():
  return backbones.load_source(_config())


@functools.cache
def _simulated(name):
  """Config and case, and state and metrics of the rounds in one program."""
  config, case = parts.built(name, _config(), _FIELDS.get(name, {}), _source())
  algorithm = case.make_algorithm(case.federation, {})
  run = parts.of_run(case.runs, 0)
  data = dataclasses.replace(case.data, partition=run.train)
  state, found = testing.jit(algorithm.init)(run.key, data), []
  mesh = execution.mesh({program.CLIENT_AXIS: 1}, jax.devices()[:1])
  round_fn = lambda state: algorithm.round(state, data)
  round_fn = testing.jit(execution.over_devices(round_fn, mesh, (jax.P(),)))
  for _ in range(ROUNDS):
    state, metrics = round_fn(state)
    found.append(metrics)
  return config, case, state, jax.tree.map(lambda *x: np.stack(x), *found)


_BUILT = {}
_build = node_lib.Node._build


def _work(node, name):
  """What nodes build is the same at all of them, and compiled once."""
  if name not in _BUILT:
    _BUILT[name] = _build(node, name)
  return _BUILT[name]


@functools.cache
def _program(name):
  """Compiled once; tests give it nodes."""
  config, case, *_ = _simulated(name)
  return secure_program.of(name, case, config, InProcess(2, '.', name))


class InProcess:
  """Nodes in this process; `silent` ones do nothing, `deaf` ones are late."""

  session = 'session'
  leaves = 'never'  # The stage before which node 1 leaves.

  def __init__(self, count, folder, name):
    self.count, self.moved, self.name = count, {}, name
    self.folder = pathlib.Path(folder)
    self.silent, self.deaf = (), ()
    self.requests = []  # Kinds, or stages, with the nodes they went to.
    self.nodes = {}
    for number in range(count):
      self.start(number)

  def start(self, number):
    """Starts a node, which knows nothing but its folder."""
    self.nodes[number] = node_lib.Node(
      *(_config(), _FIELDS.get(self.name, {}), number, self.count),
      self.folder / str(number),
    )

  def __call__(self, requests):
    for about, _ in requests.values():
      self.requests.append(about.get('stage', about['kind']))
      if about.get('stage') == self.leaves:
        self.silent = (1,)
        break
    found = {
      number: self.nodes[number].answer(*request)
      for number, request in requests.items()
      if number not in self.silent
    }
    return {n: answer for n, answer in found.items() if n not in self.deaf}

  def kept(self, name, case, last):
    """What all clients have, `[R, M, ...]`, by their last rounds."""
    work = _work(self.nodes[0], name)
    kept = jax.tree.map(np.array, work.initial)
    for (run, client), number in np.ndenumerate(last):
      node = self.nodes[client % self.count]
      request = {'session': self.session, 'case': name}
      own = node._kept_of(work, request, run, client, number)
      for table, value in zip(
        jax.tree.leaves(kept), jax.tree.leaves(own), strict=True
      ):
        table[run, client] = value
    return kept


class ProgramTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = folder.name
    shared = mock.patch.object(node_lib.Node, '_build', _work)
    shared.start()
    self.addCleanup(shared.stop)

  def _start(self, name, count=2):
    _, case, *_ = _simulated(name)
    exchange, run = InProcess(count, self.folder, name), _program(name)
    run._exchange = exchange
    run._last[:] = node_lib.NEVER
    run.splits = []  # Nothing is compiled to evaluate at the server.
    return case, exchange, run, run.init()

  def _whole(self, name, case, exchange, run, state):
    """The state of everything, of the only run."""
    kept = exchange.kept(name, case, run._last)
    whole = parts.rounds_of(case, name).with_kept(run.host_state(state), kept)
    return parts.of_run(whole, 0)

  @parameterized.parameters(
    ('fedper', 2), ('scaffold', 4), ('multi_task_fl', 3), ('fedavg', 2)
  )
  def test_numbers_are_those_of_one_program(self, name, count):
    _, case, expected, expected_metrics = _simulated(name)
    _, exchange, run, state = self._start(name, count)
    metrics = []
    for _ in range(ROUNDS):  # As between two checkpoints.
      state, found = run.run_rounds(state, 1)
      metrics.append(found)
    joined = jax.tree.map(lambda *x: np.concatenate(x, 1), *metrics)
    testing.assert_trees_close(parts.of_run(joined, 0), expected_metrics)
    whole = self._whole(name, case, exchange, run, state)
    testing.assert_trees_close(whole, expected)

  @needs.dp_accounting
  def test_nodes_of_private_clients_keep_a_ledger(self):
    case, exchange, run, state = self._start('fedprox')
    state, metrics = run.run_rounds(state, 1)
    exchange.start(0)  # It has its folder.
    state, more = run.run_rounds(state, 1)
    took_part = np.concatenate([metrics['client'], more['client']], 1).ravel()
    found = {}
    for number in exchange.nodes:
      path = exchange.folder / f'{number}/session/fedprox/run_0/ledger.json'
      found |= json.loads(path.read_text(encoding='utf-8'))['clients']
    clients, counts = np.unique(
      took_part[took_part < case.data.num_clients], return_counts=True
    )
    self.assertEqual(
      {int(client): own['messages'] for client, own in found.items()},
      dict(zip(clients.tolist(), counts.tolist(), strict=True)),
    )
    with self.assertRaisesRegex(ValueError, 'at most run.rounds=2 messages'):
      for _ in range(10 * ROUNDS):  # Whatever the server asks for.
        state, _ = run.run_rounds(state, 1)

  def test_compressed_messages_have_the_bytes_of_the_table(self):
    case, exchange, run, state = self._start('fedavg')
    _, metrics = run.run_rounds(state, 1)
    clients = int((metrics['client'] < case.data.num_clients).sum())
    messages = case.make_algorithm(case.federation, {}).messages()
    bytes_of = lambda way: sum(
      communication.cohort_bytes(
        case.federation, getattr(messages, way), clients, clients
      ).values()
    )
    for way in ('up', 'down'):
      moved = exchange.moved[f'fedavg/{way}']['payload']
      self.assertBetween(moved / bytes_of(way), 0.95, 1.05)
    self.assertLess(bytes_of('up'), 0.3 * bytes_of('down'))

  def test_a_server_of_secure_sums_sees_masked_numbers_alone(self):
    case, exchange, run, state = self._start('multi_task_fl')
    seen = []
    collect = secure_server.collect

    def spied(ask, count, runs, advertised):
      def asked(stage, messages):
        answers = ask(stage, messages)
        if stage == 'mask':
          seen.extend(
            x for of_node in answers.values() for x in of_node.values()
          )
        return answers

      return collect(asked, count, runs, advertised)

    with mock.patch.object(secure_server, 'collect', spied):
      run.run_rounds(state, 1)
    self.assertEqual(
      exchange.requests,
      [kind for kind in ('train', 'share', 'mask', 'unmask') for _ in range(2)],
    )
    # A run for all clients, and one for each task: two messages a client.
    self.assertLen(seen, 2 * case.data.num_clients)
    values = b''.join(secure_aggregation.decode(data).values for data in seen)
    counts = np.bincount(np.frombuffer(values, np.uint8), minlength=256)
    # As good as uniform: chi-squared of 255 degrees, six deviations above.
    expected = len(values) / 256
    distance = (np.square(counts - expected) / expected).sum()
    self.assertLess(distance, 255 + 6 * np.sqrt(2 * 255))
    messages = case.make_algorithm(case.federation, {}).messages()
    for direction in ('up', 'down'):
      table = communication.cohort_bytes(
        *(case.federation, getattr(messages, direction)),
        *(case.data.num_clients, case.data.num_clients),
      )
      moved = exchange.moved[f'multi_task_fl/{direction}']['payload']
      self.assertBetween(moved / sum(table.values()), 0.95, 1.05)

  @parameterized.parameters('share', 'mask', 'unmask')
  def test_a_node_that_leaves_a_secure_sum(self, stage):
    case, exchange, run, state = self._start('multi_task_fl', 5)
    before = jax.device_get(run.host_state(state).params)
    exchange.leaves = stage
    state, metrics = run.run_rounds(state, 1)
    clients = metrics['client'][metrics['client'] < case.data.num_clients]
    there = set(range(case.data.num_clients))
    if stage != 'unmask':  # Its numbers were in the sum by then.
      there = {client for client in there if client % 5 != 1}
    self.assertEqual(set(clients.tolist()), there)
    # Nobody of the others has lost anything: they are as without that node.
    case, exchange, run, other = self._start('multi_task_fl', 5)
    exchange.silent = (1,) if stage != 'unmask' else ()
    other, _ = run.run_rounds(other, 1)
    after, wanted = (run.host_state(x).params for x in (state, other))
    testing.assert_trees_close(after, wanted)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), after, before)
    self.assertGreater(max(jax.tree.leaves(moved)), 1e-3)

  def test_too_few_for_a_secure_sum_is_a_warning(self):
    _, exchange, run, state = self._start('multi_task_fl')
    before = jax.device_get(run.host_state(state).params)
    exchange.silent = (0,)  # Half of them, two of each task.
    with mock.patch('sys.stderr') as errors:
      state, _ = run.run_rounds(state, 1)
    said = ''.join(call.args[0] for call in errors.write.call_args_list)
    self.assertIn('Expected at least', said)
    testing.assert_trees_equal(run.host_state(state).params, before)

  def test_models_of_clients_are_measured_where_they_are(self):
    _, case, expected, _ = _simulated('fedper')
    _, exchange, run, state = self._start('fedper')
    state, _ = run.run_rounds(state, ROUNDS)
    test = parts.of_run(case.runs.test, 0)
    rows = parts.of_run(program.rows_of(case.runs.test)['test'], 0)
    federation = case.test_federation
    evaluate = evaluation.evaluator(
      federation, case.make_algorithm(federation, {})
    )
    found = testing.jit(evaluate)(
      expected,
      dataclasses.replace(case.test_data, partition=test),
      rows[evaluation.CLIENT],
      rows[evaluation.POOLED],
    )
    measured = parts.of_run(run.evaluate(state, 'test'), 0)
    testing.assert_trees_close(measured, found, atol=1e-5)
    sent = federation_lib.num_bytes(case.federation.averaged(expected.params))
    down = exchange.moved['fedper/evaluation_down']
    self.assertEqual((down['messages'], down['payload']), (2, 2 * sent))
    self.assertGreater(exchange.moved['fedper/evaluation_up']['payload'], 0)
    self.assertEqual(exchange.moved['fedper/down']['messages'], 2 * ROUNDS)
    run._exchange.silent = (1,)
    each = run.evaluate(state, 'test')['each']['accuracy'][0]
    np.testing.assert_array_equal(np.isnan(each[:, 0]), np.arange(10) % 2)

  def test_a_node_that_starts_again_has_what_its_clients_kept(self):
    _, _, expected, _ = _simulated('fedper')
    case, exchange, run, state = self._start('fedper')
    state, _ = run.run_rounds(state, 1)
    exchange.start(1)
    state, _ = run.run_rounds(state, 1)
    whole = self._whole('fedper', case, exchange, run, state)
    testing.assert_trees_close(whole, expected)

  def test_a_lost_folder_is_an_error(self):
    _, exchange, run, state = self._start('fedper')
    state, _ = run.run_rounds(state, 1)
    exchange.folder = exchange.folder / 'other'
    exchange.start(1)
    with self.assertRaisesRegex(ValueError, 'node 1 to have what client'):
      run.evaluate(state, 'test')

  def test_a_message_that_was_too_late_never_happened(self):
    case, exchange, run, state = self._start('scaffold')
    exchange.deaf = (1,)
    state, metrics = run.run_rounds(state, 1)
    drawn = metrics['client'][metrics['client'] < case.data.num_clients]
    np.testing.assert_array_equal(drawn % 2, 0)
    kept = exchange.kept('scaffold', case, run._last)
    initial = _work(exchange.nodes[0], 'scaffold').initial
    odd = lambda tree: jax.tree.map(lambda x: x[:, 1::2], tree)
    testing.assert_trees_equal(odd(kept), odd(initial))

  def test_another_federation_is_refused(self):
    _, _, run, state = self._start('fedper')
    with (
      mock.patch.object(run, '_digest', 'another'),
      self.assertRaisesRegex(ValueError, 'the federation of the server'),
    ):
      run.run_rounds(state, 1)

  @parameterized.parameters(
    ('centralized_joint', {}, 'moves the data'),
    ('fedavg', {'execution.clients_on': 'host'}, 'on the host'),
    ('ifca', {}, 'choose owners'),
    ('fedavg', {'compression.down.common': 'eden'}, 'compressed broadcasts'),
  )
  def test_refusals(self, name, settings, why):
    with self.assertRaisesRegex(ValueError, why):
      resolved, case = parts.built(name, _config(), settings, _source())
      parts.check_case(name, case, resolved, 2)

  @parameterized.parameters(
    (('fedper', 'ifca'), 2, 'got ifca, .* choose owners'),
    (('fedper', 'centralized_joint'), 2, 'moves the data'),
    (('fedper', 'heterofl'), 2, 'parts of layers'),
    (('fedper',), 11, '1 to 10 nodes'),
  )
  def test_all_cases_are_checked_before_one_is_run(self, names, count, why):
    check = functools.partial(parts.check_case, count=count)
    place = pathlib.Path(self.folder) / 'work'
    with self.assertRaisesRegex(ValueError, why):
      train.train_and_evaluate(
        _config(), place, names, {}, 'auto', self.fail, check
      )
    self.assertFalse(place.exists())
    with self.assertRaisesRegex(ValueError, why):
      describe.describe(_config(), names, {}, check)

  def test_parties_are_not_clients(self):
    config = vertical.get_config('smoke')
    source = backbones.load_source(config)
    resolved, case = parts.built('vertical', config, {}, source)
    with self.assertRaisesRegex(ValueError, 'exchange embeddings'):
      parts.check_case('vertical', case, resolved, 1)


if __name__ == '__main__':
  absltest.main()
