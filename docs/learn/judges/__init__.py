"""The checks of each exercise."""
