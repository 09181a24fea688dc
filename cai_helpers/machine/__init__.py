"""The machine as it is: its accelerator and precision, and the processes that share a run."""
