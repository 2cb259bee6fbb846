"""Algorithms by name: a label rule, and what the clients and the server do.

Most are federated averaging under a label rule of their own.
"""

from collections.abc import Callable, Mapping
import inspect
from typing import Any, NamedTuple

from fmtl_jax.algorithms import adaptive
from fmtl_jax.algorithms import apfl
from fmtl_jax.algorithms import cfl
from fmtl_jax.algorithms import clusters
from fmtl_jax.algorithms import ditto
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import fedavg_finetune
from fmtl_jax.algorithms import fedavgm
from fmtl_jax.algorithms import fedbabu
from fmtl_jax.algorithms import fedbn
from fmtl_jax.algorithms import feddyn
from fmtl_jax.algorithms import fednova
from fmtl_jax.algorithms import fedper
from fmtl_jax.algorithms import fedprox
from fmtl_jax.algorithms import fedrep
from fmtl_jax.algorithms import fedsgd
from fmtl_jax.algorithms import hard_sharing
from fmtl_jax.algorithms import ifca
from fmtl_jax.algorithms import isolated
from fmtl_jax.algorithms import lg_fedavg
from fmtl_jax.algorithms import mr_mtl
from fmtl_jax.algorithms import mt_fedavg
from fmtl_jax.algorithms import mtfl
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import per_fedavg
from fmtl_jax.algorithms import pfedme
from fmtl_jax.algorithms import reptile
from fmtl_jax.algorithms import scaffold
from fmtl_jax.algorithms import separate_fl
from fmtl_jax.algorithms import soft_sharing
from fmtl_jax.algorithms.base import Algorithm as Algorithm
from fmtl_jax.algorithms.base import Messages as Messages
from fmtl_jax.algorithms.base import RoundSettings as RoundSettings


class Entry(NamedTuple):
  """An algorithm that can be chosen by name.

  Attributes:
    label_rules: `(layers, **counts) -> rules`, its layer types by depth.
    build: `(federation, local, settings, **own) -> Algorithm`.
    depths: The numbers of layers that `label_rules` takes, by name.
    leaf_rules: `(**settings) -> rules` of leaves inside layers, in front of
      those by depth; one that covers no leaf of a network does not count. What
      it takes are settings of the algorithm's own.
    own: The settings of its own that `build` takes, by name.
    equals: `(own settings, federation) -> reason` why it is a simpler algorithm
      there, as in 'is fedavg with algorithm.mu=0'; '' if it is not.
    owners: `own settings -> number of owners` of the layer types that it adds,
      by name, which is that of their index, too.
  """

  label_rules: Callable[..., Any]
  build: Callable[..., Algorithm] = multi_task_fl.multi_task_fl
  depths: tuple[str, ...] = ()
  own: tuple[str, ...] = ()
  leaf_rules: Callable[..., Any] = lambda: ()
  equals: Callable[[Mapping[str, Any], Any], str] = (
    lambda unused_own, unused_federation: ''
  )
  owners: Callable[[Mapping[str, Any]], Mapping[str, int]] = lambda _: {}

  @property
  def defaults(self) -> dict[str, Any]:
    """The settings of its own, with the values that the code has for them."""
    given = inspect.signature(self.build).parameters
    leaf = inspect.signature(self.leaf_rules).parameters
    names = {name: given[name] for name in self.own} | dict(leaf)
    return {name: parameter.default for name, parameter in names.items()}

  @property
  def leaf_settings(self) -> tuple[str, ...]:
    """The settings of its own that `leaf_rules` takes, by name."""
    return tuple(inspect.signature(self.leaf_rules).parameters)


def _simpler(
  what: str, field: str, value: float = 0
) -> Callable[[Mapping[str, Any], Any], str]:
  """`Entry.equals` of an algorithm that is `what` at a value of one setting."""
  setting = field.rpartition('.')[2]
  reason = f'{what} with algorithm.{field}={value}'
  return lambda own, unused_federation: reason if own[setting] == value else ''


