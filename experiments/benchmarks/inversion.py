"""Reads images out of what clients send, as one who knows all the rest does.

The attacker knows the network, the parameters that clients start from, how they
train and what the digits in a message are; it sees what arrives at the server.

References:
  Zhu et al. (2019), Deep leakage from gradients,
  https://arxiv.org/abs/1906.08935.
  Geiping et al. (2020), Inverting gradients: how easy is it to break privacy in
  federated learning?, https://arxiv.org/abs/2003.14053.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fmtl_jax

SIDE = 8
PIXELS = SIDE**2
CLASSES = 10
HIDDEN = 64
STEPS, RATE = 400, 0.1  # Of the optimization.
VARIATION = 1e-3  # Weight of the total variation of an image.

Tree = Any


class Protection(NamedTuple):
  """A way in which updates are sent.

  Attributes:
    name: Of its row.
    settings: Of rounds.
    clients: Whose updates arrive as one sum.
  """

  name: str
  settings: fmtl_jax.RoundSettings
  clients: int = 1


class Found(NamedTuple):
  """What an attack read of images.

  Attributes:
    images: `[N, 64]`, by the better of both attacks: the one that recognizes
      more images or, of two that are alike in that, has the smaller errors.
    by: Which one that is, `analytic` or `optimized`.
    psnr: `[N]`, in decibels.
    recognized: The share of images of which the reconstruction is more like
      them than like any other digit.
  """

  images: np.ndarray
  by: str
  psnr: np.ndarray
  recognized: float


def network() -> tuple[Callable[..., Tree], Callable[..., jax.Array]]:
  """A dense layer with a smooth activation, and the output."""
  widths = {'hidden': (PIXELS, HIDDEN), 'output': (HIDDEN, CLASSES)}

  def init(key):
    return {
      name: {
        'kernel': jax.random.normal(jax.random.fold_in(key, i), shape)
        / np.sqrt(shape[0]),
        'bias': jnp.zeros(shape[1]),
      }
      for i, (name, shape) in enumerate(widths.items())
    }

  def apply(params, features):
    hidden = features @ params['hidden']['kernel'] + params['hidden']['bias']
    hidden = jax.nn.softplus(hidden)
    return hidden @ params['output']['kernel'] + params['output']['bias']

  return init, apply


def gradient(params: Tree, images: jax.Array, labels: jax.Array) -> Tree:
  """The negative gradient of a mean over images `[B, 64]`, labels `[B]`."""
  apply = network()[1]

  def loss(params):
    outputs = apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(
      outputs, labels
    ).mean()

  return jax.tree.map(jnp.negative, jax.grad(loss)(params))


def updates(
  protection: Protection,
  images: np.ndarray,
  labels: np.ndarray,
  *,
  seed: int = 0,
  learning_rate: float = 0.1,
) -> tuple[Tree, Tree]:
  """What a server gets of clients with one image each, which make one step.

  Args:
    protection: Of their messages.
    images: `[N, 64]`, as many as a whole number of cohorts.
    labels: `[N]` int.
    seed: Of parameters and messages.
    learning_rate: Of the step.

  Returns:
    The parameters that clients start from, and the change of the server's
    parameters by each cohort, `[N / clients, ...]`.
  """
  task = fmtl_jax.Task(
    name='digit', kind=fmtl_jax.tasks.MULTICLASS, num_classes=CLASSES
  )
  count = protection.clients
  settings = dataclasses.replace(protection.settings, clients_per_task=count)
  # Private rounds refuse groups of one: of two who are alike, one is drawn.
  copies = 2 if settings.privacy is not None and count == 1 else 1
  local = fmtl_jax.LocalSgd(learning_rate=learning_rate, batch_size=0)
  of_cohorts = [
    np.tile(np.reshape(x, (-1, count, 1, *x.shape[1:])), (1, copies, 1, 1))
    for x in (images, np.asarray(labels, np.float32)[:, None])
  ]
  first = fmtl_jax.FederatedDataset.from_clients(
    of_cohorts[0][0],
    of_cohorts[1][0],
    np.zeros(copies * count, np.int32),
    [task],
  )
  federation = fmtl_jax.Federation.create(network(), [('.*', 'common')], first)
  algorithm = fmtl_jax.algorithms.build('fedavg', federation, local, settings)
  start = algorithm.init(jax.random.key(seed), first)

  def change(inputs):
    key, features, labels = inputs
    examples = dataclasses.replace(
      first.examples,
      features=features.reshape(first.examples.features.shape),
      labels=labels.reshape(first.examples.labels.shape),
    )
    data = dataclasses.replace(first, examples=examples)
    own = algorithm.init(key, data)
    new, _ = algorithm.round(
      dataclasses.replace(own, params=start.params), data
    )
    return jax.tree.map(jnp.subtract, new.params, start.params)

  keys = jax.random.split(jax.random.key(seed + 1), len(of_cohorts[0]))
  return start.params, jax.jit(lambda x: jax.lax.map(change, x))(
    (keys, *of_cohorts)
  )


def analytic(update: Tree) -> np.ndarray:
  """Divides the kernel's update of the first layer by that of its bias.

  For one image both are its error times the image and times one: the quotient
  is the image, in every unit. Units are weighed by their squared errors, so
  that noise counts least; of several images it is a mean.

  Args:
    update: `[N, ...]`.

  Returns:
    `[N, 64]`, of which each number is between 0 and 1.
  """
  kernel, bias = (
    np.asarray(update['hidden'][name], np.float64)
    for name in ('kernel', 'bias')
  )
  products = (kernel * bias[:, None]).sum(-1)
  squares = np.maximum((bias**2).sum(-1, keepdims=True), 1e-30)
  return np.clip(products / squares, 0, 1)


@functools.partial(jax.jit, static_argnames='steps')
def optimized(
  params: Tree, update: Tree, labels: jax.Array, steps: int = STEPS
) -> jax.Array:
  """Finds images whose update has the direction of that which was seen.

  The loss is 1 minus the cosine, plus the total variation of the images; Adam
  starts from grey ones.

  Args:
    params: That clients start from.
    update: `[N, ...]`, one for each cohort.
    labels: `[N, B]`, of all images of a cohort.
    steps: Of Adam.

  Returns:
    `[N, B, 64]`.
  """

  def one(update, labels):
    seen = _flat(update)
    seen /= jnp.maximum(jnp.linalg.norm(seen), 1e-30)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    def loss(latent):
      images = jax.nn.sigmoid(latent)
      made = _flat(gradient(params, images, labels))
      cosine = made @ seen / jnp.maximum(jnp.linalg.norm(made), 1e-30)
      return 1 - cosine + VARIATION * _total_variation(images)

    def step(carry, _):
      latent, state = carry
      changes, state = optimizer.update(jax.grad(loss)(latent), state)
      return (optax.apply_updates(latent, changes), state), None

    # Not all alike: images with the same label would stay the same.
    shape = (len(labels), PIXELS)
    latent = 0.1 * jax.random.normal(jax.random.key(0), shape)
    carry, _ = jax.lax.scan(
      step, (latent, optimizer.init(latent)), length=steps
    )
    return jax.nn.sigmoid(carry[0])

  return jax.lax.map(lambda x: one(*x), (update, labels), batch_size=20)


def _flat(tree: Tree) -> jax.Array:
  return jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])


def _total_variation(images: jax.Array) -> jax.Array:
  """The mean absolute difference of neighbours, summed over images."""
  square = images.reshape(-1, SIDE, SIDE)
  along = lambda axis: jnp.abs(jnp.diff(square, axis=axis)).mean((1, 2)).sum()
  return along(1) + along(2)


def psnr(found: np.ndarray, true: np.ndarray) -> np.ndarray:
  """The peak signal-to-noise ratio of images `[N, 64]`, at most 60 decibels."""
  error = ((found - true) ** 2).mean(-1)
  return -10 * np.log10(np.maximum(error, 1e-6))


def recognized(
  found: np.ndarray, true: np.ndarray, everything: np.ndarray
) -> float:
  """The share of images that are most like what was found, of all digits.

  Args:
    found: `[N, 64]`.
    true: `[N, 64]`.
    everything: `[M, 64]`, which has the true ones.

  Returns:
    The share whose correlation with the true image is the largest; by chance it
    is 1 / M.
  """
  found, true, everything = (
    _standardized(x) for x in (found, true, everything)
  )
  own = (found * true).sum(-1)
  best = (found @ everything.T).max(-1)
  return float(np.mean((own > best - 1e-6) & (own > 0)))


def _standardized(images: np.ndarray) -> np.ndarray:
  centred = images - images.mean(-1, keepdims=True)
  norms = np.linalg.norm(centred, axis=-1, keepdims=True)
  return centred / np.maximum(norms, 1e-12)


def attack(
  protection: Protection,
  images: np.ndarray,
  labels: np.ndarray,
  everything: np.ndarray,
  *,
  seed: int = 0,
  steps: int = STEPS,
) -> Found:
  """Attacks messages with a protection in both ways, and keeps the better.

  Args:
    protection: Of the messages.
    images: `[N, 64]`.
    labels: `[N]`.
    everything: `[M, 64]`, of which the true one is to be found.
    seed: Of parameters and messages.
    steps: Of the optimization.
  """
  params, update = updates(protection, images, labels, seed=seed)
  of_cohorts = np.asarray(labels).reshape(-1, protection.clients)
  candidates = {
    'analytic': np.repeat(analytic(update), protection.clients, axis=0),
    'optimized': np.asarray(
      optimized(params, update, of_cohorts, steps)
    ).reshape(-1, PIXELS),
  }
  found = [
    Found(
      images_found,
      by,
      psnr(images_found, images),
      recognized(images_found, images, everything),
    )
    for by, images_found in candidates.items()
  ]
  return max(found, key=lambda x: (x.recognized, x.psnr.mean()))


def chance(images: np.ndarray, everything: np.ndarray) -> np.ndarray:
  """The ratios `[N]` of one who always answers the mean of all digits."""
  return psnr(np.broadcast_to(everything.mean(0), images.shape), images)
