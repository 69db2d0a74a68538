"""Loads models: finds or downloads the files, converts them to a serving snapshot, plans memory, creates the engine."""
