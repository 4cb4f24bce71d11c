"""Star-density maps from survey images."""
