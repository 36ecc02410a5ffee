# Turns a fresh Debian into a system for sandboxes. Run by `sh -eu` as root in its root file system, without network access.
#
# $1: version of the kernel whose modules are installed
# $2: name server

kernel_version=$1
nameserver=$2

# Settings of the build host, such as its proxy and its mirror.
rm -f /etc/apt/apt.conf.d/99mmdebstrap /etc/apt/sources.list /etc/apt/sources.list.d/*
. /etc/os-release
cat > /etc/apt/sources.list.d/debian.sources <<END
Types: deb
URIs: http://deb.debian.org/debian
Suites: $VERSION_CODENAME $VERSION_CODENAME-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: $VERSION_CODENAME-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END

# Users.
useradd --create-home --shell /bin/bash --uid 1000 --user-group user
usermod --append --groups sudo user
passwd --delete user > /dev/null
passwd --delete root > /dev/null
printf 'user ALL=(ALL:ALL) NOPASSWD: ALL\n' > /etc/sudoers.d/user
chmod 0440 /etc/sudoers.d/user

# Network.
printf 'e2b.local\n' > /etc/hostname
cat > /etc/hosts <<'END'
127.0.0.1 localhost e2b.local
::1 localhost ip6-localhost ip6-loopback
END
rm -f /etc/resolv.conf
printf 'nameserver %s\n' "$nameserver" > /etc/resolv.conf

# Shells. Every command of a client starts a login shell, so /etc/profile must not start programs for values that bash
# provides itself.
sed -i -e 's/"$(id -u)"/"${EUID:-$(id -u)}"/' -e 's#in $(run-parts .*); do#in /etc/profile.d/*.sh; do#' /etc/profile
grep -q '{EUID:-' /etc/profile && ! grep -q run-parts /etc/profile
cat > /etc/profile.d/sandbox.sh <<'END'
export SHELL=/bin/bash
export PS1='\w \$ '
END
printf 'PS1='\''\\w \\$ '\''\n' >> /root/.bashrc
chown root:root /root/.bashrc
printf 'LANG=C.UTF-8\n' > /etc/default/locale
ln -sf /usr/share/zoneinfo/UTC /etc/localtime
printf 'Etc/UTC\n' > /etc/timezone

# All users may install packages: `pip install x` and `npm install -g x` work.
rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
printf '[global]\nbreak-system-packages = true\nroot-user-action = ignore\ndisable-pip-version-check = true\n' > /etc/pip.conf
python_packages=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib", "posix_local"))')
mkdir -p /code "$python_packages"
chmod -R 0777 /code /usr/local

printf 'fs.inotify.max_user_watches=65536\nvm.compaction_proactiveness=0\n' > /etc/sysctl.d/60-sandbox.conf
depmod "$kernel_version"

# Remove all data of the build machine, and data that is useful only there.
: > /etc/machine-id
rm -rf /var/lib/dbus/machine-id /var/log/*.log /var/log/apt /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/cache/ldconfig/aux-cache
