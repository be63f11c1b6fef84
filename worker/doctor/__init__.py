"""What is wrong with this set-up, and how is it mended? Each module examines one thing, and changes nothing.

Functions called `read_…` ask a server. Functions called `judge_…` are pure: they turn what was read into findings.
"""
