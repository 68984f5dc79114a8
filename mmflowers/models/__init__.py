"""What of a network runs differently here than in its library: the same numbers, sooner."""
