#!/usr/bin/env bash
# jax 0.10.2: jax_default_matmul_precision may name an algorithm, as in
# 'TF32_TF32_F32_X3', three passes of TF32 on a GPU, nearly as exact as float32.
# Matrix products get it. Convolutions get DEFAULT without a word, one pass of
# TF32 there: a network of both is as exact as its least exact layer. 'highest'
# and 'high' reach both. On CPU the same setting raises an error at the first
# product, and none at a convolution.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'jax==0.10.2' 'jaxlib==0.10.2'
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

rows, kernel = jnp.ones((1, 8, 3)), jnp.ones((3, 3, 4))
dot = jax.jit(lambda x: jnp.dot(x, x.T))
convolve = jax.jit(
  lambda x, w: jax.lax.conv_general_dilated(
    x, w, (1,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC')
  )
)


def precision(function, *arguments):
  """What the program for an NVIDIA GPU says of its product."""
  text = (
    function.trace(*arguments).lower(lowering_platforms=('cuda',)).as_text()
  )
  (line,) = [x for x in text.splitlines() if 'dot_general' in x or 'conv' in x]
  for name in ('num_primitive_operations = 3', 'HIGHEST', 'HIGH', 'DEFAULT'):
    if name in line:
      return name
  return line


for name in ('TF32_TF32_F32_X3', 'highest', 'high'):
  with jax.default_matmul_precision(name):
    found = precision(dot, rows[0]), precision(convolve, rows, kernel)
  print(f'{name}: products {found[0]}, convolutions {found[1]}')
  expected = {
    'TF32_TF32_F32_X3': ('num_primitive_operations = 3', 'DEFAULT'),
    'highest': ('HIGHEST', 'HIGHEST'),
    'high': ('HIGH', 'HIGH'),
  }[name]
  assert found == expected, found
with jax.default_matmul_precision('TF32_TF32_F32_X3'):
  convolve(rows, kernel)
  try:
    dot(rows[0])
  except ValueError as error:
    print(f'on CPU: {error}')
  else:
    raise AssertionError('A product on CPU raises no error any more.')
PYTHON
