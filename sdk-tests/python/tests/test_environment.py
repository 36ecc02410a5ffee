"""Environment of programs in a guest: everything that systemd or Docker would provide."""

import pytest

from journeys import by_headers, eventually, program

# The daemon checks for new listeners every second; the rest is for a busy machine.
FORWARDED_WITHIN = 20

# Facts about the environment: a command and its expected output, the same for both users.
FACTS = {
    "nothing hides a part of /proc": ("awk '$2 ~ \"^/proc/\"' /proc/self/mounts", ""),
    "locale": ("echo $LANG; locale charmap", "C.UTF-8\nUTF-8"),
    "locale of sudo": ("sudo locale charmap", "UTF-8"),
    "letters": ("touch /tmp/größe; ls /tmp | grep -c größe", "1"),
    "shell": ("echo $SHELL", "/bin/bash"),
    "search path": ("for d in /usr/local/bin /usr/bin /bin; do [[ :$PATH: == *:$d:* ]] || echo $d; done", ""),
    "home": ('test -w "$HOME" && cd && pwd | grep -cx "$HOME"', "1"),
    "user": ('test "$USER" = "$(id -un)" && test "$LOGNAME" = "$USER" && echo same', "same"),
    "umask": ("umask", "0022"),
    "priority": ("nice", "0"),
    "killed before the daemon": ("cat /proc/self/oom_score_adj", "100"),
    "open files": ("ulimit -Sn; ulimit -Hn", "65536\n1048576"),
    "no core files": ("ulimit -Sc", "0"),
    "time zone": ("date +%Z", "UTC"),
    "table of mounts": ("readlink /etc/mtab; awk '$2 == \"/\" { print $3 }' /etc/mtab", "/proc/self/mounts\next4"),
    "streams": ("echo text | cat /dev/stdin /dev/fd/0 > /dev/stdout; echo to stderr > /dev/stderr", "text"),
    "shared memory": ("stat -c %a /dev/shm; findmnt -n -o FSTYPE /dev/shm", "1777\ntmpfs"),
    "terminals": ("stat -c %a /dev/ptmx; script -qec tty /dev/null | tr -d '\\r' | cut -c -9", "666\n/dev/pts/"),
    "message queues": ("findmnt -n -o FSTYPE /dev/mqueue", "mqueue"),
    "devices for all": ("for d in null zero random urandom tty fuse net/tun; do stat -c %a /dev/$d; done | uniq", "666"),
    "kernel log": ("stat -c %F /dev/kmsg", "character special file"),
    "temporary files": ("stat -c %a /tmp /var/tmp /run/lock", "1777\n1777\n1777"),
    "old names": ("readlink -f /var/run /var/lock", "/run\n/run/lock"),
    "private folder": ('stat -c "%a %u" "$XDG_RUNTIME_DIR" | grep -cx "700 $(id -u)"', "1"),
    "control groups": ("findmnt -n -o FSTYPE /sys/fs/cgroup", "cgroup2"),
    "controllers": ("cat /sys/fs/cgroup/cgroup.subtree_control", "cpuset cpu io memory pids"),
    "names": ("getent hosts localhost | awk '{ print $1 }'; getent ahostsv4 $(hostname) | grep -c STREAM", "::1\n1"),
    "loopback": ("ping -c 1 -W 5 127.0.0.1 > /dev/null && ping -c 1 -W 5 ::1 > /dev/null && echo up", "up"),
    "reservations": ("cat /proc/sys/vm/overcommit_memory", "1"),
    "maps": ("cat /proc/sys/vm/max_map_count", "1048576"),
    "watches": ("cat /proc/sys/fs/inotify/max_user_watches /proc/sys/fs/inotify/max_user_instances", "65536\n1024"),
    "fair server": ("sudo sh -c 'cat /sys/kernel/debug/sched/fair_server/cpu*/runtime' | uniq", "0"),
    "backlog": ("cat /proc/sys/net/core/somaxconn", "4096"),
    "low ports": ("python3 -c 'import socket; socket.create_server((\"\", 81)); print(\"bound\")'", "bound"),
}

# Nested sandbox, as bubblewrap creates it: new namespaces, a new root in memory, a new /proc, the old root unmounted.
BUBBLE = """
set -e
mount -t tmpfs tmpfs /mnt
cd /mnt
mkdir usr proc old
mount --rbind /usr usr
ln -s usr/bin usr/lib usr/lib64 .
mount -t proc proc proc
/usr/sbin/pivot_root . old
umount -l old
echo $$: $(ls -x /) $(ls -d /proc/[0-9]* | wc -l)
"""

