"""All mutants, by the part of the implementation they are in. A refactoring that moves what one of them changes moves the mutant with it: a fast test
holds that each applies exactly once."""

from mutants import table_agent, table_native, table_protocol, table_storage
from mutants.mutant import DURABILITY, Mutant

MUTANTS = (*table_protocol.MUTANTS, *table_storage.MUTANTS, *table_agent.MUTANTS, *table_native.MUTANTS)

# Changes that change nothing: were one of them said to be noticed, so would everything be.
NO_OPS = (
    Mutant(
        "no-op in Python", DURABILITY, "protocol/target_machine.py", "a name that is not used anywhere",
        "RESUMABLE_FAILURES = (", "NOTHING = None\nRESUMABLE_FAILURES = (",
        ("unit/test_target_machine.py", "unit/test_target_roles.py"),
    ),
    Mutant(
        "no-op in C", DURABILITY, "_native/undo_writer.c", "a sum that is the same",
        "writer->ends[slot] = writer->next + size;", "writer->ends[slot] = size + writer->next;",
        ("native/test_undo_order.py",),
    ),
)  # fmt: skip
