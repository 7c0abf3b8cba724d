"""What a script of your own gets from Trainyard, in two lines:

    run = trainyard.init()
    run.report(step=step, total=steps, loss=loss, tokens=tokens)

Needs Python 3.9 and nothing else. Outside a run nothing is reported, so the same script runs
anywhere.
"""

from trainyard.run import Run, init

__all__ = ["Run", "init"]
