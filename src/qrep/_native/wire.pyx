"""Frames of a data connection, for the cold paths, the simulator and tests; the lanes use the C of wire.h directly.

Sizes and offsets are bytes. What a peer sent is checked in full before any of it is returned.
"""

from collections import namedtuple

from cpython.buffer cimport Py_buffer, PyBuffer_Release
from libc.errno cimport EBADMSG, ESTALE
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from .disk cimport qrep_leaf_page_offset, qrep_leaf_page_size
from .views cimport view_bytes

cdef enum:
    DIGEST_SIZE = 32

VERSION = QREP_WIRE_VERSION
HEADER_SIZE = sizeof(qrep_frame_header)
RUN_SIZE = sizeof(qrep_wire_run)
DATA_MAX = QREP_FRAME_DATA_MAX
RUNS_MAX = QREP_FRAME_RUNS_MAX
FULL, RUNS, ZERO, END = QREP_FRAME_FULL, QREP_FRAME_RUNS, QREP_FRAME_ZERO, QREP_FRAME_END
LAST, VALUE, PARTS, PACKED = QREP_FRAME_LAST, QREP_FRAME_VALUE, QREP_FRAME_PARTS, QREP_FRAME_PACKED
RUN_ZERO, RUN_COPY = QREP_RUN_ZERO, QREP_RUN_COPY
ANSWER = QREP_FRAME_ANSWER  # in the connection number of what the target says

# value: the granule's chaining value once the frame is applied, or None. span: granules of a ZERO frame; bytes once unpacked of a PACKED one.
# copy_leaves: leaves of a RUNS frame that are copies.
Frame = namedtuple("Frame", "kind flags granule first_leaf run_count data_size span digest value sequence copy_leaves")
Run = namedtuple("Run", "first count zero copy_of", defaults=(None,))  # copy_of: the leaf that the first is a copy of, or None


class FrameDamaged(ValueError):
    """The tag does not match, or this is no frame of a version we speak: nothing in it can be believed (EBADMSG)."""


class FrameStale(ValueError):
    """A sound frame of another attempt, session, connection or place in the sequence (ESTALE)."""


class FrameInvalid(ValueError):
    """A sound frame of ours whose fields make no sense for this volume (EPROTO)."""


cdef class Geometry:
    """The shape of a volume: its size, leaf and granule, checked. Raises ValueError if they cannot be."""

    def __init__(self, uint64_t size, uint32_t leaf_size, uint32_t granule_size):
        cdef qrep_geometry geometry
        geometry.size, geometry.leaf_size, geometry.granule_size = size, leaf_size, granule_size
        if qrep_geometry_check(&geometry):
            raise ValueError(
                f"geometry: a volume of {size} bytes with leaves of {leaf_size} and granules of {granule_size} cannot be; "
                "leaf 4 KiB to 1 MiB, granule at least two leaves and at most 64 MiB, both powers of two, "
                "size at least two leaves and a multiple of 512")
        self.geometry = geometry

    @property
    def size(self):
        return self.geometry.size

    @property
    def leaf_size(self):
        return self.geometry.leaf_size

    @property
    def granule_size(self):
        return self.geometry.granule_size

    @property
    def granules(self):
        return qrep_granules(&self.geometry)

    @property
    def leaf_page_size(self):
        """Bytes of a granule's leaf page in the map's `leaves` file."""
        return qrep_leaf_page_size(self.geometry.leaf_size, self.geometry.granule_size)

    def check_granule(self, uint64_t granule):
        if granule >= qrep_granules(&self.geometry):
            raise ValueError(f"granule: {granule} of a volume that has {self.granules}")

    def granule_bytes(self, uint64_t granule):
        """Bytes of a granule; the last one may be short."""
        self.check_granule(granule)
        return qrep_granule_bytes(&self.geometry, granule)

    def granule_leaves(self, uint64_t granule):
        """Leaves of a granule, the short one counted."""
        self.check_granule(granule)
        return qrep_granule_leaves(&self.geometry, granule)

    def leaf_page_offset(self, uint64_t granule, int slot):
        """Where slot 0 or 1 of a granule's leaf page lies in the map's `leaves` file."""
        self.check_granule(granule)
        if slot not in (0, 1):
            raise ValueError(f"slot: {slot} is not 0 or 1")
        return qrep_leaf_page_offset(self.geometry.leaf_size, self.geometry.granule_size, granule, slot)

    def __eq__(self, other):
        if not isinstance(other, Geometry):
            return NotImplemented
        return (self.size, self.leaf_size, self.granule_size) == (other.size, other.leaf_size, other.granule_size)

    def __hash__(self):
        return hash((self.size, self.leaf_size, self.granule_size))

    def __repr__(self):
        return f"Geometry(size={self.size}, leaf_size={self.leaf_size}, granule_size={self.granule_size})"


