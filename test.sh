#!/usr/bin/env bash
# sudo ./test.sh [--full | bench] [pytest arguments]: the tests, the long tier, or the benchmarks. Skips say why.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./prepare.sh
require_root test.sh
need_packages "${TEST_PACKAGES[@]}"
prepare_venv "[test]"
case "${1:-}" in
    bench) shift; exec env QREP_BENCH=full python -m pytest bench -p no:cacheprovider "$@" ;;
    --full) shift; exec python -m pytest tests bench -m "slow or not slow" "$@" ;;
    "") # Most tests wait for agents and devices, so they share the machine; what measures it, or fills it, has it to itself.
        failed=0
        python -m pytest tests bench -m "not slow and alone" || failed=$?
        python -m pytest tests -m "not slow and not alone" -n "$(($(nproc) + 1))" --dist loadfile || failed=$?
        exit "$failed" ;;
    *) exec python -m pytest tests bench -m "not slow" "$@" ;;
esac
