"""Records of events that were handled, so that each is handled once."""
