# From an archive to an image. Run by `sh -eu` as root of namespaces that nobody else sees.
#
# A line that starts with `::` reports the next step.
archive=$1 tree=$2 modules=$3 kernel_version=$4 layers=$5 registries=$6 nameserver=$7 image=$8 size=$9
shift 9
place=$1
PATH=$PATH:/usr/sbin:/sbin
export PATH
umask 022

# The kernel fills /dev when the guest boots, and a user namespace may not make device files.
mkdir -p "$tree"
if [ "$place" = memory ]; then mount -t tmpfs tmpfs "$tree"; fi
tar --extract --file "$archive" --directory "$tree" --numeric-owner --same-owner --preserve-permissions \
    --xattrs --xattrs-include='*' --exclude='./dev/*'
mkdir -p "$tree/usr/lib/modules"
cp -R --no-preserve=ownership "$modules" "$tree/usr/lib/modules/$kernel_version"

# Programs run in the tree with mounts that end with them, so nothing that is mounted gets into the image.
in_tree='
    tree=$1
    shift
    mount --rbind /dev "$tree/dev"
    mount -t proc proc "$tree/proc"
    mount -t tmpfs tmpfs "$tree/run"
'
# Without network: what a script fetches would differ from day to day.
offline() { unshare --net --mount sh -eu -c "$in_tree"' exec chroot "$tree" "$@"' offline "$tree" "$@"; }
# With the network and the settings of this host, for the package managers of languages.
online() {
    unshare --mount sh -eu -c "$in_tree"'
        input=$1 registries=$2
        shift 2
        mkdir "$tree/run/registries" "$tree/run/input"
        cp -R "$registries/." "$tree/run/registries"
        mount --bind "$input" "$tree/run/input"
        for file in hosts resolv.conf; do
            if [ -e "/etc/$file" ]; then
                cp "/etc/$file" "$tree/run/registries/$file"
                mount --bind "$tree/run/registries/$file" "$tree/etc/$file"
            fi
        done
        exec chroot "$tree" env -i /bin/sh -eu -c ". /run/registries/environment; exec \"\$@\"" sh "$@"
    ' online "$tree" "$@"
}

# The steps of each recipe of the lineage, the oldest first.
for layer in "$layers"/*; do
    if [ -e "$layer/requirements.lock" ]; then
        # Beside packages of Debian, which pip cannot replace: its own have precedence.
        echo "::python $(grep -c '^[A-Za-z0-9]' "$layer/requirements.lock")"
        online "$layer" "$registries" pip install --no-deps --require-hashes --only-binary=:all: --ignore-installed \
            --no-cache-dir --no-input --break-system-packages --root-user-action=ignore --disable-pip-version-check \
            --progress-bar=off -r /run/input/requirements.lock
    fi
    if [ -d "$layer/node" ]; then
        echo "::node"
        mkdir -p "$tree/usr/local/lib/hearth/node"
        cp -R "$layer/node/." "$tree/usr/local/lib/hearth/node"
        online "$layer" "$registries" npm ci --prefix=/usr/local/lib/hearth/node --omit=dev --ignore-scripts \
            --no-audit --no-fund --no-update-notifier
    fi
    echo "::setup"
    if [ -d "$layer/files" ]; then
        cp -R --no-preserve=ownership "$layer/files/." "$tree"
    fi
    if [ -e "$layer/setup.sh" ]; then
        cp "$layer/setup.sh" "$tree/setup.sh"
        offline /bin/sh -eu /setup.sh "$kernel_version" "$nameserver"
        rm "$tree/setup.sh"
    fi
done

echo "::image $(($(du --summarize --one-file-system --block-size=1M "$tree" | cut -f 1)))"
# No reserved blocks: root of a sandbox is its user. No lazy initialization: the guest's kernel would do it in the
# background, in every sandbox. A small journal: each sandbox that writes has a copy of its own.
rm -f "$image"
mkfs.ext4 -q -F -L root -m 0 -J size=16 -E lazy_itable_init=0,lazy_journal_init=0 -d "$tree" "$image" "$size"
