"""What happens to a job, where jobs and videos are kept, and what operators see of that."""
