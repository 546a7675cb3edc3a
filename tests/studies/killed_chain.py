"""A chain as a user would run one, that kills itself where it is told to: ``killed_chain.py FOLDER WHAT``.

WHAT is how the name of a training begins; the process dies after its third step.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from company import hidden
from tiny import TRAINING, study

from tutelage.studies import Assistant, Chain


class Dying:
    def __init__(self, what):
        self.what, self.now = what, ""

    def started(self, what, total_steps, steps_done):
        self.now = what

    def advanced(self, steps_done):
        if self.now.startswith(self.what) and steps_done == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    def finished(self, what, outcome):
        pass


def whole():
    chain = Chain([Assistant("big", lambda: hidden(6)), Assistant("small", lambda: hidden(4))])
    return study(chain=chain, training={**TRAINING, "save_steps": 2}, arms=["kd"], seeds=1, together=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    whole().run(Path(sys.argv[1]), Dying(sys.argv[2]))