ALGORITHMS: dict[str, Entry] = {
  'multi_task_fl': Entry(
    multi_task_fl.label_rules,
    depths=('task_layers', 'personal_layers'),
  ),
  'separate_fl': Entry(separate_fl.label_rules),
  'isolated': Entry(isolated.label_rules),
  'fedavg': Entry(fedavg.label_rules),
  'fedavg_finetune': Entry(
    fedavg_finetune.label_rules,
    fedavg_finetune.fedavg_finetune,
    own=('finetune_epochs',),
    equals=_simpler('is fedavg', 'finetune_epochs'),
  ),
  'fedsgd': Entry(fedsgd.label_rules, fedsgd.fedsgd),
  'fedavgm': Entry(
    fedavgm.label_rules,
    fedavgm.fedavgm,
    own=('server_momentum',),
    equals=_simpler('is fedavg', 'fedavgm.server_momentum'),
  ),
  'fedadagrad': Entry(
    adaptive.label_rules,
    adaptive.fedadagrad,
    own=('server_learning_rate', 'beta1', 'tau'),
  ),
  'fedadam': Entry(
    adaptive.label_rules,
    adaptive.fedadam,
    own=('server_learning_rate', 'beta1', 'beta2', 'tau'),
  ),
  'fedyogi': Entry(
    adaptive.label_rules,
    adaptive.fedyogi,
    own=('server_learning_rate', 'beta1', 'beta2', 'tau'),
  ),
  'per_fedavg': Entry(
    per_fedavg.label_rules,
    per_fedavg.per_fedavg,
    own=('alpha', 'order', 'delta', 'finetune_epochs'),
    equals=_simpler('is fedavg', 'per_fedavg.alpha'),
  ),
  'reptile': Entry(
    reptile.label_rules,
    reptile.reptile,
    own=('server_rate', 'finetune_epochs'),
    equals=_simpler('is fedavg_finetune', 'reptile.server_rate', 1),
  ),
  'fedprox': Entry(
    fedprox.label_rules,
    fedprox.fedprox,
    own=('mu',),
    equals=_simpler('is fedavg', 'mu'),
  ),
  'fedbn': Entry(
    fedbn.label_rules,
    leaf_rules=fedbn.leaf_rules,
    equals=lambda _, federation: fedbn.equals(federation),
  ),
  'mtfl': Entry(
    mtfl.label_rules,
    leaf_rules=mtfl.leaf_rules,
    equals=lambda own, federation: mtfl.equals(own['private'], federation),
  ),
  'fednova': Entry(fednova.label_rules, fednova.fednova),
  'feddyn': Entry(feddyn.label_rules, feddyn.feddyn, own=('alpha',)),
  'scaffold': Entry(scaffold.label_rules, scaffold.scaffold),
  'mt_fedavg': Entry(
    mt_fedavg.label_rules,
    mt_fedavg.mt_fedavg,
    depths=('task_layers',),
    equals=lambda _, federation: mt_fedavg.equals(federation),
  ),
  'fedper': Entry(fedper.label_rules, depths=('personal_layers',)),
  'fedrep': Entry(
    fedrep.label_rules,
    fedrep.fedrep,
    depths=('personal_layers',),
    own=('head_epochs',),
    equals=_simpler('is fedbabu without fine-tuning', 'fedrep.head_epochs'),
  ),
  'fedbabu': Entry(
    fedbabu.label_rules,
    fedbabu.fedbabu,
    depths=('personal_layers',),
    own=('finetune_epochs', 'finetune_head_only'),
    equals=_simpler(
      'is fedper with heads that are never trained', 'finetune_epochs'
    ),
  ),
  'lg_fedavg': Entry(lg_fedavg.label_rules, depths=('common_layers',)),
  'ditto': Entry(
    ditto.label_rules,
    ditto.ditto,
    own=('lam', 'personal_epochs'),
    equals=_simpler('predicts as isolated training', 'ditto.lam'),
  ),
  'pfedme': Entry(
    pfedme.label_rules,
    pfedme.pfedme,
    own=('lam', 'inner_steps', 'personal_learning_rate', 'beta'),
  ),
  'apfl': Entry(
    apfl.label_rules,
    apfl.apfl,
    own=('alpha', 'adapt'),
    equals=lambda own, _: apfl.equals(own['alpha'], own['adapt']),
  ),
  'mr_mtl': Entry(
    mr_mtl.label_rules,
    mr_mtl.mr_mtl,
    own=('lam',),
    equals=_simpler('is isolated training', 'mr_mtl.lam'),
  ),
  'soft_sharing': Entry(
    soft_sharing.label_rules,
    soft_sharing.soft_sharing,
    own=('lam',),
    equals=_simpler('is centralized_separate', 'soft_sharing.lam'),
  ),
  'hard_sharing': Entry(
    hard_sharing.label_rules,
    depths=('task_layers', 'personal_layers'),
  ),
  'ifca': Entry(
    ifca.label_rules,
    ifca.ifca,
    depths=('shared_layers',),
    own=('clusters',),
    equals=_simpler('is fedavg', 'ifca.clusters', 1),
    owners=lambda own: {clusters.CLUSTER: own['clusters']},
  ),
  'cfl': Entry(
    cfl.label_rules,
    cfl.cfl,
    depths=('shared_layers',),
    own=('eps1', 'eps2', 'gamma', 'max_clusters'),
    equals=lambda own, _: cfl.equals(own),
    owners=lambda own: {clusters.CLUSTER: own['max_clusters']},
  ),
}
