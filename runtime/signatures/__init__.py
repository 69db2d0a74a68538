"""HTTP Message Signatures (RFC 9421) with a shared secret, over requests whose bodies Content-Digest (RFC 9530) covers.

``client`` signs and needs the standard library only; ``verifier`` holds what a service demands of a signature.
"""


class SignatureError(ValueError):
    """What is wrong with a message or its signature, in words that its sender may read."""
