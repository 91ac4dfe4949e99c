#!/usr/bin/env bash
# Makes the key that publishing a live stream needs, and prints it; the caller keeps it secret.
set -euo pipefail
openssl rand -hex 24 | tr -d '\n'
