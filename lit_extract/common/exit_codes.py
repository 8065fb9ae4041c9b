"""Exit codes of all commands."""

DONE = 0
FAILED = 1  # some models of a sweep failed; for other commands, a defect of ours, with its traceback
WRONG_INPUT = 2  # a wrong setting, file or folder; nothing computed is lost
LOOK = 3  # done, but with something to look at: non-finite rows, flagged captions, a job that does not fit the device
STOPPED = 128  # plus the number of the signal
