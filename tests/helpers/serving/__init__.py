"""Servers, workers and jobs: in the test's own process, in processes of their own, and on the real Triton and Ray."""
