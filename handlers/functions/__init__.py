"""What functions of clouds share: the event loop and Lambda's HTTP events."""
