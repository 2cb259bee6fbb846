"""Recurrent layers on token sequences: embeddings, LSTMs, GRUs.

The products of inputs stand before the loop over places, where they are one
product; inside of it there is that of the state alone, and biases, for which
all places would be read and written once more. The gradient of a kernel is one
product over all places as they lie, where that of a loop would add one for
each, and that of products of `[B, length, n]` turns what it multiplies. Clients
with kernels of their own (`vmap`) make them batched products.
"""

from collections.abc import Callable
import math

from flax import nnx
import jax
import jax.numpy as jnp


def at_each_place(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`[..., n] @ [n, m]` as one product of matrices, like its gradients."""
  rows = x.reshape(-1, x.shape[-1]) @ kernel
  return rows.reshape(*x.shape[:-1], -1)


class Embedding(nnx.Module):
  """Rows of a table, `[B, length] -> [B, length, features]`, as a product.

  A product has no scatter in its gradient, and clients with tables of their own
  batch it. Tokens out of range are zeros.
  """

  def __init__(
    self, tokens: int, features: int, rngs: nnx.Rngs, scale: float = 1.0
  ):
    init = nnx.initializers.normal(scale)
    self.kernel = nnx.Param(init(rngs.params(), (tokens, features)))

  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.kernel[...]
    rows = jax.nn.one_hot(x, kernel.shape[0], dtype=kernel.dtype)
    return at_each_place(rows, kernel)


@jax.custom_vjp
def recur(inputs: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """The recurrence of an LSTM that starts at zero.

  Args:
    inputs: `[length, B, 4 features]`, what the gates (input, forget, cell,
      output) get beside the state and the bias.
    kernel: `[features, 4 features]`.
    bias: `[4 features]`.

  Returns:
    `[length, B, features]`.

  References:
    Hochreiter, Schmidhuber (1997), Long short-term memory,
    https://doi.org/10.1162/neco.1997.9.8.1735; with the forget gate of Gers,
    Schmidhuber, Cummins (2000).
  """
  return _lstm_forward(inputs, kernel, bias)[0]


def _lstm_cell(x, hidden, cell, kernel, bias):
  """One place: the new state, and the gates."""
  gates = jnp.split(x + bias + hidden @ kernel, 4, axis=-1)
  i, f, o = (jax.nn.sigmoid(gates[number]) for number in (0, 1, 3))
  g = jnp.tanh(gates[2])
  new_cell = f * cell + i * g
  return o * jnp.tanh(new_cell), new_cell, (i, f, g, o)


def _lstm_forward(inputs, kernel, bias):
  def step(state, x):
    hidden, cell = state
    new_hidden, new_cell, gates = _lstm_cell(x, hidden, cell, kernel, bias)
    return (new_hidden, new_cell), (hidden, cell, new_hidden, gates)

  zeros = jnp.zeros((inputs.shape[1], kernel.shape[0]), inputs.dtype)
  _, (before, cells, after, gates) = jax.lax.scan(step, (zeros, zeros), inputs)
  return after, (before, cells, gates, kernel)


def _lstm_backward(kept, gradients):
  before, cells, gates, kernel = kept
  turned = kernel.T  # Once, not in each product: those of few rows are faster.

  def step(state, at):
    of_hidden, of_cell = state
    gradient, cell, (i, f, g, o) = at
    of_hidden += gradient
    curved = jnp.tanh(f * cell + i * g)
    of_cell += of_hidden * o * (1 - jnp.square(curved))
    of_gates = jnp.concatenate(
      [
        of_cell * g * i * (1 - i),
        of_cell * cell * f * (1 - f),
        of_cell * i * (1 - jnp.square(g)),
        of_hidden * curved * o * (1 - o),
      ],
      axis=-1,
    )
    return (of_gates @ turned, of_cell * f), of_gates

  zeros = jnp.zeros_like(before[0])
  _, of_gates = jax.lax.scan(
    step, (zeros, zeros), (gradients, cells, gates), reverse=True
  )
  return of_gates, _over_places(before, of_gates), of_gates.sum((0, 1))


def _over_places(x, y):
  """The product of `[length, B, n]` and `[length, B, m]`, `[n, m]`."""
  rows = lambda z: z.reshape(-1, z.shape[-1])
  return rows(x).T @ rows(y)


recur.defvjp(_lstm_forward, _lstm_backward)


@jax.custom_vjp
def recur_gated(
  inputs: jax.Array,
  kernel: jax.Array,
  bias: jax.Array,
  candidate_bias: jax.Array,
) -> jax.Array:
  """The recurrence of a GRU that starts at zero.

  With the parts of reset, update and candidate in `inputs + bias` and in
  `h @ kernel`, and b the bias of the candidate's state,

    r = sigmoid(x_r + h W_r),   z = sigmoid(x_z + h W_z),
    n = tanh(x_n + r (h W_n + b)),   h' = (1 - z) n + z h.

  Args:
    inputs: `[length, B, 3 features]`: reset, update, candidate.
    kernel: `[features, 3 features]`.
    bias: `[3 features]`.
    candidate_bias: `[features]`, of the candidate's state.

  Returns:
    `[length, B, features]`.

  References:
    Cho et al. (2014), https://arxiv.org/abs/1406.1078, with the reset gate
    behind the product, as in the libraries.
  """
  return _gru_forward(inputs, kernel, bias, candidate_bias)[0]


def _gru_cell(x, hidden, kernel, bias, candidate_bias):
  """One place: the new state; gates, candidate and what the reset gates."""
  x_r, x_z, x_n = jnp.split(x + bias, 3, axis=-1)
  h_r, h_z, h_n = jnp.split(hidden @ kernel, 3, axis=-1)
  r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
  h_n = h_n + candidate_bias
  n = jnp.tanh(x_n + r * h_n)
  return (1 - z) * n + z * hidden, (r, z, n, h_n)


def _gru_forward(inputs, kernel, bias, candidate_bias):
  def step(hidden, x):
    new, gates = _gru_cell(x, hidden, kernel, bias, candidate_bias)
    return new, (hidden, new, gates)

  zeros = jnp.zeros((inputs.shape[1], kernel.shape[0]), inputs.dtype)
  _, (before, after, gates) = jax.lax.scan(step, zeros, inputs)
  return after, (before, gates, kernel)


def _gru_backward(kept, gradients):
  before, gates, kernel = kept
  turned = kernel.T  # As in `_lstm_backward`.

  def step(of_hidden, at):
    gradient, hidden, (r, z, n, h_n) = at
    of_hidden += gradient
    of_n = of_hidden * (1 - z) * (1 - jnp.square(n))
    of_r = of_n * h_n * r * (1 - r)
    of_z = of_hidden * (hidden - n) * z * (1 - z)
    of_state = jnp.concatenate([of_r, of_z, of_n * r], axis=-1)
    return of_hidden * z + of_state @ turned, (of_state, of_n)

  _, (of_state, of_n) = jax.lax.scan(
    step, jnp.zeros_like(before[0]), (gradients, before, gates), reverse=True
  )
  features = kernel.shape[0]
  of_inputs = jnp.concatenate([of_state[..., : 2 * features], of_n], axis=-1)
  biases = of_inputs.sum((0, 1)), of_state[..., 2 * features :].sum((0, 1))
  return of_inputs, _over_places(before, of_state), *biases


recur_gated.defvjp(_gru_forward, _gru_backward)


def _uniform(features: int) -> Callable[..., jax.Array]:
  """Uniform up to `1 / sqrt(features)`, the usual draw of recurrent layers."""
  bound = 1 / math.sqrt(features)
  return lambda key, shape: jax.random.uniform(
    key, shape, minval=-bound, maxval=bound
  )


class Lstm(nnx.Module):
  """`[B, length, inputs] -> [B, length, features]`.

  Gates are in the order input, forget, cell, output.
  """

  def __init__(self, inputs: int, features: int, rngs: nnx.Rngs):
    init = _uniform(features)
    self.kernel = nnx.Param(init(rngs.params(), (inputs, 4 * features)))
    self.recurrent = nnx.Param(init(rngs.params(), (features, 4 * features)))
    # Cells keep what they have at first: the forget gates begin near one.
    self.bias = nnx.Param(
      jnp.zeros(4 * features).at[features : 2 * features].set(1.0)
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    x = at_each_place(x.swapaxes(0, 1), self.kernel[...])
    return recur(x, self.recurrent[...], self.bias[...]).swapaxes(0, 1)

  def start(self, batch: int) -> tuple[jax.Array, jax.Array]:
    """The state before the first place: hidden and cell, `[B, features]`."""
    recurrent = self.recurrent[...]
    zeros = jnp.zeros((batch, recurrent.shape[0]), recurrent.dtype)
    return zeros, zeros

  def step(
    self, state: tuple[jax.Array, jax.Array], x: jax.Array
  ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """One place, `[B, inputs] -> [B, features]`: the state and the output."""
    recurrent, bias = self.recurrent[...], self.bias[...]
    x = x @ self.kernel[...]
    hidden, cell, _ = _lstm_cell(x, *state, recurrent, bias)
    return (hidden, cell), hidden


class Gru(nnx.Module):
  """`[B, length, inputs] -> [B, length, features]`.

  Gates are in the order reset, update, candidate, see `recur_gated`.
  """

  def __init__(self, inputs: int, features: int, rngs: nnx.Rngs):
    init = _uniform(features)
    self.kernel = nnx.Param(init(rngs.params(), (inputs, 3 * features)))
    self.recurrent = nnx.Param(init(rngs.params(), (features, 3 * features)))
    self.bias = nnx.Param(jnp.zeros(3 * features))
    self.candidate_bias = nnx.Param(jnp.zeros(features))

  def __call__(self, x: jax.Array) -> jax.Array:
    x = at_each_place(x.swapaxes(0, 1), self.kernel[...])
    return recur_gated(x, *self._of_state()).swapaxes(0, 1)

  def _of_state(self):
    return self.recurrent[...], self.bias[...], self.candidate_bias[...]

  def start(self, batch: int) -> jax.Array:
    """The state before the first place, `[B, features]`."""
    recurrent = self.recurrent[...]
    return jnp.zeros((batch, recurrent.shape[0]), recurrent.dtype)

  def step(self, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One place, `[B, inputs] -> [B, features]`: the state and the output."""
    hidden, _ = _gru_cell(x @ self.kernel[...], state, *self._of_state())
    return hidden, hidden


class EachPlace(nnx.Module):
  """A dense layer at each place of a sequence, `[..., inputs]`."""

  def __init__(self, inputs: int, features: int, rngs: nnx.Rngs):
    init = nnx.initializers.lecun_normal()
    self.kernel = nnx.Param(init(rngs.params(), (inputs, features)))
    self.bias = nnx.Param(jnp.zeros(features))

  def __call__(self, x: jax.Array) -> jax.Array:
    return at_each_place(x, self.kernel[...]) + self.bias[...]
