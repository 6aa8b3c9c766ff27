"""The device filter of pure cgroup v2: a small program in the kernel that refuses the character devices it was
given.

Imports ctypes and the standard library. cgroup v1 has a `devices` controller for this (see `cgroups`); v2
has only BPF. The program is built here, instruction by instruction, and speaks to the kernel by the bpf
system call: no compiler, no library. Facts: linux/bpf.h and Documentation/bpf (BPF_PROG_TYPE_CGROUP_DEVICE;
context {access_type, major, minor}, 1 allows, 0 refuses).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Sequence

_SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD = 5
_PROG_ATTACH = 8
_PROG_TYPE_CGROUP_DEVICE = 15
_ATTACH_CGROUP_DEVICE = 6
_ALLOW_MULTI = 2
_CHARACTER_DEVICE = 2

_LOAD_WORD, _AND, _JUMP, _JUMP_NOT_EQUAL, _MOVE, _EXIT = 0x61, 0x57, 0x05, 0x55, 0xB7, 0x95

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def deny(group_directory: str, devices: Sequence[tuple[int, int]]) -> None:
    """Refuse the (major, minor) character devices to the v2 group and everything below it, for as long as it exists.

    OSError if the kernel or the machine cannot; then nothing is attached.
    """
    program = _load(filter_program(devices))
    try:
        group = os.open(group_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _bpf(_PROG_ATTACH, struct.pack("IIII", group, program, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI))
        finally:
            os.close(group)
    finally:
        os.close(program)


def filter_program(devices: Sequence[tuple[int, int]]) -> bytes:
    """The program's instructions; it refuses what is listed and allows the rest."""
    code = [
        _instruction(_LOAD_WORD, 2, 1, 0),  # r2 = access_type: the kind of device in its lower half
        _instruction(_AND, 2, imm=0xFFFF),
        _instruction(_LOAD_WORD, 3, 1, 4),  # r3 = major
        _instruction(_LOAD_WORD, 4, 1, 8),  # r4 = minor
    ]
    tests: list[bytes] = []
    remaining = 3 * len(devices)
    for major, minor in devices:
        remaining -= 3
        tests.append(_instruction(_JUMP_NOT_EQUAL, 3, offset=2, imm=major))
        tests.append(_instruction(_JUMP_NOT_EQUAL, 4, offset=1, imm=minor))
        tests.append(_instruction(_JUMP, offset=remaining + 2))  # over the rest and over "allow"
    code.append(_instruction(_JUMP_NOT_EQUAL, 2, offset=len(tests), imm=_CHARACTER_DEVICE))
    code += tests
    code += [_instruction(_MOVE, 0, imm=1), _instruction(_EXIT)]
    code += [_instruction(_MOVE, 0, imm=0), _instruction(_EXIT)]
    return b"".join(code)


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | target, offset, imm)


def _load(program: bytes) -> int:
    instructions = ctypes.create_string_buffer(program, len(program))
    license_name = ctypes.create_string_buffer(b"Apache-2.0")
    header = struct.pack(
        "IIQQIIQII",
        _PROG_TYPE_CGROUP_DEVICE,
        len(program) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(license_name),
        0,
        0,
        0,
        0,
        0,
    )
    return _bpf(_PROG_LOAD, header)


def _bpf(command: int, attributes: bytes) -> int:
    number = _SYSCALL_NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(38, f"no device filter on {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(_syscall(ctypes.c_long(number), ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes))))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"bpf({command}): {os.strerror(error)}")
    return result
