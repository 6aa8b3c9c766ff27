"""The CUDA driver through ctypes: just the calls of the check, on `libcuda.so.1`, with kernels as PTX text.

Imported by the child processes of the check alone, because a fault or a hang stays with the process that called.
Every method returns the driver's result code, with its values where it has any; nothing raises but a missing library.
"""

from __future__ import annotations

import ctypes
import uuid as uuids
from ctypes import byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p

MULTIPROCESSORS, CAPABILITY_MAJOR, CAPABILITY_MINOR, MPS_ENABLED = 16, 75, 76, 133
MEM_ATTACH_GLOBAL = 1
BLOCK_THREADS = 256

#: `burn` keeps its multiprocessor busy for so many rounds; `crash` writes to an address that no process has.
PTX = b"""
.version 7.0
.target sm_70
.address_size 64

.visible .entry burn(.param .u64 p_out, .param .u32 p_rounds)
{
    .reg .pred %p<2>;
    .reg .f32 %f<3>;
    .reg .b32 %r<3>;
    .reg .b64 %rd<3>;

    ld.param.u64 %rd1, [p_out];
    ld.param.u32 %r1, [p_rounds];
    cvta.to.global.u64 %rd2, %rd1;
    mov.u32 %r2, 0;
    mov.f32 %f1, 0f3F800000;
    mov.f32 %f2, 0f3F000000;
BURN:
    fma.rn.f32 %f1, %f1, %f2, %f2;
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p1, %r2, %r1;
    @%p1 bra BURN;
    st.global.f32 [%rd2], %f1;
    ret;
}

.visible .entry crash()
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<2>;

    mov.u64 %rd1, 16;
    mov.u32 %r1, 1;
    st.global.u32 [%rd1], %r1;
    ret;
}
"""


class LockArgs(ctypes.Structure):
    """CUcheckpointLockArgs of cuda.h 13.0."""

    _fields_ = (("timeout_ms", c_uint), ("reserved0", c_uint), ("reserved1", c_uint64 * 7))


class Driver:
    """The driver API on the first visible device. Raises OSError where libcuda.so.1 cannot be loaded."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libcuda.so.1")
        self._device = c_int()
        self._context = c_void_p()
        self._module = c_void_p()
        self._scratch = c_uint64()

    def call(self, name: str, *arguments: object) -> int:
        """The result code of one driver call; 500 (NOT_FOUND) where this driver has no such call."""
        function = getattr(self._lib, name, None)
        if function is None:
            return 500
        function.restype = c_int
        return int(function(*arguments))

    def init(self) -> int:
        return self.call("cuInit", c_uint(0))

    def version(self) -> int:
        value = c_int()
        self.call("cuDriverGetVersion", byref(value))
        return value.value

    def devices(self) -> int:
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        return count.value

    def open_device(self) -> int:
        return self.call("cuDeviceGet", byref(self._device), c_int(0))

    def uuid(self) -> str:
        raw = (c_char * 16)()
        if self.call("cuDeviceGetUuid_v2", raw, self._device) != 0:
            self.call("cuDeviceGetUuid", raw, self._device)
        return f"GPU-{uuids.UUID(bytes=raw.raw)}"

    def name(self) -> str:
        text = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", text, c_int(256), self._device)
        return text.value.decode("utf-8", "replace")

    def attribute(self, number: int) -> int | None:
        value = c_int()
        return (
            value.value if self.call("cuDeviceGetAttribute", byref(value), c_int(number), self._device) == 0 else None
        )

    def total_bytes(self) -> int:
        total = c_size_t()
        self.call("cuDeviceTotalMem_v2", byref(total), self._device)
        return total.value

    def open_context(self) -> int:
        return self.call("cuDevicePrimaryCtxRetain", byref(self._context), self._device) or self.call(
            "cuCtxSetCurrent", self._context
        )

    def memory(self) -> tuple[int, int, int]:
        """Result code, free bytes, total bytes."""
        free, total = c_size_t(), c_size_t()
        code = self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return code, free.value, total.value

    def alloc(self, size: int, *, managed: bool = False) -> tuple[int, int]:
        """Result code and address."""
        pointer = c_uint64()
        if managed:
            code = self.call("cuMemAllocManaged", byref(pointer), c_size_t(size), c_uint(MEM_ATTACH_GLOBAL))
        else:
            code = self.call("cuMemAlloc_v2", byref(pointer), c_size_t(size))
        return code, pointer.value

    def free(self, pointer: int) -> int:
        return self.call("cuMemFree_v2", c_uint64(pointer))

    def fill(self, pointer: int, size: int, word: int) -> int:
        """Write `word` over the memory and wait for it."""
        code = self.call("cuMemsetD32_v2", c_uint64(pointer), c_uint(word), c_size_t(size // 4))
        return code or self.synchronize()

    def word(self, pointer: int) -> tuple[int, int]:
        """Result code and the 32-bit word at the address."""
        value = c_uint()
        code = self.call("cuMemcpyDtoH_v2", byref(value), c_uint64(pointer), c_size_t(4))
        return code, value.value

    def synchronize(self) -> int:
        return self.call("cuCtxSynchronize")

    def load_kernels(self) -> int:
        """Compile the PTX for this card, once."""
        if self._module:
            return 0
        code, self._scratch.value = self.alloc(4096)
        return code or self.call("cuModuleLoadData", byref(self._module), c_char_p(PTX))

    def burn(self, blocks: int, rounds: int) -> int:
        """Run the busy kernel and wait for its end."""
        return self._launch(b"burn", blocks, c_uint64(self._scratch.value), c_uint(rounds))

    def crash(self) -> int:
        """Run the faulting kernel and wait: the result is the fault."""
        return self._launch(b"crash", 1)

    def _launch(self, kernel: bytes, blocks: int, *values: c_uint64 | c_uint) -> int:
        function = c_void_p()
        code = self.call("cuModuleGetFunction", byref(function), self._module, c_char_p(kernel))
        if code != 0:
            return code
        parameters = (c_void_p * max(1, len(values)))(*(ctypes.addressof(value) for value in values))
        sizes = [c_uint(number) for number in (blocks, 1, 1, BLOCK_THREADS, 1, 1)]
        code = self.call("cuLaunchKernel", function, *sizes, c_uint(0), c_void_p(), parameters, c_void_p())
        return code or self.synchronize()

    def process_state(self, pid: int) -> tuple[int, int]:
        """Result code, and 0 running, 1 locked, 2 checkpointed, 3 failed."""
        state = c_int(-1)
        code = self.call("cuCheckpointProcessGetState", c_int(pid), byref(state))
        return code, state.value

    def process_lock(self, pid: int, timeout_ms: int) -> int:
        return self.call("cuCheckpointProcessLock", c_int(pid), byref(LockArgs(timeout_ms)))

    def process_checkpoint(self, pid: int) -> int:
        return self.call("cuCheckpointProcessCheckpoint", c_int(pid), c_void_p())

    def process_restore(self, pid: int) -> int:
        return self.call("cuCheckpointProcessRestore", c_int(pid), c_void_p())

    def process_unlock(self, pid: int) -> int:
        return self.call("cuCheckpointProcessUnlock", c_int(pid), c_void_p())
