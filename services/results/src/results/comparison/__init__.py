"""The comparison of answers: what differs between regions, models and times, and how sure one can be.

Pure: answers in, numbers and sentences out; no I/O, no clock, and randomness only from seeds that are derived from
names. Needs numpy, so services import it when the first comparison is asked for. ``docs/comparison.md`` explains it.
"""
