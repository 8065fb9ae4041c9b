"""A folder of this machine, seen as through NFS: a file system in user space that misbehaves on purpose.

    python network_folder.py FOLDER MOUNT_POINT SETTINGS

- What was missing when it was looked for stays missing for ``cached`` seconds, though another client has made it.
- A removed file that is open here is kept as ``.nfs…``, and its folder with it; removing that is EBUSY.
- A file that another client has removed or replaced is ESTALE to those that had opened it.
- Without ``locks`` locking is ENOLCK; with them they hold between clients. Writing more than ``quota`` bytes is EDQUOT.
"""

# ruff: noqa: PTH101, PTH102, PTH104, PTH106, PTH108, PTH208 (the calls of the system for which it stands)

import ctypes
import errno
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

HIDDEN = "/.fuse_hidden"  # what libfuse calls a removed file that is open
FLOCK = struct.Struct("@hhqqi4x")
OPEN_FILE_LOCKS = {fcntl.F_GETLK: 36, fcntl.F_SETLK: 37, fcntl.F_SETLKW: 38}  # F_OFD_…: of this open file


def why_not():
    """Why there can be no such folder here; None when there can be."""
    if sys.platform != "linux" or os.geteuid() != 0 or not Path("/dev/fuse").exists():
        return "no /dev/fuse, or not root"
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError) as error:
        return f"mfusepy: {error}; on Debian: apt-get install libfuse3-3 fuse3"
    return None


@contextmanager
def mounted(folder, point, **settings):
    """``folder`` is at ``point`` too, as a client sees it, while the body runs."""
    point.mkdir(parents=True, exist_ok=True)
    log = point.with_name(f"{point.name}.log")
    command = [sys.executable, __file__, str(folder), str(point), json.dumps(settings)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        end = time.monotonic() + 30
        while not os.path.ismount(point):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield point
    finally:
        subprocess.run(["umount", "--lazy", str(point)], check=False)
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def serve(folder, point, cached=0, locks=True, quota=None):
    import mfusepy

    class NetworkFolder(mfusepy.Operations):
        use_ns = True
        written = 0

        def real(self, path):
            return folder + path.replace(HIDDEN, "/.nfs")

        def getattr(self, path, fh=None):
            found = os.lstat(self.real(path))
            names = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks")
            times = {f"st_{kind}time": getattr(found, f"st_{kind}time_ns") for kind in "amc"}
            return {**{name: getattr(found, name) for name in names}, **times}

        def readdir(self, path, fh):
            return [".", "..", *os.listdir(self.real(path))]

        def statfs(self, path):
            found = os.statvfs(self.real(path))
            return {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}

        def open(self, path, flags):
            return os.open(self.real(path), flags & ~os.O_NOFOLLOW)

        def create(self, path, mode, flags):
            return os.open(self.real(path), flags | os.O_CREAT, mode)

        def read(self, path, size, offset, fh):
            self.refuse_stale(fh)
            return os.pread(fh, size, offset)

        def write(self, path, data, offset, fh):
            self.refuse_stale(fh)
            self.written += len(data)
            if quota is not None and self.written > quota:
                raise mfusepy.FuseOSError(errno.EDQUOT)
            return os.pwrite(fh, data, offset)

        def refuse_stale(self, fh):
            if os.fstat(fh).st_nlink == 0:
                raise mfusepy.FuseOSError(errno.ESTALE)

        def lock(self, path, fh, cmd, lock):
            if not locks:
                raise mfusepy.FuseOSError(errno.ENOLCK)
            kind, whence, start, length, _ = FLOCK.unpack(ctypes.string_at(lock, FLOCK.size))
            try:
                answer = fcntl.fcntl(fh, OPEN_FILE_LOCKS[cmd], FLOCK.pack(kind, whence, start, length, 0))
            except OSError as error:
                raise mfusepy.FuseOSError(error.errno) from None
            if cmd == fcntl.F_GETLK:
                ctypes.memmove(lock, FLOCK.pack(*FLOCK.unpack(answer)[:4], 1), FLOCK.size)
            return 0

        def truncate(self, path, length, fh=None):
            os.truncate(self.real(path) if fh is None else fh, length)

        def fsync(self, path, datasync, fh):
            os.fsync(fh)

        def release(self, path, fh):
            os.close(fh)

        def rename(self, old, new):
            os.rename(self.real(old), self.real(new))

        def unlink(self, path):
            if "/.nfs" in path:
                raise mfusepy.FuseOSError(errno.EBUSY)
            os.unlink(self.real(path))

        def mkdir(self, path, mode):
            os.mkdir(self.real(path), mode)

        def rmdir(self, path):
            os.rmdir(self.real(path))

        def chmod(self, path, mode):
            os.chmod(self.real(path), mode)

        def utimens(self, path, times=None):
            os.utime(self.real(path), ns=times)

    times = {"attr_timeout": 0, "entry_timeout": 0, "negative_timeout": cached}
    mfusepy.FUSE(NetworkFolder(), point, foreground=True, **times)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
