"""Layers of recurrent networks, `[B, length, features]`."""

from flax import nnx
import jax
import jax.numpy as jnp


class Embedding(nnx.Module):
  """Rows of a table, `[B, length] -> [B, length, features]`, as a product."""

  def __init__(self, tokens, features, rngs):
    init = nnx.initializers.normal(1.0)
    self.kernel = nnx.Param(init(rngs.params(), (tokens, features)))

  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.kernel[...]
    return jax.nn.one_hot(x, kernel.shape[0], dtype=kernel.dtype) @ kernel


@jax.custom_vjp
def recur(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
  """The recurrence of an LSTM that starts at zero.

  Its gradient with respect to the kernel is one product over all places, where
  that of a loop would add a product for each.

  Args:
    inputs: `[length, B, 4 features]`, what the gates (input, forget, cell,
      output) get beside the state.
    kernel: `[features, 4 features]`.

  Returns:
    `[length, B, features]`.

  References:
    Hochreiter, Schmidhuber (1997), Long short-term memory,
    https://doi.org/10.1162/neco.1997.9.8.1735; with the forget gate of Gers,
    Schmidhuber, Cummins (2000).
  """
  return _recur_forward(inputs, kernel)[0]


def _recur_forward(inputs, kernel):
  def step(state, x):
    hidden, cell = state
    gates = jnp.split(x + hidden @ kernel, 4, axis=-1)
    i, f, o = (jax.nn.sigmoid(gates[number]) for number in (0, 1, 3))
    g = jnp.tanh(gates[2])
    new_cell = f * cell + i * g
    new_hidden = o * jnp.tanh(new_cell)
    return (new_hidden, new_cell), (hidden, cell, new_hidden, (i, f, g, o))

  zeros = jnp.zeros((inputs.shape[1], kernel.shape[0]), inputs.dtype)
  _, (before, cells, after, gates) = jax.lax.scan(step, (zeros, zeros), inputs)
  return after, (before, cells, gates, kernel)


def _recur_backward(kept, gradients):
  before, cells, gates, kernel = kept

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
    return (of_gates @ kernel.T, of_cell * f), of_gates

  zeros = jnp.zeros_like(before[0])
  _, of_gates = jax.lax.scan(
    step, (zeros, zeros), (gradients, cells, gates), reverse=True
  )
  rows = lambda x: x.reshape(-1, x.shape[-1])
  return of_gates, rows(before).T @ rows(of_gates)


recur.defvjp(_recur_forward, _recur_backward)


class Lstm(nnx.Module):
  """`[B, length, inputs] -> [B, length, features]`."""

  def __init__(self, inputs, features, rngs):
    init = nnx.initializers.lecun_normal()
    shape = (inputs, 4 * features)
    self.kernel = nnx.Param(init(rngs.params(), shape))
    shape = (features, 4 * features)
    self.recurrent = nnx.Param(init(rngs.params(), shape))
    self.bias = nnx.Param(jnp.zeros(4 * features))

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.swapaxes(0, 1) @ self.kernel[...] + self.bias[...]
    return recur(x, self.recurrent[...]).swapaxes(0, 1)


class EachPlace(nnx.Module):
  """A dense layer at each place of a sequence."""

  def __init__(self, inputs, features, rngs):
    init = nnx.initializers.lecun_normal()
    self.kernel = nnx.Param(init(rngs.params(), (inputs, features)))
    self.bias = nnx.Param(jnp.zeros(features))

  def __call__(self, x: jax.Array) -> jax.Array:
    return x @ self.kernel[...] + self.bias[...]
