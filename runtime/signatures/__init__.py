"""HTTP Message Signatures (RFC 9421) with a shared secret, over requests whose bodies Content-Digest (RFC 9530) covers.

``client`` signs requests and needs the standard library only; ``verifier`` verifies them by the service's rules.
"""


class SignatureError(ValueError):
    """A message or its signature is invalid; the message says why and may be sent to the client."""
