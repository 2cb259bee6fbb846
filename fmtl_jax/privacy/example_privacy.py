"""Example-level privacy inside a client: settings of DP-SGD.

What is protected is one training example of one client, a silo such as a
hospital or a person. Two federations are neighbours if one example of a silo
counts nothing in one of them (zero-out): how many examples a silo has, and how
many of each label, is public, and rates, steps and divisors are made of these
numbers alone.

In every local step each example joins with rate B / n by itself, at most `cap`
of them; each one's gradient, over all layers that the client trains, is
clipped to C; N(0, (z C)^2) is added to their sum; the divisor is the expected
number of examples. The layers that a client keeps are noised as well: they are
trained on the same examples and are a part of every later gradient of the
layers that leave it. So whatever a silo sends, and its own model, have the
epsilon of the silo; the others are not trusted with it, nor is the server.

References:
  Abadi et al. (2016), Deep learning with differential privacy,
  https://arxiv.org/abs/1607.00133, Algorithm 1, whose batches are Poisson
  samples, too.
  Liu, Hu, Wu, Smith (2022), On privacy and personalization in cross-silo
  federated learning, https://arxiv.org/abs/2206.07902: privacy of the examples
  of each silo.
"""

import dataclasses
import math
from typing import Any

RELATION = (
  'one training example of one silo counts nothing (zero-out); the numbers of '
  'examples and labels of silos are public'
)
ASSUMPTION = (
  'every silo takes part in every round; training losses, metrics and the '
  'search for settings are not covered'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExamplePrivacy:
  """DP-SGD of local training, see `clients.LocalSgd`.

  Attributes:
    clipping_norm: C, of the gradient of an example over all layers that its
      client trains; infinity for none.
    noise_multiplier: z, the standard deviation of the noise of a sum of clipped
      gradients in units of C; 0 for none. May be traced.
    cap: The most examples of a batch, of which the others are dropped at
      random; None for the expected number plus five standard deviations.
    delta: Of (epsilon, delta).
    seed: Folded into the key of sampling and noise. None takes a key of the
      operating system, as a model that is released needs, which the state has
      with `RoundSettings(noise_key=True)`; runs with a number can be repeated,
      and protect nobody.
  """

  clipping_norm: float = 1.0
  noise_multiplier: Any = 0.0
  cap: int | None = None
  delta: float = 1e-5
  seed: int | None = 0

  def __post_init__(self):
    if not self.clipping_norm > 0:
      raise ValueError(
        f'Expected `clipping_norm` > 0, got {self.clipping_norm}.'
      )
    z = self.noise_multiplier
    if isinstance(z, (int, float)) and not 0 <= z < math.inf:
      raise ValueError(
        f'Expected `noise_multiplier` to be finite and >= 0, got {z}.'
      )
    if self.has_noise and math.isinf(self.clipping_norm):
      raise ValueError(
        'Expected a finite `clipping_norm` with `noise_multiplier` > 0, got '
        'infinity.'
      )
    if self.cap is not None and self.cap < 1:
      raise ValueError(f'Expected `cap` >= 1, got {self.cap}.')
    if not 0 < self.delta < 1:
      raise ValueError(f'Expected `delta` between 0 and 1, got {self.delta}.')

  @property
  def has_noise(self) -> bool:
    """Whether there is noise, or may be."""
    z = self.noise_multiplier
    return not (isinstance(z, (int, float)) and z == 0)

  def most(self, batch_size: int) -> int:
    """The most examples of a batch of so many expected ones."""
    if self.cap is not None:
      return self.cap
    return math.ceil(batch_size + 5 * math.sqrt(batch_size))
