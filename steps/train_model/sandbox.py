"""No sockets for this process and its children, by seccomp. Linux on x86-64 and arm64; elsewhere it says no.

A model that predicts needs no network. Defence in depth beside the pod's network policy, not a jail.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # of classic BPF
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2  # of prctl
# Architecture, then the numbers of: socket, socketpair, io_uring_setup (its rings reach sockets), ptrace,
# process_vm_readv, process_vm_writev (which reach other processes of the same user).
_CALLS = {
    "x86_64": (0xC000003E, (41, 53, 425, 101, 310, 311)),
    "aarch64": (0xC00000B7, (198, 199, 425, 117, 270, 271)),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def no_sockets() -> bool:
    """Refuse the calls above from here on, for good; False where this system offers no such filter."""
    known = _CALLS.get(platform.machine())
    if sys.platform != "linux" or known is None:
        return False
    architecture, calls = known
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if platform.machine() == "x86_64":  # the x32 numbers are a second door to the same calls
        steps += [(0x35, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    for call in calls:
        steps += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, _REFUSE)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(steps), code)
    refused = libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)
    return not refused