cdef int fill_state(qrep_wire_state *state, Geometry geometry, uint64_t attempt, uint64_t session, uint32_t connection,
                    bytes key, object features) except -1:
    if len(key) != DIGEST_SIZE:
        raise ValueError(f"key: {len(key)} bytes, not {DIGEST_SIZE}")
    memset(state, 0, sizeof(qrep_wire_state))
    state.geometry = geometry.geometry
    state.attempt, state.session, state.connection = attempt, session, connection
    feature_bits(features, &state.features)
    memcpy(state.key, <const uint8_t *>key, DIGEST_SIZE)
    return 0


cdef int copy_digest(uint8_t *target, object digest, str what) except -1:
    cdef bytes exact = bytes(digest)
    if len(exact) != DIGEST_SIZE:
        raise ValueError(f"{what}: {len(exact)} bytes, not {DIGEST_SIZE}")
    memcpy(target, <const uint8_t *>exact, DIGEST_SIZE)
    return 0


cdef class FrameWriter:
    """Makes the frames of one direction of one connection, in sequence. Raises ValueError for what a reader would refuse.

    features: names of what both ends know. packed, of a frame: how many bytes its data_size bytes of data take as they travel, 0: just those.
    """

    def __init__(self, Geometry geometry not None, uint64_t attempt, uint64_t session, uint32_t connection, bytes key not None, features=()):
        fill_state(&self.state, geometry, attempt, session, connection, key, features)

    cdef int seal(self, qrep_frame_header *header, qrep_wire_run *runs, object digest, unsigned flags, object value, uint32_t packed) except -1:
        cdef qrep_wire_state before = self.state
        if digest is not None:
            copy_digest(header.digest, digest, "digest")
        header.flags = flags
        if packed:
            header.flags |= QREP_FRAME_PACKED
            header.span, header.data_size = header.data_size, packed
        if value is not None:
            copy_digest(header.granule_value, value, "value")
            header.flags |= QREP_FRAME_VALUE
        elif flags & QREP_FRAME_VALUE:
            raise ValueError("value: flagged, but not given")
        qrep_frame_seal(header, &self.state)
        if qrep_frame_check(header, &before) or (runs != NULL and qrep_runs_check(header, runs, &self.state.geometry)):
            self.state.sequence -= 1
            raise FrameInvalid(f"frame of granule {header.granule}: its fields make no sense for this volume")
        return 0

    def full(self, uint64_t granule, uint32_t first_leaf, uint32_t data_size, digest, unsigned flags=0, value=None, uint32_t packed=0):
        """The header of a frame whose data is one node of the tree: an aligned power of two of leaves."""
        cdef qrep_frame_header header
        memset(&header, 0, sizeof(header))
        header.kind, header.granule = QREP_FRAME_FULL, granule
        header.first_leaf, header.data_size = first_leaf, data_size
        self.seal(&header, NULL, digest, flags, value, packed)
        return (<const uint8_t *>&header)[:sizeof(header)]

    def runs(self, uint64_t granule, runs, uint32_t data_size, digest, unsigned flags=0, value=None, uint32_t packed=0):
        """The header and run table of a frame. runs: (first, count, zero) or a Run each, in leaves, ascending."""
        cdef qrep_frame_header header
        cdef qrep_wire_run *table
        cdef size_t count, i
        runs = list(runs)
        count = len(runs)
        if not 1 <= count <= QREP_FRAME_RUNS_MAX:
            raise FrameInvalid(f"runs: {count}, not 1 to {RUNS_MAX}")
        memset(&header, 0, sizeof(header))
        header.kind, header.granule = QREP_FRAME_RUNS, granule
        header.run_count, header.data_size = count, data_size
        table = <qrep_wire_run *>calloc(count, sizeof(qrep_wire_run))
        if table == NULL:
            raise MemoryError()
        try:
            for i, (first, leaves, zero, copy_of) in enumerate(Run(*run) for run in runs):
                if not 0 < leaves < (QREP_RUN_COPY if copy_of is None else 1 << QREP_RUN_FROM_SHIFT):
                    raise FrameInvalid(f"runs: a run of {leaves} leaves")
                table[i].first = first
                table[i].count = leaves | (QREP_RUN_ZERO if zero else 0)
                if copy_of is not None:
                    if not 0 <= copy_of < 1 << 14:
                        raise FrameInvalid(f"runs: a copy of leaf {copy_of}")
                    table[i].count |= QREP_RUN_COPY | <uint32_t>copy_of << QREP_RUN_FROM_SHIFT
                    header.copy_leaves += <uint32_t>leaves
            self.seal(&header, table, digest, flags, value, packed)
            return (<const uint8_t *>&header)[:sizeof(header)] + (<const uint8_t *>table)[:count * sizeof(qrep_wire_run)]
        finally:
            free(table)

    def zero(self, uint64_t granule, uint32_t span, unsigned flags=0, value=None):
        """The header that says `span` whole granules are zero. A value makes sense for one granule only."""
        cdef qrep_frame_header header
        memset(&header, 0, sizeof(header))
        header.kind, header.granule, header.span = QREP_FRAME_ZERO, granule, span
        self.seal(&header, NULL, None, flags, value, 0)
        return (<const uint8_t *>&header)[:sizeof(header)]

    def end(self):
        """The header that ends this direction of the connection."""
        cdef qrep_frame_header header
        memset(&header, 0, sizeof(header))
        header.kind = QREP_FRAME_END
        self.seal(&header, NULL, None, 0, None, 0)
        return (<const uint8_t *>&header)[:sizeof(header)]


