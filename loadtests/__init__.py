"""Load tests and benchmarks of a running service. Most import nothing of the service.

Only ``loadtests.load``, the generator behind ``warmstart load``, is part of the wheel.
"""
