"""A web page that classifies photos with a trained run."""
