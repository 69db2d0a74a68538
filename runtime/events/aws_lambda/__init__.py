"""AWS Lambda events as sources: parses and answers them."""
