"""Crash-state enumeration (H3): what qrep writes is recorded below it, every state that a power cut may leave is made of the record, and the shipping
recovery is run on each.

recorder.py  a filesystem that notes every write, flush and rename with its data    model.py     which states a log may leave
scenes.py    small lives of a volume that are recorded                              states.py    which of them are tried at each place
trial.py     one state: put there, recovered, judged                                harness.py   all states of a scene, of one crash and of two
told.py      what is logged and printed meanwhile                                   undofile.py  a reader of undo files of its own
canaries.py  defects in the log or in recovery that the same trials must notice     again.py     a state that failed, once more
"""
