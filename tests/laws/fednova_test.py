"""FedNova against the loops of its paper, and what it is for."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import optax

from fmtl_jax import testing
from fmtl_jax.algorithms import fednova
from fmtl_jax.algorithms import local_steps
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import round_settings

import cases
import naive


class FedNova(naive.Federation):
  """Equation 6 of the paper in loops; a_m by its definition."""

  def average(self, layer_type, params, new, cohort, results, number):
    works = [self.work(member) for member in cohort]
    leaves = [leaf for leaf in self.types if self.types[leaf] == layer_type]
    given: dict = {}
    for member, result, work in zip(cohort, results, works, strict=True):
      by_slot = leaves[0] in self.by_slot
      for slot in range(self.num_slots) if by_slot else [None]:
        if slot is not None and not member.active[slot]:
          continue
        weight = self.weight(layer_type, cohort, member, slot)
        place = self.place(leaves[0], member.client, slot)
        given.setdefault(place, []).append((weight, work, result))
    for place, clients in given.items():
      total = sum(weight for weight, _, _ in clients)
      if not total:
        continue
      tau = sum(weight * work for weight, work, _ in clients) / total
      for layer, name in leaves:
        start = params[layer][name][place]
        direction = sum(
          weight / total * (result[(layer, name), place] - start) / work
          for weight, work, result in clients
        )
        new[layer][name][place] = start + tau * direction


class FedNovaTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 0.5)
  def test_rounds_are_those_of_the_paper(self, momentum):
    cases.compare(
      ('common', 'common'),
      cases.toy_data(7, 3),
      local=cases.Local(batch_size=2, epochs=2, momentum=momentum),
      clients_per_task=(2, 1, 2),
      build=fednova.fednova,
      reference=FedNova,
    )

  def test_any_layer_types_and_several_tasks_for_each_client(self):
    cases.compare(
      ('common', 'task', 'personal'),
      cases.toy_data(5, 3, 2, missing=0.4),
      local=cases.Local(batch_size=3),
      clients_per_task=1,
      build=fednova.fednova,
      reference=FedNova,
    )

  @parameterized.parameters((4,), (4, 8))
  def test_it_is_fedavg_where_all_clients_take_as_many_steps(self, *sizes):
    federation, data = testing.toy_federation(
      ('common', 'common'), cases.toy_data(6, 3, sizes=sizes)
    )
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)
    settings = round_settings.RoundSettings()
    found = []
    for build in (fednova.fednova, multi_task_fl.multi_task_fl):
      algorithm = build(federation, local, settings)
      state = testing.jit(algorithm.init)(jax.random.key(0), data)
      found.append(testing.jit(algorithm.round)(state, data)[0].params)
    if len(sizes) == 1:
      testing.assert_trees_close(*found)
    else:
      with self.assertRaises(AssertionError):
        testing.assert_trees_close(*found, 1e-3, 1e-3)

  def test_a_client_of_many_steps_does_not_pull_the_average(self):
    """Where all gradients stay equal, it takes the mean number of steps."""
    works = local_steps.work(
      np.array([1, 3]), local_optimizers.Sgd(momentum=0.5)
    )
    np.testing.assert_allclose(works, [1, 1 + 1.5 + 1.75])

  def test_an_optimizer_that_is_not_sgd_is_refused(self):
    federation, _ = cases.toy_federation(('common', 'common'))
    with self.assertRaisesRegex(ValueError, '`local.optimizer` to be SGD'):
      fednova.fednova(
        federation, local_optimizers.LocalSgd(optimizer=optax.adam)
      )


if __name__ == '__main__':
  absltest.main()
