"""What it came to: the report, its targets, how far the policy has moved."""
