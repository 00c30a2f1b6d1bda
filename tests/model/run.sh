#!/bin/sh
# Check one configuration of the model: run.sh "-DNB=2 -DMAXG=3", or a seeded bug: run.sh "-DNB=2 -DMAXG=3 -DM_NO_DRAIN".
# Prints what was violated, the states and the time. Debian: spin, gcc.
here=$(dirname "$(readlink -f "$0")")
scratch=$(mktemp -d) || exit 2
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 2
# shellcheck disable=SC2086 -- the definitions are words
spin -a $1 "$here/commit.pml" >spin.out 2>&1 || { cat spin.out; exit 2; }
gcc -O2 -w -DSAFETY -DNOFAIR -DCOLLAPSE -DMEMLIM=6000 -o pan pan.c || exit 2
timeout "${QREP_MODEL_SECONDS:-300}" ./pan -m2000000 -w24 >out 2>&1
grep -E "assertion violated|errors:|states, stored|elapsed time|max search depth|out of memory" out
