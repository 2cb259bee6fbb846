#!/usr/bin/env bash
# Flower 1.42.0, a SuperNode that was killed (power, out of memory) and is
# started again at once. Without authentication it is a new node and connects.
# With a registered key the SuperLink refuses it, since that node is online for
# it until two heartbeats of 30 s are missed; the SuperNode does not try again,
# whose --max-retries has no limit by default, but ends with "Failed to activate
# SuperNode", the words for a key that nobody has registered. Cure: start it in
# a loop, as `Restart=on-failure` of systemd does; after a minute it is taken.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check "flwr==1.42.0"
export PATH="$folder/venv/bin:$PATH" FLWR_HOME="$folder/home"
export FLWR_TELEMETRY_ENABLED=0
mkdir home
python - <<'EOF'
import datetime, ipaddress
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec

server, key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
now = datetime.datetime.now(datetime.timezone.utc)
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, 'it')])
signed = x509.CertificateBuilder(
  name, name, server.public_key(), x509.random_serial_number(),
  now - datetime.timedelta(days=1), now + datetime.timedelta(days=2),
).add_extension(x509.BasicConstraints(True, None), True).add_extension(
  x509.SubjectAlternativeName(
    [x509.IPAddress(ipaddress.ip_address('127.0.0.1'))]), False,
).sign(server, hashes.SHA256())
open('server.pem', 'wb').write(signed.public_bytes(s.Encoding.PEM))
open('server.key', 'wb').write(server.private_bytes(
  s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
open('key', 'wb').write(key.private_bytes(
  s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption()))
open('key.pub', 'wb').write(key.public_key().public_bytes(
  s.Encoding.OpenSSH, s.PublicFormat.OpenSSH))
EOF
free_port() {
  python -c \
    'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}
node() { # Starts one; says how it is after 25 s, which is in $how.
  flower-supernode --superlink="127.0.0.1:$port" \
    --root-certificates=server.pem --port="$(free_port)" "${key[@]}" >node.log 2>&1 &
  pid=$!
  how=connected
  for _ in $(seq 25); do
    sleep 1
    kill -0 "$pid" 2>/dev/null && continue
    wait "$pid" || how="ended with $?"
    break
  done
}
seen=''
for keys in without with; do
  port=$(free_port)
  link=(--host=127.0.0.1 --port="$port" --ssl-ca-certfile=server.pem) key=()
  link+=(--ssl-certfile=server.pem --ssl-keyfile=server.key)
  link+=(--disable-runtime-dependency-installation)
  if [ $keys = with ]; then
    link+=(--enable-supernode-auth) key=(--auth-supernode-private-key=key)
  fi
  flower-superlink "${link[@]}" >link.log 2>&1 &
  superlink=$!
  for _ in $(seq 60); do
    sleep 1
    ! grep -q 'startup complete' link.log || break
  done
  if [ $keys = with ]; then
    printf '[superlink.it]\naddress = "127.0.0.1:%s"\nroot-certificates = "%s"\n' \
      "$port" "$folder/server.pem" > home/config.toml
    flwr supernode register key.pub it >/dev/null
  fi
  node
  seen+="$keys a key: first $how"
  kill -9 "$pid"
  wait "$pid" 2>/dev/null || true
  node
  seen+=", after it was killed $how"
  if [ "$how" != connected ]; then
    seen+=" ($(grep -o 'Failed to activate SuperNode' node.log))"
    sleep 75
    node
    seen+=", later $how"
  fi
  seen+=$'\n'
  kill "$pid" "$superlink"
  wait "$pid" "$superlink" 2>/dev/null || true
done
expected='without a key: first connected, after it was killed connected
with a key: first connected, after it was killed ended with 1 (Failed to activate SuperNode), later connected
'
printf '%s' "$seen"
[ "$seen" = "$expected" ] || { echo 'CHANGED'; exit 1; }
echo 'as described'
