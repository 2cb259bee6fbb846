#!/usr/bin/env bash
# safetensors 0.8.0, `safetensors.numpy.save` and `save_file`: the values of an
# array that does not lie in C order (a transposed kernel, say) are written in
# the order of memory under the transposed shape. There is no error: what comes
# back has the right shape and type, and other values. 0.7.0 copied such arrays.
# Cure: `np.array(x, order='C')` of all tensors (`np.ascontiguousarray` makes
# `(1,)` of a scalar).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/run.py" <<'EOF'
import numpy as np
import safetensors
from safetensors import numpy as st

kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
back = st.load(st.save({'kernel': kernel.T}))['kernel']
copied = st.load(st.save({'kernel': np.array(kernel.T, order='C')}))['kernel']
print(
  safetensors.__version__,
  back.shape == (3, 2),
  np.array_equal(back, kernel.T),
  np.array_equal(copied, kernel.T),
)
EOF
seen=''
for version in 0.7.0 0.8.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install -q --disable-pip-version-check \
    "numpy==2.2.6" "safetensors==$version"
  seen+=$("$folder/$version/bin/python" "$folder/run.py")$'\n'
done
expected='0.7.0 True True True
0.8.0 True False True
'
printf 'version, same shape, same values, same values of a copy\n%s' "$seen"
[ "$seen" = "$expected" ] || { echo 'CHANGED'; exit 1; }
echo 'as described'
