#!/usr/bin/env bash
# sudo ./demo.sh: install what is needed, say what this machine can do, then replicate a real volume and prove it. Leaves nothing behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./prepare.sh
require_root demo.sh
case " $* " in *" --all "*) DEMO_PACKAGES+=(libnbd-bin fuse3) ;; esac
need_packages "${DEMO_PACKAGES[@]}"
prepare_venv ""
qrep probe
exec qrep demo "$@"
