"""Crash-state enumeration (H3): what qrep writes is recorded below it, every state that a power cut may leave is made of the record, and the shipping
recovery is run on each.

recorder.py  a filesystem that notes every write, flush and rename with its data        model.py   which states a log may leave
scenes.py    small lives of a volume that are recorded                                  oracle.py  what is true of a state; reads the bytes by itself
trial.py     one state: put there, recovered, judged                                    campaign.py  which states are tried
canaries.py  defects in the log or in recovery that the same trials must notice
"""
