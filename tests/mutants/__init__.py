"""Seeded defects in the implementation, and whether our tests notice them (H15): table.py has them, runner.py tries them.

    cd tests && python -m mutants                    # all of them
    cd tests && python -m mutants --only NAME,NAME -v
"""
