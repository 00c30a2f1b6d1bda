#!/usr/bin/env bash
# sudo ./test.sh [--full [arguments] | bench] [pytest arguments]: the tests, the campaign that tries to break it, or the benchmarks. Skips say why.
# --full: every harness of tests/campaign, with their table at the end (docs/RELIABILITY.md); --only H4 --seed 7: one of them; with a path: pytest, slow tests included.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./prepare.sh
require_root test.sh
need_packages "${TEST_PACKAGES[@]}"
prepare_venv "[test]"
case "${1:-}" in
    bench) shift; exec env QREP_BENCH=full python -m pytest bench -p no:cacheprovider "$@" ;;
    --full) shift
        case "${1:-}" in
            "" | -*) cd tests; exec python -m campaign "$@" ;;
            *) exec python -m pytest -m "slow or not slow" "$@" ;;
        esac ;;
    "") # Most tests wait for agents and devices, so they share the machine; what measures it, fills it, or needs what others might take, has it to itself.
        failed=0
        python -m pytest tests bench -m "not slow and alone" || failed=$?
        python -m pytest tests -m "not slow and not alone" -n "$(($(nproc) + 1))" --dist loadfile || failed=$?
        exit "$failed" ;;
    *) exec python -m pytest tests bench -m "not slow" "$@" ;;
esac
