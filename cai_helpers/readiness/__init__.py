"""Is all that a run will need at hand? Tried before the first long step, cheap things first."""
