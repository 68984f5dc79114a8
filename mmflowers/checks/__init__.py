"""Everything that can be known to be wrong before training starts, said all at once. Imports no torch by itself."""
