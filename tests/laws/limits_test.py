"""Laws: what is left when some layer types are absent, and closed forms."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import federation as federation_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.rounds import round_settings

import cases
import naive

LAYERS = ('layer_0', 'layer_1')
RATE = 0.3
EPOCHS = 2


@functools.cache
def _data(num_tasks=1):
  """Six clients of unequal sizes with classes to tell apart."""
  return testing.toy_data(6, num_tasks, kinds=(tasks_lib.MULTICLASS,))


def _build(name, data, outputs=3, batch_size=0, **settings):
  """An algorithm by name, with the layer types that belong to it."""
  entry = algorithms.ALGORITHMS[name]
  federation = federation_lib.Federation.create(
    testing.mlp([3, 4, outputs]), entry.label_rules(LAYERS), data
  )
  return entry.build(
    federation,
    local_optimizers.LocalSgd(
      learning_rate=RATE, batch_size=batch_size, epochs=EPOCHS
    ),
    round_settings.RoundSettings(**settings),
  )


def _rounds(algorithm, data, number=3):
  """The values before and after some rounds, by leaf."""
  start = algorithm.init(jax.random.key(3), data)
  state, round_fn = start, testing.jit(algorithm.round)
  for _ in range(number):
    state, _ = round_fn(state, data)
  return cases.to_float64(start.params), cases.to_float64(state.params)


def _network(params, place=lambda layer, leaf: leaf):
  """`(kernel, bias)` of each layer, of one owner."""
  return [
    tuple(place(layer, params[layer][name]) for name in ('kernel', 'bias'))
    for layer in LAYERS
  ]


def _train(network, client, num_classes):
  """Full-batch gradient descent of one client, in NumPy."""
  for _ in range(EPOCHS):
    mean = [[0.0, 0.0] for _ in network]
    for x, label in zip(client.features, client.labels[:, 0], strict=True):
      _, grads = naive.gradient(network, x, label, 'multiclass', num_classes)
      for total, pair in zip(mean, grads, strict=True):
        total[0] += pair[0] / len(client.features)
        total[1] += pair[1] / len(client.features)
    network = [
      (kernel - RATE * dk, bias - RATE * db)
      for (kernel, bias), (dk, db) in zip(network, mean, strict=True)
    ]
  return network


def _average(networks, sizes):
  """The mean of networks, weighted by sizes."""
  shares = np.array(sizes) / np.sum(sizes)
  return [
    tuple(
      sum(share * leaf for share, leaf in zip(shares, leaves, strict=True))
      for leaves in zip(*layers, strict=True)
    )
    for layers in zip(*networks, strict=True)
  ]


class LimitsTest(parameterized.TestCase):
  def test_all_common_is_federated_averaging(self):
    data = _data()
    start, params = _rounds(_build('fedavg', data), data)
    clients, network = cases.clients_of(data), _network(start)
    sizes = [len(client.features) for client in clients]
    for _ in range(3):
      network = _average([_train(network, c, 3) for c in clients], sizes)
    testing.assert_trees_close(_network(params), network)

  def test_all_personal_is_isolated_training(self):
    data = _data()
    start, params = _rounds(_build('isolated', data), data)
    for number, client in enumerate(cases.clients_of(data)):
      # The output layer has a copy for each of a client's tasks.
      of_client = lambda layer, leaf, number=number: (
        leaf[number, 0] if layer == 'layer_1' else leaf[number]
      )
      network = _network(start, of_client)
      for _ in range(3):
        network = _train(network, client, 3)
      testing.assert_trees_close(_network(params, of_client), network)

  @parameterized.parameters(('fedper', 'layer_1'), ('lg_fedavg', 'layer_0'))
  def test_one_task_with_personal_layers(self, name, personal):
    """FedPer keeps its last layer at home, LG-FedAvg its first."""
    data = _data()
    start, params = _rounds(_build(name, data), data)

    def of_client(number, layer, leaf):
      if layer != personal:
        return leaf
      return leaf[number, 0] if layer == 'layer_1' else leaf[number]

    clients = cases.clients_of(data)
    sizes = [len(client.features) for client in clients]
    networks = [
      _network(start, functools.partial(of_client, number))
      for number in range(len(clients))
    ]
    shared = LAYERS.index('layer_0' if personal == 'layer_1' else 'layer_1')
    for _ in range(3):
      networks = [
        _train(network, client, 3)
        for network, client in zip(networks, clients, strict=True)
      ]
      mean = _average(networks, sizes)
      for network in networks:
        network[shared] = mean[shared]
    for number, network in enumerate(networks):
      actual = _network(params, functools.partial(of_client, number))
      testing.assert_trees_close(actual, network)

  def test_all_task_specific_is_a_federation_for_each_task(self):
    data = _data(2)
    server = cases.Server.sgd(0.5, momentum=0.9).package
    # Heads are as wide as the widest task's, so that the first draws agree.
    settings = {'outputs': tasks_lib.num_outputs(data.tasks), 'batch_size': 2}
    joint = _build('separate_fl', data, server={'task': server}, **settings)
    _, params = _rounds(joint, data)
    partition, examples = data.partition, data.examples
    for number, task in enumerate(data.tasks):
      group = np.flatnonzero(partition.client_tasks[:, 0] == number)
      alone = dataset_lib.FederatedDataset.create(
        features=examples.features,
        labels=examples.labels,
        tasks=[task],
        client_tasks=np.zeros(len(group), int),
        train=[partition.train.groups()[client] for client in group],
        client_ids=partition.client_ids[group],
      )
      algorithm = _build('fedavg', alone, server={'common': server}, **settings)
      _, expected = _rounds(algorithm, alone)
      testing.assert_trees_close(cases.rows(params, number), expected)


class CentralizedTest(parameterized.TestCase):
  @parameterized.parameters('common', 'task')
  def test_a_full_batch_step_is_a_step_on_the_union(self, head):
    """A head's union is its task's; weighted by examples."""
    data = cases.toy_data(6, 2)
    federation, _ = testing.toy_federation(('common', head), data)
    algorithm = algorithms.ALGORITHMS['multi_task_fl'].build(
      federation,
      cases.Local(rate=RATE).package(),
      round_settings.RoundSettings(),
    )
    state = cases.start(algorithm, data)
    start = cases.to_float64(state.params)
    state, _ = testing.jit(algorithm.round)(state, data)

    clients = cases.clients_of(data)
    total = sum(len(client.features) for client in clients)
    of_task = {
      task: sum(len(c.features) for c in clients if c.tasks[0] == task)
      for task in range(2)
    }
    expected = jax.tree.map(np.copy, start)
    for client in clients:
      task = client.tasks[0]
      place = lambda layer, leaf, task=task: (
        leaf[task] if (layer, head) == ('layer_1', 'task') else leaf
      )
      kind = (data.tasks[task].kind, data.tasks[task].num_classes)
      for x, label in zip(client.features, client.labels[:, 0], strict=True):
        _, grads = naive.gradient(_network(start, place), x, label, *kind)
        for layer, pair in zip(LAYERS, grads, strict=True):
          owned = (layer, head) == ('layer_1', 'task')
          size = of_task[task] if owned else total
          for name, grad in zip(('kernel', 'bias'), pair, strict=True):
            leaf = place(layer, expected[layer][name])
            leaf -= RATE * grad / size
    testing.assert_trees_close(cases.to_float64(state.params), expected)


class ClosedFormTest(parameterized.TestCase):
  """A constant, trained to the mean of its client's labels."""

  LABELS = ((1.0, 3.0), (5.0,), (-2.0, 4.0, 7.0), (0.0,))
  TASKS = (0, 1, 1, 0)

  @parameterized.parameters(
    ('common', 'examples', 18 / 7),
    ('common', 'uniform', (2 + 5 + 3 + 0) / 4),
    ('common', 'task_balanced', (4 / 3 + 14 / 4) / 2),
    ('task', 'examples', [4 / 3, 14 / 4]),
    ('task', 'uniform', [1.0, 4.0]),
    ('task', 'paper', [4 / (2 * 7), 14 / (2 * 7)]),
    ('common', 'paper', 18 / (2 * 2 * 7)),
  )
  def test_what_an_average_is(self, layer_type, weighting, expected):
    state, _ = self._round(layer_type, {layer_type: weighting})
    value = np.asarray(state.params['output']['bias'])[..., 0]
    np.testing.assert_allclose(value, expected, rtol=1e-6)

  def test_a_personal_layer_is_the_mean_of_its_client(self):
    state, metrics = self._round('personal', {})
    value = np.asarray(state.params['output']['bias'])[:, 0, 0]
    np.testing.assert_allclose(value, [2, 5, 3, 0], rtol=1e-6)
    # The losses are those before the step: the labels' squares.
    np.testing.assert_allclose(
      np.asarray(metrics['loss_sum'])[:, 0], [10, 25, 69, 0]
    )
    np.testing.assert_array_equal(metrics['count'][:, 0], [2, 1, 3, 1])

  def _round(self, layer_type, weighting):
    federation, data = testing.mean_estimation(
      self.LABELS, self.TASKS, layer_type
    )
    algorithm = algorithms.ALGORITHMS['multi_task_fl'].build(
      federation,
      testing.TO_THE_MEAN,
      round_settings.RoundSettings(weighting=weighting),
    )
    state = testing.jit(algorithm.init)(jax.random.key(0), data)
    return testing.jit(algorithm.round)(state, data)


if __name__ == '__main__':
  absltest.main()
