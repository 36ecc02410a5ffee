#!/bin/sh
# Installs the system packages of scripts/packages.txt that are missing; does nothing, quickly, when none is.
#
# usage: scripts/packages.sh [SECTION...]      sections: run build test bench; default: run build
#
# This is a shell script and not an xtask because it runs first: without a C compiler no xtask can be built.
set -eu

# Programs of the system administrator are needed too, and are not always in an ordinary user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
list=$(dirname "$0")/packages.txt
sections=${*:-run build}

missing=
purposes=
while IFS='|' read -r section package proof purpose; do
    section=$(printf '%s' "$section" | tr -d ' ')
    case $section in '' | '#'*) continue ;; esac
    case " $sections " in *" $section "*) ;; *) continue ;; esac
    if ! sh -c "$proof" </dev/null >/dev/null 2>&1; then
        package=$(printf '%s' "$package" | tr -d ' ')
        missing="$missing $package"
        purposes="$purposes
    $package:$purpose"
    fi
done <"$list"

if [ -z "$missing" ]; then
    exit 0
fi

echo "Missing system packages:$purposes"
if ! command -v apt-get >/dev/null 2>&1; then
    echo "There is no apt-get here to install them with. Install what provides the above, then try again." >&2
    exit 1
fi
as_root=
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "Installing them needs root, and there is no sudo. As root: apt-get install --no-install-recommends$missing" >&2
        exit 1
    fi
    as_root=sudo
fi

# Another apt may be at work, on a machine that just started for example: wait for it instead of failing.
apt() {
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"
}

# A list that could not be refreshed may still do; the installation tells.
apt update || echo "The package lists could not be refreshed; trying with what there is." >&2
# shellcheck disable=SC2086 # one word per package
if ! apt install -y --no-install-recommends $missing; then
    echo "Could not install:$missing" >&2
    exit 1
fi
