"""Events that AWS Lambda hands over."""