# Setup of a container, as by Docker and Podman: layers, a control group with limits, a network behind a bridge, NAT.
CONTAINER = """
set -e
mkdir -p layers/lower layers/upper layers/work layers/merged
touch layers/lower/below
mount -t overlay overlay -o lowerdir=layers/lower,upperdir=layers/upper,workdir=layers/work layers/merged
touch layers/merged/above
umount layers/merged
ls layers/upper

mkdir -p /sys/fs/cgroup/containers/one
echo '+cpu +cpuset +io +memory +pids' > /sys/fs/cgroup/containers/cgroup.subtree_control
echo 64M > /sys/fs/cgroup/containers/one/memory.max
echo 100 > /sys/fs/cgroup/containers/one/pids.max
sh -c 'echo 0 > /sys/fs/cgroup/containers/one/cgroup.procs && cat /proc/self/cgroup'
rmdir /sys/fs/cgroup/containers/one /sys/fs/cgroup/containers

ip netns add box
ip link add bridge0 type bridge
ip addr add 172.30.0.1/24 dev bridge0
ip link set bridge0 up
ip link add outer type veth peer name inner netns box
ip link set outer master bridge0 up
ip -n box addr add 172.30.0.2/24 dev inner
ip -n box link set inner up
ip -n box route add default via 172.30.0.1
sysctl -qw net.ipv4.ip_forward=1
iptables -t nat -A POSTROUTING -s 172.30.0.0/24 ! -o bridge0 -j MASQUERADE
iptables -t nat -A PREROUTING -p tcp --dport 8132 -m addrtype --dst-type LOCAL -j DNAT --to 172.30.0.2:8131
iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
ip netns exec box ping -c 1 -W 10 172.30.0.1 > /dev/null
echo connected
"""


@pytest.mark.parametrize("fact", FACTS)
def test_environment(sandbox, fact):
    command, expected = FACTS[fact]
    for user in ("user", "root"):
        assert sandbox.commands.run(command, user=user).stdout.strip() == expected, user


def test_a_user_can_create_namespaces(sandbox):
    command = "unshare -U -r -p -f --mount-proc sh -c 'echo $$ $(id -u) $(ls -d /proc/[0-9]* | wc -l)'"
    pid, uid, processes = sandbox.commands.run(command).stdout.split()
    assert (pid, uid) == ("1", "0") and int(processes) < 6, "it must see only its own processes"


def test_a_user_can_create_a_nested_sandbox(sandbox, folder):
    sandbox.files.write(f"{folder}/bubble.sh", BUBBLE)
    command = f"unshare -U -r -m -p -f -i -n -u -C sh {folder}/bubble.sh"
    assert sandbox.commands.run(command).stdout.split()[:2] == ["1:", "bin"]


def test_a_user_can_mount_an_overlay(sandbox, folder):
    layers = "lowerdir=lower,upperdir=upper,workdir=work"
    mount = f"mkdir lower upper work merged && mount -t overlay overlay -o {layers} merged"
    command = f"unshare -U -r -m sh -c '{mount} && touch merged/file && ls upper'"
    assert sandbox.commands.run(command, cwd=folder).stdout == "file\n"


def test_a_user_can_unmount_its_fuse_mount(sandbox, folder):
    sandbox.files.write("/root/fuse_mount.py", program("fuse_mount.py"), user="root")
    uid = sandbox.commands.run("id -u").stdout.strip()
    command = f"exec python3 fuse_mount.py {folder} {uid}"
    server = sandbox.commands.run(command, user="root", background=True, timeout=0)
    assert next(iter(server))[0] == "mounted\n"
    assert sandbox.commands.run(f"fusermount3 -u {folder} && findmnt {folder} || echo gone").stdout == "gone\n"
    server.wait()


# Unpacking and loading kernel modules takes long under emulation.
@pytest.mark.timeout(300)
def test_containers_can_be_set_up(new_sandbox, edge):
    sandbox = new_sandbox()
    sandbox.files.write("/root/container.sh", CONTAINER, user="root")
    output = sandbox.commands.run("bash container.sh", user="root", timeout=240).stdout
    assert output.split() == ["above", "0::/containers/one", "connected"]
    sandbox.files.write("/root/served/index.html", "in a box", user="root")
    for port, prefix in ((8131, "ip netns exec box "), (8133, "")):
        bind = "172.30.0.2" if prefix else "172.30.0.1"
        command = f"{prefix}python3 -m http.server {port} --bind {bind} --directory /root/served"
        sandbox.commands.run(command, user="root", background=True, timeout=0)
    # Through NAT into the container, and to a service that listens on the bridge only.
    for port in (8132, 8133):
        headers = by_headers(sandbox.sandbox_id, port)
        eventually(lambda: edge.get("/", headers=headers).text == "in a box", within=FORWARDED_WITHIN)


def test_memory_can_be_overcommitted(sandbox):
    reserve = "import mmap; reserved = mmap.mmap(-1, 2 << 30); reserved[:5] = b'begun'; print(reserved[:5].decode())"
    assert sandbox.commands.run(f'python3 -c "{reserve}"').stdout == "begun\n"
