#!/bin/sh
# Installs the system packages of scripts/packages.txt that are missing; does nothing, quickly, when none is.
#
# usage: scripts/packages.sh [SECTION...]      sections: run build test bench; default: run build
#
# Nothing that is installed is removed or downgraded. Where the usual version of a missing package would demand that, the
# version that fits what is installed is taken: from the configured sources, or from the backports of the same Debian release
# if that is where the installed packages came from. Without such a version a person is asked.
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

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Options of apt for the source that is read during this run only.
sources=

# Another apt may be at work, on a machine that just started for example: wait for it instead of failing.
apt() {
    # shellcheck disable=SC2086 # one word per option
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 $sources "$@"
}

# simulate ARGUMENTS: what `apt-get install` would do, in $work/plan. Fails if it cannot.
simulate() {
    # shellcheck disable=SC2086 # one word per option
    LC_ALL=C apt-get -q -s $sources install --no-install-recommends "$@" >"$work/plan" 2>&1
}

# fits ARGUMENTS: succeeds if `apt-get install` would neither remove nor downgrade anything.
fits() {
    simulate "$@" && ! grep -Eq '^Remv |will be DOWNGRADED' "$work/plan"
}

# install ARGUMENTS. Apt refuses downgrades by itself; removals only when told to.
install() {
    if ! apt install -y --no-remove --no-install-recommends "$@"; then
        echo "Could not install:$missing" >&2
        exit 1
    fi
}

# siblings PACKAGE: versions of what is installed and built from the same source as a package that is not installed.
siblings() {
    # shellcheck disable=SC2086 # one word per option
    source=$(apt-cache $sources show --no-all-versions "$1" 2>/dev/null | awk '$1 == "Source:" { print $2; exit }')
    # shellcheck disable=SC2016 # dpkg-query's variables
    dpkg-query -W -f '${db:Status-Status} ${source:Package} ${Version}\n' 2>/dev/null |
        awk -v source="${source:-$1}" '$1 == "installed" && $2 == source { print $3 }' | sort -u
}

# releases PACKAGE VERSION: the releases among the sources that have this version of the package.
releases() {
    # shellcheck disable=SC2086 # one word per option
    apt-cache $sources madison "$1" 2>/dev/null | awk -F ' *[|] *' -v version="$2" '
        $2 == version { split($3, place, " "); sub("/[^/]*$", "", place[2]); print place[2] }' | sort -u
}

# Reads the backports of this Debian release, from the mirror of its other packages, during this run only.
add_backports() {
    # A source is two lines: `500 URI SUITE/COMPONENT ...` and, below it, `release v=12.1,o=Debian,n=bookworm,...`.
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
    echo "Reading $backports too, this once: some installed packages come from there."
    apt -o Dir::Etc::sourcelist="$work/parts/backports.list" -o Dir::Etc::sourceparts=/dev/null \
        -o APT::Get::List-Cleanup=0 update || return 1
    sources="-o Dir::Etc::sourceparts=$work/parts"
}

# fitting_release PACKAGE: the release that has it in the version of an installed sibling.
fitting_release() {
    for version in $(siblings "$1"); do
        releases "$1" "$version"
    done | head -n 1
}

# A list that could not be refreshed may still do; the installation tells.
apt update || echo "The package lists could not be refreshed; trying with what there is." >&2

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
        echo "Taking $package from $release: it fits what is installed."
        fitted="$fitted $release:$package"
    else
        stuck="$stuck $package"
    fi
done

if [ -n "$stuck" ]; then
    # shellcheck disable=SC2086 # one word per package
    if ! simulate $stuck; then
        cat "$work/plan" >&2
        echo "Cannot be installed here:$stuck. Nothing was changed." >&2
        exit 1
    fi
    echo "Installing$stuck would remove or downgrade what is installed:" >&2
    awk '$1 == "Remv" { print "    " $2, $3 }' "$work/plan" >&2
    sed -n '/will be DOWNGRADED/,/^[^ ]/ s/^  */    /p' "$work/plan" >&2
    if [ ! -t 0 ]; then
        echo "No version that fits was found, and nobody can be asked, so nothing was changed. If that is what you want:" >&2
        echo "    ${as_root:+sudo }apt-get install --no-install-recommends$stuck" >&2
        exit 1
    fi
    printf 'Do that? [y/N] '
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
