# The same document as `cloister policy kms` prints (src/cloister/policy/kms.py); docs/key-release.md explains every line.

locals {
  pcr0    = lower(coalesce(var.pcr0, join("", [for _ in range(96) : "f"])))
  image   = "kms:RecipientAttestation:ImageSha384"
  model   = "kms:EncryptionContext:cloister:model"
  version = "kms:EncryptionContext:cloister:version"

  registers = { for name, value in {
    "kms:RecipientAttestation:PCR0" = local.pcr0
    "kms:RecipientAttestation:PCR8" = var.pcr8 == null ? null : lower(var.pcr8)
  } : name => value if value != null }

  equal = { for name, value in {
    (local.model)   = try(var.model.name, null)
    (local.version) = try(var.model.version, null)
  } : name => value if value != null }

  # Where no value is demanded, the context must at least name one.
  named = { for name in [local.model, local.version] : name => "false" if !contains(keys(local.equal), name) }

  opening = ["kms:Decrypt", "kms:ReEncryptFrom", "kms:GenerateRandom", "kms:DeriveSharedSecret"]
  making  = ["kms:GenerateDataKey*"]

  administration = {
    Sid       = "AdministrationWithoutUse"
    Effect    = "Allow"
    Principal = { AWS = "arn:${local.partition}:iam::${local.account}:root" }
    Action = [
      "kms:DescribeKey", "kms:GetKeyPolicy", "kms:PutKeyPolicy", "kms:ListKeyPolicies", "kms:ListGrants",
      "kms:RevokeGrant", "kms:ListResourceTags", "kms:TagResource", "kms:UntagResource", "kms:UpdateKeyDescription",
      "kms:CreateAlias", "kms:UpdateAlias", "kms:DeleteAlias", "kms:EnableKey", "kms:DisableKey",
      "kms:EnableKeyRotation", "kms:DisableKeyRotation", "kms:GetKeyRotationStatus", "kms:ScheduleKeyDeletion",
      "kms:CancelKeyDeletion",
    ]
    Resource = "*"
  }

  attested = {
    Sid       = "AttestedImage"
    Effect    = "Allow"
    Principal = { AWS = local.role_arn }
    Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
    Resource  = "*"
    Condition = { for operator, values in {
      StringEqualsIgnoreCase = local.registers
      StringEquals           = local.equal
      Null                   = local.named
    } : operator => values if length(values) > 0 }
  }

  with_owner = [
    {
      Sid       = "OwnerMakesDataKeys"
      Effect    = "Allow"
      Principal = { AWS = var.owner_arn }
      Action    = ["kms:GenerateDataKey", "kms:DescribeKey"]
      Resource  = "*"
    },
    {
      Sid       = "NothingOpensWithoutAttestation"
      Effect    = "Deny"
      Principal = { AWS = "*" }
      Action    = local.opening
      Resource  = "*"
      Condition = { Null = { (local.image) = "true" } }
    },
    {
      Sid       = "NobodyElseMakesDataKeys"
      Effect    = "Deny"
      Principal = { AWS = "*" }
      Action    = local.making
      Resource  = "*"
      Condition = { Null = { (local.image) = "true" }, ArnNotEquals = { "aws:PrincipalArn" = var.owner_arn } }
    },
  ]

  without_owner = [{
    Sid       = "NothingWithoutAttestation"
    Effect    = "Deny"
    Principal = { AWS = "*" }
    Action    = concat(local.opening, local.making)
    Resource  = "*"
    Condition = { Null = { (local.image) = "true" } }
  }]

  key_policy = jsonencode({
    Version = "2012-10-17"
    Id      = "cloister-key-release"
    Statement = concat(
      [local.administration], [local.attested],
      [for statement in local.with_owner : statement if var.owner_arn != null],
      [for statement in local.without_owner : statement if var.owner_arn == null],
    )
  })
}

resource "aws_kms_key" "release" {
  description             = "Data keys of models that ${var.name} opens, released to its measured image only"
  policy                  = local.key_policy
  enable_key_rotation     = true
  deletion_window_in_days = var.key_deletion_days
  tags                    = var.tags

  lifecycle {
    precondition {
      condition     = var.owner_arn != local.role_arn
      error_message = "The parent's role must not get data keys in the clear."
    }
  }

  # AWS refuses a policy whose principals do not exist.
  depends_on = [aws_iam_role.parent]
}