cdef class FrameReader:
    """Checks the frames of one direction of one connection, in sequence. After an error the connection is to be closed. features: as of FrameWriter."""

    def __init__(self, Geometry geometry not None, uint64_t attempt, uint64_t session, uint32_t connection, bytes key not None, features=()):
        fill_state(&self.state, geometry, attempt, session, connection, key, features)

    def header(self, data):
        """Frame of a received header of HEADER_SIZE bytes. Raises FrameDamaged, FrameStale or FrameInvalid."""
        cdef qrep_frame_header header
        cdef bytes exact = bytes(data)
        cdef int rc
        if len(exact) != sizeof(header):
            raise ValueError(f"header: {len(exact)} bytes, not {HEADER_SIZE}")
        memcpy(&header, <const uint8_t *>exact, sizeof(header))
        rc = qrep_frame_check(&header, &self.state)
        if rc == -EBADMSG:
            raise FrameDamaged(
                f"frame {self.state.sequence} of connection {self.state.connection}: tag, magic or version is wrong")
        if rc == -ESTALE:
            raise FrameStale(
                f"frame of attempt {header.attempt:#x} session {header.session} connection {header.connection} sequence "
                f"{header.sequence}, but this is attempt {self.state.attempt:#x} session {self.state.session} connection "
                f"{self.state.connection} and its next is {self.state.sequence}")
        if rc:
            raise FrameInvalid(
                f"frame {header.sequence} of connection {header.connection}: kind {header.kind} flags {header.flags:#x} "
                f"granule {header.granule} first_leaf {header.first_leaf} runs {header.run_count} data {header.data_size} "
                f"span {header.span} make no sense for {self.state.geometry.size} bytes in leaves of "
                f"{self.state.geometry.leaf_size} and granules of {self.state.geometry.granule_size}")
        value = header.granule_value[:DIGEST_SIZE] if header.flags & QREP_FRAME_VALUE else None
        is_runs = header.kind == QREP_FRAME_RUNS
        return Frame(header.kind, header.flags, header.granule, 0 if is_runs else header.first_leaf, header.run_count, header.data_size,
                     header.span, header.digest[:DIGEST_SIZE], value, header.sequence, header.copy_leaves if is_runs else 0)

    def runs(self, frame, data):
        """The run table of a RUNS frame, `frame` as header() gave it: a list of Run. Raises FrameInvalid."""
        cdef qrep_frame_header header
        cdef Py_buffer view
        cdef qrep_wire_run *table = NULL
        cdef size_t i
        if frame.kind != QREP_FRAME_RUNS or not 1 <= frame.run_count <= QREP_FRAME_RUNS_MAX:
            raise ValueError(f"runs: a frame of kind {frame.kind} with {frame.run_count} runs has no run table")
        if frame.granule >= qrep_granules(&self.state.geometry):
            raise ValueError(f"runs: no granule {frame.granule} in this volume")
        memset(&header, 0, sizeof(header))
        header.granule, header.run_count, header.data_size = frame.granule, frame.run_count, frame.data_size
        header.flags, header.span = frame.flags, frame.span
        header.copy_leaves = frame.copy_leaves
        view_bytes(data, &view, False, "runs")
        try:
            if <size_t>view.len != header.run_count * sizeof(qrep_wire_run):
                raise ValueError(f"runs: {view.len} bytes, but {header.run_count} runs need {header.run_count * RUN_SIZE}")
            table = <qrep_wire_run *>calloc(header.run_count, sizeof(qrep_wire_run))
            if table == NULL:
                raise MemoryError()
            memcpy(table, view.buf, view.len)
            if qrep_runs_check(&header, table, &self.state.geometry):
                raise FrameInvalid(
                    f"frame {frame.sequence}: runs that overlap, leave granule {frame.granule}, copy what is not there or do not "
                    f"carry {qrep_frame_bytes(&header)} bytes")
            return [Run(table[i].first, qrep_run_leaves(&table[i]), bool(table[i].count & QREP_RUN_ZERO),
                        qrep_run_from(&table[i]) if table[i].count & QREP_RUN_COPY else None) for i in range(header.run_count)]
        finally:
            free(table)
            PyBuffer_Release(&view)


