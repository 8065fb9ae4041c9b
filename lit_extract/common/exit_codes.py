"""Exit codes of all commands."""

DONE = 0
FAILED = 1  # some models of a sweep; of everything else a defect of ours, with its traceback
WRONG_INPUT = 2  # a setting, a file or a folder; nothing that was computed is lost
LOOK = 3  # done, but look at it: rows that are not finite, flagged captions, a job that does not fit the device
STOPPED = 128  # plus the number of the signal
