"""How long a test waits for what must happen: to notice what hangs, never to judge how fast it is.

One number for all: a host that gives this machine a seventh of its two cores was seen to make a
training run of 3 s take 87, and no test may fail for that.
"""

SECONDS = 300.0
