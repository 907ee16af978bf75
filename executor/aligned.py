"""Memory that direct I/O accepts: whole pages, at addresses that are multiples of a page.

Direct I/O moves whole pages between the disk and the program's memory, without a copy in the page cache. What
a caller wants starts and ends anywhere (tensors in a safetensors file do), so a buffer holds the pages around
it, and the wanted bytes are a slice of the buffer::

    file      |.page.|.page.|.page.|.page.|         offset = 1.5 pages, nbytes = 1.2 pages
                        [wanted]
    buffer           |.page.|.page.|                padded(offset, nbytes) = 2 pages
                        [slice ]                    wanted(buffer, offset, nbytes)
"""

from __future__ import annotations

import mmap
import weakref

import torch

from simulator.errors import InputError

__all__ = ["PAGE", "aligned", "padded", "pages_of", "wanted"]

PAGE = 4096  # bytes; a multiple of the block size of all common disks and file systems


def padded(offset: int, nbytes: int, alignment: int = PAGE) -> int:
    """Give the bytes [B] of the whole pages around ``nbytes`` [B] at ``offset`` [B].

    >>> padded(4096, 4096), padded(4095, 2), padded(10, 20)
    (4096, 8192, 4096)
    """
    return -(-(offset + nbytes) // alignment) * alignment - offset // alignment * alignment


def wanted(buffer: torch.Tensor, offset: int, nbytes: int) -> torch.Tensor:
    """Give the slice of a buffer, which holds whole pages, that has ``nbytes`` [B] at ``offset`` [B]."""
    return buffer[offset % PAGE : offset % PAGE + nbytes]


def pages_of(buffer: torch.Tensor, offset: int, nbytes: int) -> memoryview:
    """Give the pages of a buffer that a request reads or writes, as memory for the operating system.

    Raises:
        ValueError: the buffer is not a flat uint8 tensor in host memory, is too small, or does not start at
            a page. All that would be an error of the program that calls.
    """
    flat = buffer.dim() == 1 and buffer.is_contiguous() and buffer.dtype == torch.uint8
    if not flat or buffer.device.type != "cpu":
        raise ValueError(f"a buffer is a flat uint8 tensor on the CPU, not {buffer.dtype} {buffer.shape}")
    size = padded(offset, nbytes)
    if buffer.numel() < size:
        raise ValueError(f"{nbytes} B at offset {offset} need a buffer of {size} B, not {buffer.numel()} B")
    if buffer.data_ptr() % PAGE:
        raise ValueError(f"the buffer starts {buffer.data_ptr() % PAGE} B after a page of {PAGE} B")
    return buffer.numpy().data[:size]


def aligned(nbytes: int, alignment: int = PAGE, *, pinned: bool = False) -> torch.Tensor:
    """Allocate a buffer that starts at a multiple of ``alignment`` [B], filled with zeros.

    The memory comes from the operating system and goes back to it with the last tensor that looks at it;
    torch's own pinned memory would be rounded up to a power of two. Pages become real when first touched, or
    at once where they are pinned. Whoever starts an asynchronous copy keeps the tensor until the copy ends.

    Args:
        nbytes: Size [B].
        alignment: A multiple of ``PAGE`` [B].
        pinned: Lock the pages for copies to and from the GPU. Without CUDA this is left out.

    Returns:
        A uint8 tensor, shape ``[nbytes]``.

    Raises:
        InputError: there is not enough memory, or it cannot be pinned.
    """
    if nbytes < 0 or alignment <= 0 or alignment % PAGE:
        raise ValueError(f"cannot allocate {nbytes} B aligned to {alignment} B: use multiples of {PAGE} B")
    slack = max(alignment - mmap.PAGESIZE, 0)
    size = max(padded(0, nbytes), PAGE) + slack
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"cannot allocate {nbytes} B of host memory ({error}): use smaller buffers or raise ulimit -v"
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        _advise_huge_pages(memory)
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    if pinned and torch.cuda.is_available():
        _pin(memory, tensor.data_ptr(), size)
    skip = -tensor.data_ptr() % alignment
    return tensor[skip : skip + nbytes]


def _advise_huge_pages(memory: mmap.mmap) -> None:
    """Ask for pages of 2 MiB: a direct read locks its pages one by one, so fewer of them cost less."""
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        return  # a kernel without huge pages is only a little slower


def _pin(memory: mmap.mmap, address: int, nbytes: int) -> None:
    """Lock memory for the GPU until it is given back."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    code = int(runtime.cudaHostRegister(address, nbytes, 0))
    if code:
        raise InputError(
            f"cannot pin {nbytes} B of host memory (CUDA error {code}): "
            "use smaller buffers or raise ulimit -l"
        )
    weakref.finalize(memory, runtime.cudaHostUnregister, address)
