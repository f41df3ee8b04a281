"""Filters of system calls for processes of our own: what to refuse, and what alone to allow. Linux on x86-64 and ARM64.

Called inside worker processes only, never in the host. A filter is classic BPF, installed through prctl after
PR_SET_NO_NEW_PRIVS; it cannot be taken off again, and whatever is forked afterwards has it as well. What is refused
fails with EPERM, as if the user lacked the right.
"""

import ctypes
import platform
import struct
import sys

PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_X32 = 0x40000000
_WRITING = 0x3 | 0x40 | 0x200  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
_ARCHES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# name: (x86-64, ARM64); None where the machine has no such call. From the kernel's tables.
_Numbers = dict[str, tuple[int | None, int | None]]

_ALLOWED: _Numbers = {
    "read": (0, 63), "readv": (19, 65), "write": (1, 64), "writev": (20, 66), "close": (3, 57), "fstat": (5, 80),
    "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216),
    "madvise": (28, 233), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "futex": (202, 98), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101), "gettimeofday": (96, 169),
    "time": (201, None), "times": (100, 153), "getrusage": (98, 165), "getpid": (39, 172), "getppid": (110, 173),
    "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getrandom": (318, 278), "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "uname": (63, 160), "restart_syscall": (219, 128),
    "set_robust_list": (273, 99), "rseq": (334, 293), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip

_REFUSED: _Numbers = {
    # the network
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "accept": (43, 202), "accept4": (288, 242),
    "bind": (49, 200), "listen": (50, 201), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # other programs, and other processes' insides
    "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    "process_madvise": (440, 440), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "setsid": (112, 157), "setpgid": (109, 154),
    # writing files; open and openat are looked at below
    "creat": (85, None), "openat2": (437, 437), "open_by_handle_at": (304, 265), "mkdir": (83, None),
    "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37), "symlink": (88, None),
    "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33), "chmod": (90, None), "fchmod": (91, 52),
    "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None),
    "fchownat": (260, 54), "truncate": (76, 45), "ftruncate": (77, 46), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "memfd_create": (319, 279),
    # the system itself, and doors past this filter
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "setns": (308, 268), "unshare": (272, 97), "init_module": (175, 105),
    "finit_module": (313, 273), "kexec_load": (246, 104), "reboot": (169, 142), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "sethostname": (170, 161), "swapon": (167, 224), "acct": (163, 89),
    "fsopen": (430, 430), "fsmount": (432, 432), "open_tree": (428, 428), "move_mount": (429, 429),
}  # fmt: skip

_REFUSED_WITHOUT_CHILDREN: _Numbers = {
    "fork": (57, None), "vfork": (58, None), "clone": (56, 220), "clone3": (435, 435), "kill": (62, 129),
    "tkill": (200, 130), "prlimit64": (302, 261),
}  # fmt: skip

_OPENS: _Numbers = {"open": (2, None), "openat": (257, 56)}
_FLAGS_ARGUMENT = {"open": 1, "openat": 2}


def is_supported() -> bool:
    """Say whether filters can be made for this machine; whether the kernel takes them only installing one tells."""
    return sys.platform == "linux" and platform.machine() in _ARCHES and sys.maxsize > 2**32


def refuse_harm(*, children: bool) -> bool:
    """Refuse this process the network, other programs, files' writing and, but for `children`, forks and threads.

    Returns whether the kernel took the filter.
    """
    if not is_supported():
        return False
    column = _ARCHES[platform.machine()][1]
    refused = _REFUSED if children else {**_REFUSED, **_REFUSED_WITHOUT_CHILDREN}
    steps = [
        step
        for numbers in refused.values()
        if (number := numbers[column]) is not None
        for step in ((_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE))
    ]
    for name, numbers in _OPENS.items():
        if (number := numbers[column]) is not None:
            steps += [
                (_EQUAL, 0, 4, number),
                (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * _FLAGS_ARGUMENT[name]),
                (_ANY_BIT, 0, 1, _WRITING),
                (_RETURN, 0, 0, _REFUSE),
                (_RETURN, 0, 0, _ALLOW),
            ]
    return _install([*steps, (_RETURN, 0, 0, _ALLOW)])


def allow_computing_only() -> bool:
    """Allow this process to compute, to sleep, and to read and write what is open already; refuse all else.

    Returns whether the kernel took the filter.
    """
    if not is_supported():
        return False
    column = _ARCHES[platform.machine()][1]
    steps = [
        step
        for numbers in _ALLOWED.values()
        if (number := numbers[column]) is not None
        for step in ((_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW))
    ]
    return _install([*steps, (_RETURN, 0, 0, _REFUSE)])


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))


def _install(steps: list[tuple[int, int, int, int]]) -> bool:
    arch = _ARCHES[platform.machine()][0]
    head = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    packed = b"".join(struct.pack("HBBI", *step) for step in [*head, *steps])
    code = ctypes.create_string_buffer(packed, len(packed))
    program = _Program(len(packed) // 8, ctypes.addressof(code))
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return False
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0) == 0
