"""What another person gets of a run: one archive and its cards; checked, taken in again, put on the Hub."""
