"""The receiving end of a run, in data order: receive, verify, undo, write, commit, and recovery."""
