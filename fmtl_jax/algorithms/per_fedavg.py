"""Per-FedAvg: a model that is good after one gradient step of each client.

Clients minimize F_m(w) = f_m(w - alpha grad f_m(w)) instead of their loss f_m.
A local step with the batches D, D' and D'' is

  u = w - alpha grad f_m(w; D),
  w <- w - beta (I - alpha hess f_m(w; D'')) grad f_m(u; D'),

with beta the learning rate of local training, and with its momentum and weight
decay if it has them. The product of the Hessian with v = grad f_m(u; D') is

  first         left out (FO-MAML),
  hessian_free  [grad f_m(w + delta v; D'') - grad f_m(w - delta v; D'')] /
                (2 delta) (HF-MAML),
  exact         the derivative of the gradient in the direction v.

The three batches come from three independent orders of the client's examples,
new in each epoch, so that an epoch has as many steps as one of FedAvg and even
a small client has all three. D' is the batch of
FedAvg: with alpha = 0 it is FedAvg on these. With all examples at once, D = D'
= D'' and steps follow the gradient of F_m. Metrics of a round are those of u on
D'. Local training covers all layers of a client's view, those it owns too.
Losses are meant to be smooth, as in the paper: where a gradient jumps, as with
rectifiers, HF-MAML takes jumps times alpha / (2 delta), and a small delta makes
it unstable.

Before it predicts, a client takes plain gradient steps at rate alpha on batches
of its own examples, for some epochs; one step is one epoch with all examples at
once.

Deviations: Means are weighted by examples by default; the paper's are plain
(`uniform`). The batches of a step may share examples. A client adapts by five
epochs by default; in the paper it takes one step.

References:
  Fallah, Mokhtari, Ozdaglar (2020), Personalized federated learning: a
  meta-learning approach, https://arxiv.org/abs/2002.07948, Algorithm 1 and
  section 5 (unchecked).
"""

import jax

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import finetuning
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings

label_rules = fedavg.label_rules

FIRST = 'first'
HESSIAN_FREE = 'hessian_free'
EXACT = 'exact'
ORDERS = (FIRST, HESSIAN_FREE, EXACT)


def meta_gradient(
  alpha: float | jax.Array, order: str, delta: float | jax.Array
) -> training.GradientFn:
  """The gradient of F_m, on the batches D', D and, but for `first`, D''."""

  def gradient(grad_fn, params, batches):
    add = lambda scale, direction: jax.tree.map(
      lambda w, d: (w + scale * d).astype(w.dtype), params, direction
    )
    inner, _ = grad_fn(params, batches[1])
    outer, sums = grad_fn(add(-alpha, inner), batches[0])
    if order == FIRST:
      return outer, sums
    at = lambda params: grad_fn(params, batches[2])[0]
    if order == EXACT:
      _, product = jax.jvp(at, (params,), (outer,))
    else:
      product = jax.tree.map(
        lambda ahead, behind: (ahead - behind) / (2 * delta),
        at(add(delta, outer)),
        at(add(-delta, outer)),
      )
    return jax.tree.map(lambda v, h: v - alpha * h, outer, product), sums

  return gradient


def per_fedavg(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  alpha: float | jax.Array = 0.01,
  order: str = HESSIAN_FREE,
  delta: float | jax.Array = 0.01,
  finetune_epochs: int | jax.Array = 5,
) -> algorithm_lib.Algorithm:
  """Builds Per-FedAvg, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of the steps on F_m.
    settings: Settings of the round.
    alpha: Learning rate of the step inside F_m and of fine-tuning; may be
      traced.
    order: `first`, `hessian_free` or `exact`.
    delta: Of `hessian_free`; may be traced. Rounding errors and jumps of the
      gradient are divided by it.
    finetune_epochs: Epochs of fine-tuning before a client predicts.

  Raises:
    ValueError: If one of the settings is out of range.
  """
  local.refuse_privacy('per_fedavg')
  SPEC.check(
    alpha=alpha, order=order, delta=delta, finetune_epochs=finetune_epochs
  )
  client_update = training.local_sgd(
    federation,
    local,
    gradient_fn=meta_gradient(alpha, order, delta),
    draws=2 if order == FIRST else 3,
  )
  rounds = federated_averaging.federated_averaging(
    federation, client_update, settings
  )
  adapt = local_optimizers.LocalSgd(
    learning_rate=alpha, batch_size=local.batch_size, epochs=finetune_epochs
  )
  return finetuning.finetuned(rounds, federation, adapt, settings)


SPEC = specs.Spec(
  name='per_fedavg',
  label='Per-FedAvg',
  doc=__doc__,
  family=specs.PERSONALIZED,
  year=2020,
  build=per_fedavg,
  label_rules=label_rules,
  settings={
    'alpha': specs.Setting(
      help='Learning rate of the step inside, and of fine-tuning.',
      least=0,
      examples=(0.1, 0.3),
    ),
    'order': specs.Setting(
      help='How the product with the Hessian is computed, or left out (first).',
      choices=ORDERS,
      examples=(FIRST, EXACT),
    ),
    'delta': specs.Setting(
      help='Step of the difference of gradients in hessian_free.',
      least=0,
      above=True,
      cure="take `order`='exact' for what it tends to",
      examples=(0.01, 0.5),
    ),
    'finetune_epochs': finetuning.EPOCHS,
  },
  adapt=lambda own, unused_rate: specs.Way(True, own['alpha']),
  degenerate=(specs.Degenerate('is fedavg', {'alpha': 0}),),
)
