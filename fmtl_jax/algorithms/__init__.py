"""Algorithms by name: a label rule, and what the clients and the server do.

Most are federated averaging under a label rule of their own.

Where an algorithm is not what its paper has, its file says so in a paragraph
`Deviations`, and so does its entry in the table. Titles, years and links of
references were compared with public lists; numbers that come from the text of a
paper that was not at hand are marked `(unchecked)`.
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
from fmtl_jax.round_settings import RoundSettings as RoundSettings


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
    deviations: Where its defaults, or what it does, are not those of its paper,
      as the paragraph `Deviations` of its file says it; '' for nowhere.
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
  deviations: str = ''

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


_PLAIN_MEANS = (
  "Means are weighted by examples by default; the paper's are plain "
  '(`uniform`).'
)
_ADAPTIVE = (
  f'{_PLAIN_MEANS} Server learning rates are starting points, which the paper '
  'tunes for every data set.'
)

ALGORITHMS: dict[str, Entry] = {
  'multi_task_fl': Entry(
    multi_task_fl.label_rules,
    depths=('task_layers', 'personal_layers'),
    deviations='Weights are divided by their sum by default; equations 1 and 2 '
    'divide by T K N and K N (`paper`).',
  ),
  'separate_fl': Entry(separate_fl.label_rules),
  'isolated': Entry(isolated.label_rules),
  'fedavg': Entry(fedavg.label_rules),
  'fedavg_finetune': Entry(
    fedavg_finetune.label_rules,
    fedavg_finetune.fedavg_finetune,
    own=('finetune_epochs', 'finetune_learning_rate'),
    equals=_simpler('is fedavg', 'finetune_epochs'),
  ),
  'fedsgd': Entry(fedsgd.label_rules, fedsgd.fedsgd),
  'fedavgm': Entry(
    fedavgm.label_rules,
    fedavgm.fedavgm,
    own=('server_momentum',),
    deviations="Nesterov's form of the momentum is left out.",
    equals=_simpler('is fedavg', 'fedavgm.server_momentum'),
  ),
  'fedadagrad': Entry(
    adaptive.label_rules,
    adaptive.fedadagrad,
    own=('server_learning_rate', 'beta1', 'tau'),
    deviations=_ADAPTIVE,
  ),
  'fedadam': Entry(
    adaptive.label_rules,
    adaptive.fedadam,
    own=('server_learning_rate', 'beta1', 'beta2', 'tau'),
    deviations=_ADAPTIVE,
  ),
  'fedyogi': Entry(
    adaptive.label_rules,
    adaptive.fedyogi,
    own=('server_learning_rate', 'beta1', 'beta2', 'tau'),
    deviations=_ADAPTIVE,
  ),
  'per_fedavg': Entry(
    per_fedavg.label_rules,
    per_fedavg.per_fedavg,
    own=('alpha', 'order', 'delta', 'finetune_epochs'),
    equals=_simpler('is fedavg', 'per_fedavg.alpha'),
    deviations=f'{_PLAIN_MEANS} The batches of a step may share examples. A '
    'client adapts by five epochs by default; in the paper it takes one step.',
  ),
  'reptile': Entry(
    reptile.label_rules,
    reptile.reptile,
    own=('server_rate', 'finetune_epochs', 'finetune_learning_rate'),
    equals=_simpler('is fedavg_finetune', 'reptile.server_rate', 1),
    deviations=f'{_PLAIN_MEANS} The server rate is constant; in the first '
    'paper it falls from 1 to 0.',
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
    deviations=_PLAIN_MEANS,
  ),
  'mtfl': Entry(
    mtfl.label_rules,
    leaf_rules=mtfl.leaf_rules,
    equals=lambda own, federation: mtfl.equals(own['private'], federation),
    deviations="FedAvg-Adam, which averages clients' moments, is left out.",
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
    deviations=f'{_PLAIN_MEANS} Epochs are counted where the paper counts '
    'steps.',
  ),
  'fedbabu': Entry(
    fedbabu.label_rules,
    fedbabu.fedbabu,
    depths=('personal_layers',),
    own=('finetune_epochs', 'finetune_learning_rate', 'finetune_head_only'),
    equals=_simpler(
      'is fedper with heads that are never trained', 'finetune_epochs'
    ),
  ),
  'lg_fedavg': Entry(
    lg_fedavg.label_rules,
    depths=('common_layers',),
    deviations='The optional auxiliary losses are left out, and so is the '
    'start from a FedAvg model.',
  ),
  'ditto': Entry(
    ditto.label_rules,
    ditto.ditto,
    own=('lam', 'personal_epochs'),
    equals=_simpler(
      'predicts as isolated training from the global model', 'ditto.lam'
    ),
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
    deviations=f'{_PLAIN_MEANS} There is one start; the paper takes several.',
  ),
  'cfl': Entry(
    cfl.label_rules,
    cfl.cfl,
    depths=('shared_layers',),
    own=('eps1', 'eps2', 'gamma', 'max_clusters'),
    equals=lambda own, _: cfl.equals(own),
    owners=lambda own: {clusters.CLUSTER: own['max_clusters']},
    deviations=f'{_PLAIN_MEANS} gamma is 0 by default, which switches the last '
    'criterion off. There are at most max_clusters clusters. Updates are not '
    'permuted.',
  ),
}
