# Sourced by demo.sh and test.sh: makes a Debian or Ubuntu machine able to build and run qrep, in a venv inside this checkout.
# It installs Debian packages only when one is missing, and builds only when a source changed. Variables: PYTHON (default python3).

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
die() { printf 'qrep: %s\n' "$*" >&2; exit 1; }

require_root() {
    [ "$(id -u)" = 0 ] || die "$1 needs root, for loop devices and mounts: run it as: sudo ./$1"
}

# need_packages PACKAGE...: install those that are missing, in one call
need_packages() {
    local missing=()
    local package
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null || die "these Debian packages are missing and there is no apt-get here: ${missing[*]}"
    say "installing ${missing[*]}"
    apt-get -qq update || die "apt-get update failed; check this machine's package sources"
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" >/dev/null ||
        die "apt-get could not install: ${missing[*]}"
}

# prepare_venv EXTRA: a venv in .venv with qrep built and installed from this checkout, with the optional dependencies EXTRA ("" or "[test]")
prepare_venv() {
    local extra=$1 python=${PYTHON:-python3} stamp now
    command -v "$python" >/dev/null || die "no $python; install python3 (3.11 or later) or set PYTHON"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$python is older than 3.11; set PYTHON to a newer one"
    "$python" -c 'import ensurepip' 2>/dev/null || die "$python has no ensurepip; install python3-venv"
    [ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || "$python" -m venv --clear .venv
    stamp=.venv/qrep-built${extra}
    now=$(find src setup.py pyproject.toml -type f ! -name '*.so' ! -path '*/__pycache__/*' ! -path '*.egg-info/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$now" ]; then
        say "building qrep"
        rm -rf build
        .venv/bin/python -m pip install -q --disable-pip-version-check --upgrade ".$extra" || die "the build failed; the lines above say why"
        printf '%s\n' "$now" >"$stamp"
    fi
    PATH=$PWD/.venv/bin:$PATH
    export PATH
}

BUILD_PACKAGES=(gcc libc6-dev python3-dev python3-venv liburing-dev libzstd-dev)
DEMO_PACKAGES=("${BUILD_PACKAGES[@]}" util-linux mount e2fsprogs xfsprogs b3sum iproute2)
# What ours is measured beside, which the tests run, too: bench/peers.
PEER_PACKAGES=(casync iperf3 libnbd-bin nbdkit qemu-utils rsync socat)
TEST_PACKAGES=("${DEMO_PACKAGES[@]}" "${PEER_PACKAGES[@]}" btrfs-progs clang libclang-rt-14-dev fio fuse3 git groff-base libfuse3-dev kmod lvm2
    mdadm openssh-client openssh-server parted pkg-config procps qemu-system-x86 spin strace systemd thin-provisioning-tools
    valgrind xz-utils)
