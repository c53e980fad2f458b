"""What Strandline's services say to each other.

Pure: no IO, no clock, no randomness but where a function's name says so.
Every other package may import this one; it imports none of them.
"""
