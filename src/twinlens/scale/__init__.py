"""Work over processes and machines: launching ranks, resumable parts, worker pools and Ray."""
