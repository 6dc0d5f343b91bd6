"""The contract between host and device: agent.proto and the code generated from it.

PROTOCOL_VERSION is raised whenever a message changes its meaning. Host and agent refuse each
other when theirs differ, naming both.
"""

PROTOCOL_VERSION = 1
