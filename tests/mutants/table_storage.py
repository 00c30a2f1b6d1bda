"""."""
MUTANTS = ()
