"""Photos from anywhere in, predictions of a trained run out."""
