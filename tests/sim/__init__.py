"""A deterministic simulation of sources, networks, a target and its disks around the shipping protocol machines.

world: time, tasks, processes. disk: devices that lose, tear and fail. net: connections that cut, delay and lie. source, target: drivers of
the machines. oracle: what must hold, in code of its own. scenario: what happens, drawn from one seed. Everything that happens comes from
one random source and one heap, so that a seed is a run.
"""
