"""Training and testing with MMEngine: its Runner, loops and hooks with what they lack here."""
