"""What a job will need of disk, device and host, before it runs."""
