#!/usr/bin/env bash
# Installs what the test lanes need on Debian or Ubuntu, and does nothing when all of it is there.
# usage: install.sh build|nested    build: what compiling needs; nested: that, QEMU, and a kernel that is unpacked, not installed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
work=${CARGO_TARGET_DIR:-$PWD/target}/nested

fail() {
  printf 'install: %s\n' "$*" >&2
  exit 1
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    fail "to install packages, run this as root or install sudo"
  fi
}

lists_are_new=no
update_lists() {
  [ "$lists_are_new" = yes ] || as_root apt-get update -q >&2
  lists_are_new=yes
}

# install_commands COMMAND:PACKAGE ...: the packages of those commands that are missing
install_commands() {
  local pair commands=() packages=()
  for pair in "$@"; do
    if ! command -v "${pair%%:*}" >/dev/null; then
      commands+=("${pair%%:*}")
      packages+=("${pair#*:}")
    fi
  done
  [ ${#commands[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null ||
    fail "missing: ${commands[*]} (Debian's packages: ${packages[*]}), and there is no apt-get here to install them with"
  update_lists
  # Never trade what is installed here for what the lanes need, unless the machine is a throwaway one or its owner said so.
  local may_remove=no
  if [ "${CI-}" = true ] || [ "${SLACKWATER_INSTALL_MAY_REMOVE-}" = 1 ]; then
    may_remove=yes
  fi
  local apt=(apt-get install -qy --no-install-recommends -o DPkg::Lock::Timeout=300)
  local removed
  removed=$("${apt[@]}" --simulate "${packages[@]}" 2> /dev/null | sed -n 's/^Remv \([^ ]*\).*/\1/p' | paste -sd ' ' || true)
  if [ -n "$removed" ]; then
    [ "$may_remove" = yes ] ||
      fail "installing ${packages[*]} would remove: $removed. SLACKWATER_INSTALL_MAY_REMOVE=1 allows that; nothing was changed"
    printf 'install: installing %s removes: %s\n' "${packages[*]}" "$removed" >&2
  fi
  [ "$may_remove" = yes ] || apt+=(--no-remove)
  as_root env DEBIAN_FRONTEND=noninteractive "${apt[@]}" "${packages[@]}" >&2 || fail "apt-get could not install ${packages[*]}"
}

# Sets `packages` to those that the kernel behind a metapackage consists of, for example linux-image-6.1.0-1-cloud-amd64. Debian's
# kernels come in one package; Ubuntu's have their modules in a second one.
packages=()
find_kernel_packages() {
  local meta image
  packages=()
  for meta in linux-image-cloud-amd64 linux-image-virtual; do
    image=$(dependency "$meta" linux-image || true)
    if [ -n "$image" ]; then
      mapfile -t packages < <(printf '%s\n' "$image" && dependency "$image" linux-modules)
      return
    fi
  done
}
dependency() { apt-cache depends "$1" 2> /dev/null | sed -n "s/^ *Depends: \\($2-[0-9].*\\)/\\1/p"; }

download_kernel() { # PLACE
  # As root apt would drop to a user who cannot write here.
  [ ${#packages[@]} -gt 0 ] && (cd "$1" && apt-get download -q -o APT::Sandbox::User="$(id -un)" "${packages[@]}" >&2)
}

install_kernel() {
  [ ! -e "$work/kernel/vmlinuz" ] || return 0
  command -v apt-get > /dev/null || fail "no kernel in $work/kernel, and there is no apt-get here to download one with"
  local new=$work/kernel.new package image modules
  rm -rf "$new"
  mkdir -p "$new/download"
  find_kernel_packages
  # There may be no package lists yet, or they are older than the archive: renew them once and try again.
  if ! download_kernel "$new/download"; then
    update_lists
    find_kernel_packages
    [ ${#packages[@]} -gt 0 ] || fail "apt-get knows neither linux-image-cloud-amd64 nor linux-image-virtual"
    download_kernel "$new/download" || fail "apt-get could not download ${packages[*]}"
  fi
  for package in "$new"/download/*.deb; do
    dpkg -x "$package" "$new/tree"
  done
  image=$(find "$new/tree/boot" -name 'vmlinuz-*' -print -quit)
  modules=$(find "$new/tree" -type d -path '*lib/modules/*' -print -quit)
  if [ -z "$image" ] || [ -z "$modules" ]; then
    fail "no kernel with modules in ${packages[*]}"
  fi
  # One layout whatever the package's: vmlinuz, release, lib/modules/RELEASE.
  mkdir -p "$new/lib/modules"
  mv "$modules" "$new/lib/modules/"
  mv "$image" "$new/vmlinuz"
  basename "$modules" > "$new/release"
  rm -rf "$new/tree" "$new/download"
  depmod -b "$new" "$(cat "$new/release")"
  rm -rf "$work/kernel"
  mv "$new" "$work/kernel"
}

case ${1-} in
  build)
    install_commands cc:gcc
    ;;
  nested)
    install_commands cc:gcc qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio depmod:kmod xz:xz-utils \
      zstd:zstd flock:util-linux
    mkdir -p "$work"
    # Two runs that share a target directory must not both unpack.
    exec 9> "$work/lock"
    flock -w 600 9 || fail "another run has held $work/lock for 10 minutes"
    install_kernel
    ;;
  *)
    printf 'usage: install.sh build|nested\n' >&2
    exit 2
    ;;
esac
command -v cargo >/dev/null || fail "cargo is missing: install Rust 1.90 or newer (rustup, or the distribution's packages where they are new enough)"
