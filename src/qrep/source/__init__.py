"""The sending end of a run, in data order: read, hash, compare, send."""
