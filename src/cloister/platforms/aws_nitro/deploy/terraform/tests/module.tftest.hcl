# `terraform test`: plans and applies against a mock of the AWS provider; nothing leaves this machine.

mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "111122223333" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_region" {
    defaults = { name = "eu-west-1" }
  }
  mock_data "aws_ec2_instance_type" {
    defaults = { nitro_enclaves_support = "supported", default_vcpus = 4, memory_size = 16384 }
  }
  mock_data "aws_ssm_parameter" {
    defaults = { insecure_value = "ami-0123456789abcdef0" }
  }
  mock_resource "aws_iam_instance_profile" {
    defaults = { arn = "arn:aws:iam::111122223333:instance-profile/notes-parent" }
  }
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 1 }
  }
}

variables {
  name          = "notes"
  vpc_id        = "vpc-0123456789abcdef0"
  subnet_id     = "subnet-0123456789abcdef0"
  ingress_cidrs = ["10.0.0.0/16"]
  owner_arn     = "arn:aws:iam::111122223333:role/owner"
  pcr0          = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  image         = { bucket = "images", prefix = "notes/1", public_key = "owner.pub.pem" }
  model         = { name = "notes", bucket = "models", key = "notes-1.sealed" }
  instances     = 1
}

run "instance" {
  command = apply

  assert {
    condition     = one(aws_launch_template.parent.enclave_options).enabled
    error_message = "The instance cannot run enclaves."
  }
  assert {
    condition = (
      one(aws_launch_template.parent.metadata_options).http_tokens == "required" &&
      one(aws_launch_template.parent.metadata_options).http_put_response_hop_limit == 1
    )
    error_message = "The metadata service answers without a token, or farther than the instance."
  }
  assert {
    condition     = alltrue([for each in aws_launch_template.parent.block_device_mappings : one(each.ebs).encrypted == "true"])
    error_message = "The disk is not encrypted."
  }
  assert {
    condition     = aws_launch_template.parent.key_name == null || aws_launch_template.parent.key_name == ""
    error_message = "There is an SSH key."
  }
  assert {
    condition     = length(aws_instance.parent) == 1
    error_message = "No instance."
  }
}

run "network" {
  command = apply

  variables {
    ingress_cidrs = ["10.0.0.0/16", "192.168.7.0/24"]
    port          = 9443
  }

  assert {
    condition = (
      toset([for each in aws_vpc_security_group_ingress_rule.sealed : each.cidr_ipv4]) == toset(var.ingress_cidrs) &&
      alltrue([for each in aws_vpc_security_group_ingress_rule.sealed : each.from_port == 9443 && each.to_port == 9443])
    )
    error_message = "Another way in than the agent's port from the given networks."
  }
  assert {
    condition = (
      aws_vpc_security_group_egress_rule.https.from_port == 443 && aws_vpc_security_group_egress_rule.https.to_port == 443 &&
      aws_vpc_security_group_egress_rule.https.ip_protocol == "tcp"
    )
    error_message = "Another way out than HTTPS."
  }
}

run "least_privilege" {
  command = apply

  assert {
    condition = toset(flatten([for each in jsondecode(aws_iam_role_policy.parent.policy).Statement : each.Action])) == toset([
      "s3:GetObject", "logs:CreateLogStream", "logs:PutLogEvents",
    ])
    error_message = "The role may do more than read its objects and write its log; the key lets it in by the key's policy."
  }
  assert {
    condition = toset(jsondecode(aws_iam_role_policy.parent.policy).Statement[0].Resource) == toset([
      "arn:aws:s3:::images/notes/1/notes.eif", "arn:aws:s3:::images/notes/1/measurements.json",
      "arn:aws:s3:::images/notes/1/cloister.toml", "arn:aws:s3:::images/notes/1/owner.pub.pem",
      "arn:aws:s3:::models/notes-1.sealed",
    ])
    error_message = "Other objects than the image's files and the sealed model."
  }
  assert {
    condition     = aws_cloudwatch_log_group.parent.retention_in_days == 30
    error_message = "The log is kept for ever."
  }
}

run "without_a_sealed_model" {
  command = apply

  variables {
    model     = null
    owner_arn = null
    image     = { bucket = "images", prefix = "notes/1" }
  }

  assert {
    condition     = length(jsondecode(aws_iam_role_policy.parent.policy).Statement[0].Resource) == 3
    error_message = "The role may read a model that there is not."
  }
  assert {
    condition     = !strcontains(base64decode(aws_launch_template.parent.user_data), ".sealed")
    error_message = "The instance fetches a model that there is not."
  }
}

run "no_image_yet" {
  command = apply

  variables {
    pcr0      = null
    instances = 0
  }

  assert {
    condition = (
      jsondecode(output.key_policy).Statement[1].Condition.StringEqualsIgnoreCase["kms:RecipientAttestation:PCR0"] ==
      join("", [for _ in range(96) : "f"])
    )
    error_message = "Without an image somebody would get the key."
  }
}

run "first_boot" {
  command = apply

  variables {
    enclave_memory_mib = 4096
    port               = 9443
  }

  assert {
    condition = alltrue([for text in [
      "dnf install -y aws-nitro-enclaves-cli", "memory_mib: 4096\ncpu_count: 2\n", "--platform aws-nitro", "--listen 0.0.0.0:9443",
      "s3://images/notes/1/notes.eif", "s3://models/notes-1.sealed", "/store/notes.sealed", "User=cloister",
    ] : strcontains(base64decode(aws_launch_template.parent.user_data), text)])
    error_message = "The first boot leaves something out."
  }
}

run "burstable" {
  command = plan
  variables {
    instance_type = "t3.xlarge"
  }
  expect_failures = [var.instance_type]
}

run "graviton" {
  command = plan
  variables {
    instance_type = "c7g.xlarge"
  }
  expect_failures = [var.instance_type]
}

run "two_vcpus" {
  command = plan
  variables {
    instance_type = "m6i.large"
  }
  expect_failures = [var.instance_type]
}

run "metal" {
  command = plan
  variables {
    instance_type = "m6i.metal"
  }
  expect_failures = [var.instance_type]
}

run "half_a_core" {
  command = plan
  variables {
    enclave_cpus = 3
  }
  expect_failures = [var.enclave_cpus]
}

run "odd_memory" {
  command = plan
  variables {
    enclave_memory_mib = 1025
  }
  expect_failures = [var.enclave_memory_mib]
}

run "all_cpus" {
  command = plan
  variables {
    enclave_cpus = 4
  }
  expect_failures = [aws_launch_template.parent]
}

run "all_memory" {
  command = plan
  variables {
    enclave_memory_mib = 16384
  }
  expect_failures = [aws_launch_template.parent]
}

run "debug_measurement" {
  command = plan
  variables {
    pcr0 = "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
  }
  expect_failures = [var.pcr0]
}

run "instances_without_a_measurement" {
  command = plan
  variables {
    pcr0 = null
  }
  expect_failures = [var.instances]
}

run "the_whole_internet" {
  command = plan
  variables {
    ingress_cidrs = ["0.0.0.0/0"]
  }
  expect_failures = [var.ingress_cidrs]
}

run "words_for_a_shell" {
  command = plan
  variables {
    package = "cloister'; id #"
  }
  expect_failures = [var.package]
}

run "owner_is_the_parent" {
  command = plan
  variables {
    owner_arn = "arn:aws:iam::111122223333:role/notes-parent"
  }
  expect_failures = [aws_kms_key.release]
}