def manifest(marked, states, values):
    """(count, digest of 32 bytes) of what an attempt sent or applied; both ends must agree on it before a commit.

    marked, states: a byte per granule. values: 32 bytes per granule. Releases the GIL.
    """
    cdef Py_buffer mark_view, state_view, value_view
    cdef uint64_t count = 0
    cdef uint8_t digest[DIGEST_SIZE]
    view_bytes(marked, &mark_view, False, "marked")
    try:
        view_bytes(states, &state_view, False, "states")
        try:
            view_bytes(values, &value_view, False, "values")
            try:
                if state_view.len != mark_view.len or value_view.len != mark_view.len * DIGEST_SIZE:
                    raise ValueError(
                        f"manifest: {mark_view.len} marks need as many states and {mark_view.len * DIGEST_SIZE} bytes of "
                        f"values, not {state_view.len} and {value_view.len}")
                with nogil:
                    qrep_manifest(<const uint8_t *>mark_view.buf, <const uint8_t *>state_view.buf,
                                  <const uint8_t *>value_view.buf, mark_view.len, &count, digest)
            finally:
                PyBuffer_Release(&value_view)
        finally:
            PyBuffer_Release(&state_view)
    finally:
        PyBuffer_Release(&mark_view)
    return count, digest[:DIGEST_SIZE]
