"""CoCoA: MOCHA whose server waits until every client has done all its steps.

The objective, its duals and the learned relationship are those of MOCHA (see
there). What differs is what a slow client does: MOCHA lets it take as many
steps as it has time for; here each takes the same share of its examples, a
whole epoch by default, so that all solve their problems equally well, and a
round lasts as long as the slowest one needs. Of the settings of participation,
partial work, late clients and the deadline do not count: with a clock, their
price is time. Clients that drop out do so here, too.

With `one_model` all clients have the same one, as in the paper of CoCoA: Sigma
is 1/m everywhere, and is not learned. W = w 1^T then has m ||w||^2 / 2 for
tr(W Sigma^-1 W^T) / 2, on the one direction where Sigma is not zero.

Deviations: Otherwise this is the scheme of rounds of CoCoA for the objective of
MOCHA, as in the comparison of that paper.

References:
  Jaggi, Smith, Takac, Terhorst, Krishnan, Hofmann, Jordan (2014),
  Communication-efficient distributed dual coordinate ascent,
  https://arxiv.org/abs/1409.1458 (unchecked against its text).
  Smith, Chiang, Sanjabi, Talwalkar (2017), Federated multi-task learning,
  https://arxiv.org/abs/1705.10467, section 5 (unchecked).
"""

import dataclasses

import jax

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import mocha
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import dual_losses
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import relationships

label_rules = mocha.label_rules


def cocoa(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  lam: float | jax.Array = 0.001,
  loss: str = dual_losses.HINGE,
  share: float | jax.Array = 1.0,
  every: int = 100,
  per_class: bool = False,
  gap: bool = False,
  one_model: bool = False,
) -> algorithm_lib.Algorithm:
  """Builds CoCoA, on one dense layer of the type `client`.

  Args:
    federation: Network, layer types and tasks.
    local: Of local training, the number of epochs counts alone.
    settings: Settings of the round.
    lam: See `mocha.mocha`.
    loss: See `mocha.mocha`.
    share: See `mocha.mocha`.
    every: See `mocha.mocha`.
    per_class: See `mocha.mocha`.
    gap: See `mocha.mocha`.
    one_model: Whether all clients have one model; `every` does not count then.

  Raises:
    ValueError: See `mocha.mocha`.
  """
  local.refuse_privacy('cocoa')
  own = mocha.Own(lam, loss, share, every, per_class, gap)
  SPEC.check(**own._asdict(), one_model=one_model)
  uneven = settings.participation
  if uneven is not None:
    clock = uneven.clock
    if clock is not None:
      clock = dataclasses.replace(clock, deadline=0.0)
    uneven = dataclasses.replace(uneven, partial=0.0, late=0.0, clock=clock)
  settings = dataclasses.replace(settings, participation=uneven)
  first = relationships.unrelated
  if one_model:
    own, first = own._replace(every=0), relationships.one
  return mocha.build(federation, local, settings, SPEC.name, own, first)


SPEC = specs.Spec(
  name='cocoa',
  label='CoCoA',
  doc=__doc__,
  family=specs.PERSONALIZED,
  year=2014,
  build=cocoa,
  label_rules=label_rules,
  network=mocha.SPEC.network,
  settings={
    **mocha.SETTINGS,
    'one_model': specs.Setting(
      help='Whether all clients have one model; nothing is learned then.',
      choices=(False, True),
      examples=(False, True),
    ),
  },
  degenerate=(specs.Degenerate('relates no clients', {'every': 0}),),
)
