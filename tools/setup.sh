#!/usr/bin/env bash
# Makes this checkout ready to use. Says what it does; a second run finds nothing to do.
#
#   tools/setup.sh demo     Debian packages of the lab, and virtrace in .venv
#   tools/setup.sh test     the same, a C compiler, a browser, the tools that check the code, and
#                           what is measured beside virtrace
#   tools/setup.sh matrix   as test, and what builds other systems' roots
#
# Exit status 3: packages are missing and could not be installed (the virtual environment
# is made all the same, where a usable Python is here).
set -euo pipefail

readonly purpose=${1:?usage: tools/setup.sh demo|test|matrix}
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly checkout
readonly venv=$checkout/.venv
readonly stamp=$venv/.virtrace-setup

packages=(libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients
          qemu-system-x86 qemu-utils gdb)
extras=
case $purpose in
    demo) ;;
    test) extras='[bench,dev]'
        packages+=(gcc libc6-dev bpftrace chromium chromium-driver dnsmasq-base iproute2 man-db
            sosreport) ;;
    matrix) extras='[bench,dev]'; packages+=(gcc libc6-dev bpftrace mmdebstrap debuginfod) ;;
    *) echo "usage: tools/setup.sh demo|test|matrix" >&2; exit 2 ;;
esac

# Where libvirt's storage driver is a package of its own, after Debian 12.
if [[ $purpose != demo ]] && apt-cache show libvirt-daemon-driver-storage >/dev/null 2>&1; then
    packages+=(libvirt-daemon-driver-storage)
fi

say() { echo "setup: $*"; }
fail() { printf 'virtrace: %s\ntry: %s\n' "$1" "$2" >&2; exit "${3:-3}"; }

# The Python of the distribution comes first: GDB embeds the same one as a rule, and borrows
# packages from our environment.
find_python() {
    local candidate
    for candidate in /usr/bin/python3 python3 python3.{14,13,12,11,10,9}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' \
            >/dev/null 2>&1; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

missing_packages() {
    local package
    for package in "${packages[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            echo "$package"
    done
}

missing_commands() {
    local command
    PATH=$PATH:/usr/sbin:/sbin
    for command in gdb virsh libvirtd qemu-system-x86_64 qemu-img "$@"; do
        command -v "$command" >/dev/null || echo "$command"
    done
}

# Sets packages_status: 0 when all that is needed is here.
install_packages() {
    local missing sudo=() command
    if ! command -v dpkg-query >/dev/null; then
        if [[ $purpose == demo ]]; then
            missing=$(missing_commands)
        else
            missing=$(missing_commands gcc chromedriver)
        fi
        if [[ -n $missing ]]; then
            echo "virtrace: missing here: ${missing//$'\n'/ }" >&2
            echo "try: install them with this system's package manager (only apt is done for you)" >&2
            packages_status=3
        fi
        return
    fi
    find_python >/dev/null || packages+=(python3-venv)
    missing=$(missing_packages)
    [[ -n $missing ]] || return 0
    missing=${missing//$'\n'/ }
    command="apt-get update && apt-get install --yes --no-install-recommends $missing"
    if [[ $(id -u) != 0 ]]; then
        sudo=(sudo -n)
        command="sudo apt-get update && sudo apt-get install --no-install-recommends $missing"
        if ! sudo -n true 2>/dev/null; then
            echo "virtrace: Debian packages are missing, and installing them takes root: $missing" >&2
            echo "try: $command" >&2
            packages_status=3
            return
        fi
    fi
    say "installing Debian packages: $missing"
    # shellcheck disable=SC2086 # package names have no spaces
    if ! {
        "${sudo[@]}" apt-get update -qq &&
            "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
                apt-get install -qq --yes --no-install-recommends $missing
    } </dev/null >"$apt_log" 2>&1; then
        cat "$apt_log" >&2
        echo "virtrace: apt-get could not install: $missing (its messages are above)" >&2
        echo "try: $command" >&2
        packages_status=3
    fi
}

make_venv() {
    local python want have=
    want="$checkout $(sha256sum <"$checkout/pyproject.toml")"
    [[ ! -f $stamp ]] || have=$(<"$stamp")
    # One made for more serves what needs less too.
    if [[ $have == "$want $extras" || $have == "$want [bench,dev]" ]] &&
        "$venv/bin/python" -c '' 2>/dev/null; then
        return
    fi
    if [[ $have != "$checkout "* ]] || ! "$venv/bin/python" -c '' 2>/dev/null; then
        python=$(find_python) || fail \
            "no Python 3.9 or later with venv and pip was found" \
            "install one; on Debian and Ubuntu: sudo apt-get install python3-venv"
        # Without a stamp of this place it is unfinished, or was moved here: begin again.
        say "making $venv with $python"
        "$python" -m venv --clear "$venv"
    fi
    say "installing virtrace$extras and what it needs into $venv"
    rm -f "$stamp"
    # Of the packages for tests most is never imported; what is, is compiled when it is first.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        ${extras:+--no-compile} \
        --editable "$checkout$extras" || fail \
        "pip could not install virtrace's dependencies (its message is above)" \
        "check the network or pip's index settings, then run this again"
    echo "$want $extras" >"$stamp"
}

packages_status=0
apt_log=$(mktemp)
trap 'rm -f "$apt_log"' EXIT
install_packages
make_venv
if [[ $packages_status != 0 && $purpose != demo && ${CI:-} != true ]]; then
    say "the tests that need what is missing will be skipped"
    packages_status=0
fi
[[ $packages_status != 0 ]] || say "ready: $venv/bin/virtrace"
exit "$packages_status"
