#!/bin/sh
# Installs the missing system packages of scripts/packages.txt; returns immediately if none is missing.
#
# usage: scripts/packages.sh [SECTION...]      sections: run build test bench; default: run build
#
# Installed packages are never removed or downgraded. If the default version of a missing package would require that, the script
# installs the version that fits the installed packages: from the configured sources, or from the backports of the same Debian
# release if the installed packages came from there. Without such a version, it asks for confirmation.
#
# This is a shell script and not an xtask because it runs first: building xtask needs a C compiler.
set -eu

# The proofs also need programs in sbin folders, which are not always in an ordinary user's PATH.
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
    echo "apt-get is missing: install the packages above with this system's package manager, then try again." >&2
    exit 1
fi
as_root=
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "Installing them needs root, and sudo is missing. Run as root: apt-get install --no-install-recommends$missing" >&2
        exit 1
    fi
    as_root=sudo
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# apt options for the additional source, used during this run only.
sources=

# Runs apt-get as root. Waits for another running apt, for example on a machine that just started, instead of failing.
apt() {
    # shellcheck disable=SC2086 # one word per option
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 $sources "$@"
}

# simulate ARGUMENTS: writes what `apt-get install` would do to $work/plan. Fails if the installation is impossible.
simulate() {
    # shellcheck disable=SC2086 # one word per option
    LC_ALL=C apt-get -q -s $sources install --no-install-recommends "$@" >"$work/plan" 2>&1
}

# fits ARGUMENTS: succeeds if `apt-get install` would neither remove nor downgrade anything.
fits() {
    simulate "$@" && ! grep -Eq '^Remv |will be DOWNGRADED' "$work/plan"
}

# install ARGUMENTS. apt-get refuses downgrades by default, and removals with --no-remove.
install() {
    if ! apt install -y --no-remove --no-install-recommends "$@"; then
        echo "Could not install:$missing" >&2
        exit 1
    fi
}

# siblings PACKAGE: prints the versions of installed packages that are built from the same source as PACKAGE.
siblings() {
    # shellcheck disable=SC2086 # one word per option
    source=$(apt-cache $sources show --no-all-versions "$1" 2>/dev/null | awk '$1 == "Source:" { print $2; exit }')
    # shellcheck disable=SC2016 # dpkg-query's variables
    dpkg-query -W -f '${db:Status-Status} ${source:Package} ${Version}\n' 2>/dev/null |
        awk -v source="${source:-$1}" '$1 == "installed" && $2 == source { print $3 }' | sort -u
}

# releases PACKAGE VERSION: prints the releases among the sources that contain this version of the package.
releases() {
    # shellcheck disable=SC2086 # one word per option
    apt-cache $sources madison "$1" 2>/dev/null | awk -F ' *[|] *' -v version="$2" '
        $2 == version { split($3, place, " "); sub("/[^/]*$", "", place[2]); print place[2] }' | sort -u
}

# Adds the backports of this Debian release, from the mirror of its other packages, for this run only.
add_backports() {
    # apt-cache prints a source as two lines: `500 URI SUITE/COMPONENT ...`, then `release v=12.1,o=Debian,n=bookworm,...`.
    backports=$(LC_ALL=C apt-cache policy | awk '
        $1 ~ /^[0-9]+$/ { uri = $2 }
        $1 == "release" && /o=Debian,/ && /c=main/ && match($0, /n=[a-z]+,/) {
            print uri, substr($0, RSTART + 2, RLENGTH - 3) "-backports"; exit
        }')
    [ -n "$backports" ] || return 1
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    parts=$(apt-config shell folder Dir::Etc::sourceparts/d)
    folder=
    eval "$parts"
    mkdir "$work/parts"
    if [ -d "$folder" ]; then
        find "$folder" -maxdepth 1 -type f -exec cp {} "$work/parts" \;
    fi
    if [ -e "$keys" ]; then echo "deb [signed-by=$keys] $backports main"; else echo "deb $backports main"; fi \
        >"$work/parts/backports.list"
    echo "Adding $backports for this run: some installed packages come from there."
    apt -o Dir::Etc::sourcelist="$work/parts/backports.list" -o Dir::Etc::sourceparts=/dev/null \
        -o APT::Get::List-Cleanup=0 update || return 1
    sources="-o Dir::Etc::sourceparts=$work/parts"
}

# fitting_release PACKAGE: prints the release that contains PACKAGE in the version of an installed sibling.
fitting_release() {
    for version in $(siblings "$1"); do
        releases "$1" "$version"
    done | head -n 1
}

# Outdated lists may be good enough; otherwise the installation fails.
apt update || echo "The package lists could not be updated; continuing with the existing lists." >&2

# shellcheck disable=SC2086 # one word per package
if fits $missing; then
    install $missing
    exit 0
fi

# Package by package: as usual, or from the release of an installed sibling, or not beside what is installed.
usual=
fitted=
stuck=
for package in $missing; do
    if fits "$package"; then
        usual="$usual $package"
        continue
    fi
    release=$(fitting_release "$package")
    if [ -z "$release" ] && [ -z "$sources" ] && siblings "$package" | grep -q '~bpo' && add_backports; then
        release=$(fitting_release "$package")
    fi
    if [ -n "$release" ] && fits -t "$release" "$package"; then
        echo "Installing $package from $release: it fits the installed packages."
        fitted="$fitted $release:$package"
    else
        stuck="$stuck $package"
    fi
done

if [ -n "$stuck" ]; then
    # shellcheck disable=SC2086 # one word per package
    if ! simulate $stuck; then
        cat "$work/plan" >&2
        echo "Cannot install:$stuck. Nothing was changed." >&2
        exit 1
    fi
    echo "Installing$stuck would remove or downgrade installed packages:" >&2
    awk '$1 == "Remv" { print "    " $2, $3 }' "$work/plan" >&2
    sed -n '/will be DOWNGRADED/,/^[^ ]/ s/^  */    /p' "$work/plan" >&2
    if [ ! -t 0 ]; then
        echo "No compatible version was found, and there is no terminal to ask, so nothing was changed. To do it anyway:" >&2
        echo "    ${as_root:+sudo }apt-get install --no-install-recommends$stuck" >&2
        exit 1
    fi
    printf 'Continue? [y/N] '
    read -r answer || answer=
    case $answer in
    y | Y | yes) ;;
    *)
        echo "Nothing was changed." >&2
        exit 1
        ;;
    esac
fi

# shellcheck disable=SC2086 # one word per package
if [ -n "$usual" ]; then
    install $usual
fi
for place in $fitted; do
    install -t "${place%%:*}" "${place#*:}"
done
# shellcheck disable=SC2086 # one word per package
if [ -n "$stuck" ] && ! apt install -y --allow-downgrades --no-install-recommends $stuck; then
    echo "Could not install:$stuck" >&2
    exit 1
fi
