"""Figures, reports and Grad-CAM overlays."""
