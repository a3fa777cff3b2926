data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

data "aws_ec2_instance_type" "parent" {
  instance_type = var.instance_type
}

data "aws_ssm_parameter" "ami" {
  count = var.ami_id == null ? 1 : 0
  name  = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
}

locals {
  types     = jsondecode(file("${path.module}/instance_types.json"))
  partition = data.aws_partition.current.partition
  account   = data.aws_caller_identity.current.account_id
  # Written out, because the key's policy names the role and the role must not wait for the key.
  role_arn = "arn:${local.partition}:iam::${local.account}:role/${var.name}-parent"
  files    = concat(["${var.name}.eif", "measurements.json", "cloister.toml"], var.image.public_key == null ? [] : [var.image.public_key])
  objects = concat(
    [for file in local.files : "arn:${local.partition}:s3:::${var.image.bucket}/${var.image.prefix}/${file}"],
    var.model == null ? [] : ["arn:${local.partition}:s3:::${var.model.bucket}/${var.model.key}"],
  )
}

# --- the parent's role: its own objects and its own log, nothing else; the key lets it in by the key's policy alone

resource "aws_iam_role" "parent" {
  name = "${var.name}-parent"
  tags = var.tags
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_role_policy" "parent" {
  name = "${var.name}-parent"
  role = aws_iam_role.parent.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "ImageAndSealedModel"
        Effect   = "Allow"
        Action   = ["s3:GetObject"]
        Resource = local.objects
      },
      {
        Sid      = "OwnLog"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = ["arn:${local.partition}:logs:${data.aws_region.current.name}:${local.account}:log-group:${local.log_group}:*"]
      },
    ]
  })
}

resource "aws_iam_instance_profile" "parent" {
  name = "${var.name}-parent"
  role = aws_iam_role.parent.name
  tags = var.tags
}

# --- network: sealed bytes in, TLS out; no SSH

resource "aws_security_group" "parent" {
  name        = "${var.name}-parent"
  description = "Sealed requests to the parent agent, HTTPS out"
  vpc_id      = var.vpc_id
  tags        = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "sealed" {
  for_each          = toset(var.ingress_cidrs)
  security_group_id = aws_security_group.parent.id
  description       = "Sealed requests"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = var.port
  to_port           = var.port
}

resource "aws_vpc_security_group_egress_rule" "https" {
  security_group_id = aws_security_group.parent.id
  description       = "AWS KMS, S3, CloudWatch, packages"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

# --- log

locals {
  log_group = "/cloister/${var.name}"
}

resource "aws_cloudwatch_log_group" "parent" {
  name              = local.log_group
  retention_in_days = var.log_retention_days
  tags              = var.tags
}

# --- the instance

resource "aws_launch_template" "parent" {
  name                   = "${var.name}-parent"
  description            = "Parent of a Cloister enclave"
  update_default_version = true
  image_id               = var.ami_id == null ? data.aws_ssm_parameter.ami[0].insecure_value : var.ami_id
  instance_type          = var.instance_type
  vpc_security_group_ids = [aws_security_group.parent.id]
  tags                   = var.tags

  enclave_options {
    enabled = true
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "disabled"
  }

  iam_instance_profile {
    arn = aws_iam_instance_profile.parent.arn
  }

  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      encrypted             = true
      volume_type           = "gp3"
      volume_size           = var.root_volume_gib
      delete_on_termination = true
    }
  }

  user_data = base64encode(templatefile("${path.module}/user_data.sh.tftpl", {
    name      = var.name
    region    = data.aws_region.current.name
    package   = var.package
    port      = var.port
    memory    = var.enclave_memory_mib
    cpus      = var.enclave_cpus
    source    = "s3://${var.image.bucket}/${var.image.prefix}"
    files     = local.files
    model     = var.model
    log_group = local.log_group
  }))

  tag_specifications {
    resource_type = "instance"
    tags          = merge(var.tags, { Name = "${var.name}-parent" })
  }

  tag_specifications {
    resource_type = "volume"
    tags          = var.tags
  }

  lifecycle {
    precondition {
      condition     = data.aws_ec2_instance_type.parent.nitro_enclaves_support == "supported"
      error_message = "AWS says that ${var.instance_type} does not run enclaves."
    }
    precondition {
      condition     = data.aws_ec2_instance_type.parent.default_vcpus - var.enclave_cpus >= 2
      error_message = "${var.instance_type} has to keep two vCPUs for the parent."
    }
    precondition {
      condition     = data.aws_ec2_instance_type.parent.memory_size - var.enclave_memory_mib >= 1024
      error_message = "${var.instance_type} has to keep 1024 MiB for the parent."
    }
  }
}

resource "aws_instance" "parent" {
  count     = var.instances
  subnet_id = var.subnet_id
  tags      = merge(var.tags, { Name = "${var.name}-parent" })

  launch_template {
    id      = aws_launch_template.parent.id
    version = aws_launch_template.parent.latest_version
  }

  # The first boot fetches, so everything it may ask for has to be there.
  depends_on = [
    aws_iam_role_policy.parent, aws_kms_key.release, aws_vpc_security_group_egress_rule.https, aws_cloudwatch_log_group.parent,
  ]

  lifecycle {
    # An enclave lives as long as its parent: a new template means a new instance.
    replace_triggered_by = [aws_launch_template.parent.latest_version]
  }
}
