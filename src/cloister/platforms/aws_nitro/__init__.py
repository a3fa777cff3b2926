"""AWS Nitro Enclaves on EC2, through nitro-cli."""
