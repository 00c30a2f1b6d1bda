"""The pool's rules about who owns a slot."""

import ctypes
import gc

import pytest

from qrep._native.buffers import BufferPool, Slot


def address(slot):
    return ctypes.addressof(ctypes.c_char.from_buffer(slot))


def test_slots_are_aligned_distinct_and_zero():
    pool = BufferPool(12288, 5)
    slots = [pool.lease_nowait() for _ in range(5)]
    starts = sorted(address(slot) for slot in slots)
    assert all(start % 4096 == 0 for start in starts)
    assert [b - a for a, b in zip(starts, starts[1:])] == [12288] * 4
    assert all(bytes(slot) == bytes(12288) for slot in slots)
    assert pool.lease_nowait() is None and pool.free == 0


def test_a_viewed_slot_is_not_recycled():
    pool = BufferPool(4096, 1)
    slot = pool.lease_nowait()
    first, second = memoryview(slot), memoryview(slot)
    assert slot.views == 2
    first.release()
    with pytest.raises(BufferError, match="1 views"):
        slot.give_back()
    assert pool.lease_nowait() is None
    second.release()
    slot.give_back()
    slot.give_back()  # harmless
    assert pool.free == 1
    with pytest.raises(BufferError, match="given back"):
        memoryview(slot)


def test_a_view_keeps_slot_pool_and_memory_alive():
    pool = BufferPool(4096, 1)
    view = memoryview(pool.lease_nowait())
    view[:5] = b"alive"
    del pool
    gc.collect()
    assert view[:5] == b"alive"


def test_a_slot_that_is_dropped_goes_home():
    pool = BufferPool(4096, 1)
    slot = pool.lease_nowait()
    view = memoryview(slot)
    del slot
    gc.collect()
    assert pool.free == 0
    del view
    assert pool.free == 1


def test_leaving_a_block_with_a_view_left_is_an_error():
    pool = BufferPool(4096, 1)
    with pytest.raises(BufferError), pool.lease_nowait() as slot:
        view = memoryview(slot)
    view.release()
    slot.give_back()
    assert pool.free == 1


@pytest.mark.parametrize(("slot_size", "slots"), [(0, 1), (4095, 1), (4097, 1), (4096, 0), (1 << 46, 2)])
def test_shapes_that_cannot_be_are_refused(slot_size, slots):
    with pytest.raises(ValueError, match="no pool has"):
        BufferPool(slot_size, slots)


def test_slots_cannot_be_made_by_hand():
    with pytest.raises(TypeError):
        Slot()
