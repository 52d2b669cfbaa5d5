"""Proofs and measurements that take longer than a test may."""
