"""A machine with a real systemd as PID 1, in namespaces of this machine. It needs root, but no image.

The programs are those of this machine, whose disks are mounted read-only and whose units are hidden. `/run`, `/opt`,
`/var/lib`, `/var/cache`, `/tmp`, `/home` and `/dev` are its own, `/etc` is a copy, and the only network interface is
loopback: nothing that happens in it changes this machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from island.cli.demo.demo_island import wait_for

SYSTEMD = Path("/lib/systemd/systemd")

PACKAGES = Path("/opt/packages")

BOOT = """
set -eu
mount --make-rprivate /
# First of all, nothing on the disks of the real machine can be changed any more.
awk '$3 ~ /^(ext.|xfs|btrfs|overlay|virtiofs|9p)$/ { print $2 }' /proc/self/mounts | while read -r where; do
  mount -o remount,bind,ro "$where"
done
# The host's units and generators would clean /tmp, set kernel parameters and create devices.
for each in /usr/lib/systemd/system /usr/lib/systemd/system-generators; do mount -t tmpfs tmpfs $each; done
mount -t tmpfs -o mode=755 tmpfs /opt
mkdir /opt/island /opt/python /opt/packages /opt/etc
mount --bind "$ENVIRONMENT" /opt/island
mount --bind "$PYTHON" /opt/python
mount --bind "$PACKAGES" /opt/packages
cp -a /etc/. /opt/etc
mount --bind /opt/etc /etc
# The interpreter may have a shared library, which it would look for in a folder that the unit hides.
echo /opt/python/lib > /etc/ld.so.conf.d/000-test.conf
ldconfig
rm -rf /etc/systemd /etc/sysctl.d /etc/tmpfiles.d
mount -t tmpfs -o mode=755 tmpfs /mnt
touch /mnt/null /mnt/zero /mnt/full /mnt/random /mnt/urandom /mnt/tty
for each in null zero full random urandom tty; do mount --bind /dev/$each /mnt/$each; done
mkdir -m 1777 /mnt/shm
mkdir /mnt/pts /mnt/mqueue /mnt/hugepages
ln -s pts/ptmx /mnt/ptmx
mount --rbind /mnt /dev
mount -t devpts devpts /dev/pts
for each in /var/lib /var/cache /home /run; do mount -t tmpfs -o mode=755 tmpfs $each; done
for each in /tmp /var/tmp; do mount -t tmpfs -o mode=1777 tmpfs $each; done
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
umount -R /sys/fs/cgroup || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/systemd/system /run/lock
for each in sysinit basic multi-user network-online network shutdown umount; do
  printf '[Unit]\\nDefaultDependencies=no\\n' > /run/systemd/system/$each.target
done
# As at a boot: the folder with the credentials of a unit is mounted by a process of systemd's in another namespace.
mount --make-rshared /
exec "$@"
"""


def reason_against() -> str:
    """Why this machine cannot run a systemd of its own; empty if it can."""
    if os.geteuid() != 0:
        return "this test needs root, to make the namespaces of a machine"
    for tool in ("systemd-analyze", "systemd-run", "unshare", "nsenter"):
        if not shutil.which(tool):
            return f"{tool} is absent: install systemd and util-linux to run this test"
    return "" if SYSTEMD.exists() else f"{SYSTEMD} is absent: install systemd to run this test"


class SystemdMachine:
    """A machine with the virtual environment `environment` (a folder) as /opt/island.

    Its interpreter is in /opt/python, and the packages that the tests use are in `PACKAGES`. `folder` gets the log.
    """

    def __init__(self, folder: Path, environment: Path) -> None:
        folder.mkdir()
        self.log = folder / "log"
        self._cgroup = _cgroup_root() / f"island-test-{os.getpid()}"
        self._cgroup.mkdir()
        _use_python(environment, Path("/opt/python/bin"))
        variables = {
            "PATH": os.environ["PATH"],
            "ENVIRONMENT": str(environment),
            "PYTHON": sys.base_prefix,
            "PACKAGES": str(Path(msgspec.__file__).parents[1]),
            "container": "island-test",
            "SYSTEMD_PROC_CMDLINE": "systemd.unified_cgroup_hierarchy=1",
        }
        program = [str(SYSTEMD), "--system", "--unit=basic.target", "--log-target=console", "--show-status=0"]
        # A cgroup of its own, entered before the namespace is made: it is the root that this systemd sees.
        unshare = "unshare --pid --fork --kill-child --mount-proc --mount --cgroup --uts --ipc --net"
        enter = f'echo $$ > {self._cgroup}/cgroup.procs; exec {unshare} bash -c "$BOOT" boot "$@"'
        with self.log.open("wb") as log:
            self._unshare = subprocess.Popen(
                ["bash", "-c", enter, "enter", *program],
                env={**variables, "BOOT": BOOT},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self.pid = wait_for("systemd to run", self._booted, 60)
        except BaseException:
            self.close()
            raise

    def _booted(self) -> int | None:
        if self._unshare.poll() is not None:
            raise AssertionError(f"systemd did not start: {self.log.read_text('utf-8', 'replace')[-2000:]}")
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text("ascii").split()
        for child in children:
            self.pid = int(child)
            if self.run("systemctl", "is-active", "basic.target", check=False) == "active":
                return self.pid
        return None

    def run(self, *command: str, check: bool = True, seconds: float = 120, stdin: str = "") -> str:
        """Run a command in this machine as root; return its output without surrounding white space."""
        names = ["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup"]
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", *names, "--", *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        return done.stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", unit, f"--property={name}", "--value")

    def write(self, path: str, content: str) -> None:
        """Write a file in this machine, and the folders above it."""
        self.run("bash", "-c", 'mkdir -p "$(dirname "$0")" && cat > "$0"', path, stdin=content)

    def close(self) -> None:
        """End all processes of the machine, and remove its cgroup."""
        if self._unshare.poll() is None:
            self._unshare.send_signal(signal.SIGKILL)
        self._unshare.wait(30)
        # The kernel ends the other processes of the namespace; their cgroups can be removed when these are gone.
        wait_for("the processes of the machine to end", lambda: True if _remove_cgroups(self._cgroup) else None, 60)


def _cgroup_root() -> Path:
    for line in Path("/proc/self/mounts").read_text("utf-8").splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise AssertionError("no cgroup2 file system is mounted")


def _remove_cgroups(root: Path) -> bool:
    for folder, _, _ in os.walk(root, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            return False  # a process in it has not ended yet
    return True


def _use_python(environment: Path, folder: Path) -> None:
    """Let a virtual environment use the interpreter in another folder."""
    python = environment / "bin" / "python"
    name = Path(os.path.realpath(python)).name
    python.unlink()
    python.symlink_to(folder / name)
    settings = environment / "pyvenv.cfg"
    lines = settings.read_text("utf-8").splitlines()
    settings.write_text("\n".join(f"home = {folder}" if li.startswith("home") else li for li in lines) + "\n", "utf-8")
