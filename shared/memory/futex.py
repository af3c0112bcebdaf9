"""futex(2) on a word of a shared mapping: sleep until it changes, wake whoever sleeps on it.

The kernel compares the word with the expected value under its own lock, so a store between looking and sleeping is
never missed. Waking is unconditional (about 1 us): a flag "somebody waits" would need a full fence that Python does
not have.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from typing import Any

_NUMBERS = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}
_SYSCALL = _NUMBERS.get(platform.machine(), 98)
_WAIT, _WAKE = 0, 1
_EVERYBODY = 2**31 - 1

_libc = ctypes.CDLL(None, use_errno=True)
_call = _libc.syscall
_call.restype = ctypes.c_long


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _PyBuffer(ctypes.Structure):
    """The head of CPython's Py_buffer, which is all that is needed to learn an address."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("rest", ctypes.c_byte * 128),
    )


def _address(mapping: mmap.mmap, offset: int) -> int:
    """Where a byte of the mapping lies. `ctypes.from_buffer` refuses a read-only mapping, the buffer protocol does
    not.
    """
    view = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(mapping), ctypes.byref(view), 0)
    address = int(view.buf) + offset
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
    return address


class Word:
    """A 32-bit word of a mapping that processes sleep on."""

    def __init__(self, mapping: mmap.mmap, offset: int) -> None:
        self._mapping = mapping  # keeps the address valid
        self._address: Any = ctypes.c_void_p(_address(mapping, offset))

    def wake(self) -> None:
        """Wake everybody who sleeps on it."""
        _call(_SYSCALL, self._address, _WAKE, _EVERYBODY, None, None, 0)

    def wait(self, expected: int, timeout_s: float) -> None:
        """Sleep while the word is `expected`, at most `timeout_s`. Returns early for no reason now and then."""
        whole = int(timeout_s)
        limit = _Timespec(whole, int((timeout_s - whole) * 1e9))
        _call(_SYSCALL, self._address, _WAIT, ctypes.c_uint32(expected), ctypes.byref(limit), None, 0)
