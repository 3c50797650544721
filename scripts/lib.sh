# What scripts/test, scripts/demo and scripts/bench share. Sourced, never run.
# shellcheck shell=bash

# ---- Debian packages, the same names on Debian 12 and 13: the one list there is ------------------------------------

# What the programs themselves run on.
readonly PACKAGES_RUN=(python3 python3-venv)

# The peers, partitioning tools and file systems that the tests run against.
# shellcheck disable=SC2034  # read by scripts/test
readonly PACKAGES_TEST=(
  "${PACKAGES_RUN[@]}"
  nbdkit nbdkit-plugin-python libnbd-bin python3-libnbd qemu-utils nbd-client nbd-server fio bmap-tools
  fdisk gdisk parted util-linux mount fuse3
  dosfstools mtools e2fsprogs xfsprogs btrfs-progs ntfs-3g exfatprogs
  squashfs-tools genisoimage cryptsetup-bin lvm2 dmsetup mdadm
  iproute2 nftables ethtool procps openssl openssh-client gddrescue
  rsync acl attr
  partclone 7zip dmg2img
  bzip2 lz4 pbzip2 pigz tabix xz-utils zstd
  zsh fish man-db groff-base
  nginx-light samba openssh-server
  exfat-fuse f2fs-tools
  chromium
)

# shellcheck disable=SC2034  # read by scripts/demo
readonly PACKAGES_DEMO=("${PACKAGES_RUN[@]}" mmdebstrap fdisk dosfstools mtools e2fsprogs util-linux mount libnbd-bin)

# What `scripts/demo --multicast` builds its image and its room of.
# shellcheck disable=SC2034  # read by scripts/demo
readonly PACKAGES_MULTICAST=("${PACKAGES_DEMO[@]}" iproute2 nftables ethtool diffutils hostname)

# What `scripts/demo --tour` makes images with, serves them from, and has its restores checked by.
# shellcheck disable=SC2034  # read by scripts/demo
readonly PACKAGES_TOUR=(
  "${PACKAGES_RUN[@]}" util-linux mount e2fsprogs dosfstools mtools fdisk gdisk parted procps
  bzip2 xz-utils zstd lz4 7zip qemu-utils partclone bmap-tools gddrescue rsync
  nbdkit libnbd-bin fuse3 nginx-light openssl openssh-client openssh-server samba
)

# shellcheck disable=SC2034  # read by scripts/bench
readonly PACKAGES_BENCH=(
  "${PACKAGES_RUN[@]}" nbdkit libnbd-bin qemu-utils fio
  7zip zstd curl nginx-light partclone bmap-tools e2fsprogs util-linux
  udpcast uftp iproute2 nftables ethtool
)

# ---- talking --------------------------------------------------------------------------------------------------------

say() { printf '==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
warn() { printf '==> note: %s\n' "$*" >&2; }
die() {
  printf '==> FAILED: %s\n' "$*" >&2
  exit 1
}

is_root() { [[ $EUID -eq 0 ]]; }

# ---- apt ------------------------------------------------------------------------------------------------------------

# packages_missing NAME...: those that dpkg does not have installed, one a line.
packages_missing() {
  local installed name
  installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "$@" 2>/dev/null) || true
  for name in "$@"; do
    grep -qx -- "$name installed" <<<"$installed" || printf '%s\n' "$name"
  done
}

# apt_need NAME...: installs what is missing as root; says what is missing, and returns 1, as anyone else.
apt_need() {
  local missing
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    warn "not a Debian machine: these have to be here already, under whatever names: $*"
    return 1
  fi
  mapfile -t missing < <(packages_missing "$@")
  if [[ ${#missing[@]} -eq 0 ]]; then
    say "Debian packages: all $# are here"
  elif is_root; then
    say "Debian packages: installing ${missing[*]}"
    if ! apt_install "${missing[@]}"; then
      warn "apt could not install them"
      return 1
    fi
  else
    warn "Debian packages missing, and only root can install them:"
    warn "  apt-get install --no-install-recommends ${missing[*]}"
    return 1
  fi
}

# apt_install NAME...: no question asked, no service started, nothing but the packages and what they depend on.
# The policy that keeps services from starting (nbd-server would) is the machine's own if it has one, else there for
# as long as apt runs.
apt_install() (
  policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  export DEBIAN_FRONTEND=noninteractive
  quietly apt-get -q update </dev/null || warn "apt-get update failed: going on with the lists that are here"
  quietly apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold \
    --no-install-recommends install "$@" </dev/null
)

# quietly COMMAND...: shows what it printed only when it fails.
quietly() {
  local output status=0
  output=$("$@" 2>&1) || status=$?
  [[ $status -eq 0 ]] || printf '%s\n%s\n' "$*" "$output" >&2
  return "$status"
}

# ---- Python ---------------------------------------------------------------------------------------------------------

# python_new_enough PYTHON: does it run, and is it one that pyproject.toml allows?
python_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# python_here: the first Python on the path that will do.
python_here() {
  local name
  for name in python3 python3.14 python3.13 python3.12 python3.11; do
    if python_new_enough "$name"; then
      command -v "$name"
      return
    fi
  done
  die "Python 3.11 or newer is needed (looked for python3, python3.14, python3.13, python3.12, python3.11)"
}

# venv EXTRA: makes .venv in the checkout, or mends it, and puts this checkout and its EXTRA requirements ("test",
# "bench", or "") into it. Does nothing at all when that was done before and pyproject.toml has not changed since.
# Expects the checkout as the current directory; leaves the environment's programs first on the path.
venv() {
  local extra=$1 python stamp wanted
  if ! python_new_enough .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(python_here)
    say "Python: making .venv with $python"
    quietly "$python" -m venv --clear .venv
  fi
  stamp=.venv/.installed${extra:+-$extra}
  wanted=$(pwd; .venv/bin/python -VV; sha256sum pyproject.toml)
  if [[ $(cat "$stamp" 2>/dev/null) == "$wanted" ]]; then
    say "Python: .venv is up to date ($(.venv/bin/python -V))"
  else
    say "Python: installing this checkout${extra:+ with [$extra]} into .venv ($(.venv/bin/python -V))"
    quietly .venv/bin/python -m pip install --disable-pip-version-check -e ".${extra:+[$extra]}"
    printf '%s\n' "$wanted" >"$stamp"
  fi
  PATH=$PWD/.venv/bin:$PATH
}

# free_ports N: N TCP ports of the loopback address that nobody listens on, one a line.
free_ports() {
  python3 - "$1" <<'PYTHON'
import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in sockets), sep="\n")
PYTHON
}
