"""A trained run at work: photos from anywhere in, predictions out."""
