"""Response cache: stores whole generated answers and replays them to identical requests."""
