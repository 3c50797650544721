"""`restore --erase` and `verify`: an image's blocks are written and compared.

job.py      the phases of a restore and of a verification, in asr's order
plan.py     an image cut into pieces to write and to verify
verify.py   comparing digests behind a copy that goes on
delta.py    --delta: only what the target does not have is sent
fanout.py   several targets at once
"""
