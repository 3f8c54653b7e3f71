"""The pure part of Tessera: values and decisions.

Facts come in as frozen dataclasses, decisions go out as frozen dataclasses. Nothing in here reads a
clock, draws a random number, opens a file or a socket: time, randomness and identity are arguments.
"""

__version__ = "0.1.0"
