"""Methods of token reduction compared at equal reference time: the arena's table, its cells and its report."""
