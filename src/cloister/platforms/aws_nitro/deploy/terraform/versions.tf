terraform {
  # A validation that looks at more than its own variable needs 1.9.
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source = "hashicorp/aws"
      # 5.100 is what it was tested with.
      version = "~> 5.100"
    }
  }
}
