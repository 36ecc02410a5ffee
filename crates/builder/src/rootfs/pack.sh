# From an archive to an image. Run by `sh -eu` as root of namespaces that nobody else sees.
archive=$1 tree=$2 modules=$3 kernel_version=$4 provision=$5 nameserver=$6 image=$7 size=$8 place=$9
PATH=$PATH:/usr/sbin:/sbin

# The kernel fills /dev when the guest boots, and a user namespace may not make device files.
mkdir -p "$tree"
if [ "$place" = memory ]; then mount -t tmpfs tmpfs "$tree"; fi
tar --extract --file "$archive" --directory "$tree" --numeric-owner --same-owner --preserve-permissions \
    --xattrs --xattrs-include='*' --exclude='./dev/*'
mkdir -p "$tree/usr/lib/modules"
cp -R --no-preserve=ownership "$modules" "$tree/usr/lib/modules/$kernel_version"

cp "$provision" "$tree/provision"
mount --rbind /dev "$tree/dev"
mount -t proc proc "$tree/proc"
chroot "$tree" /bin/sh -eu /provision "$kernel_version" "$nameserver"
umount "$tree/proc"
# Lazily, so as a whole: a user namespace may not take apart what it was given together.
umount --lazy "$tree/dev"
rm "$tree/provision"

# No reserved blocks: root of a sandbox is its user. No lazy initialization: the guest's kernel would do it in the
# background, in every sandbox. A small journal: each sandbox that writes has a copy of its own.
rm -f "$image"
mkfs.ext4 -q -F -L root -m 0 -J size=16 -E lazy_itable_init=0,lazy_journal_init=0 -d "$tree" "$image" "$size"
