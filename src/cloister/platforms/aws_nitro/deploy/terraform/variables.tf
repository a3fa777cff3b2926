variable "name" {
  description = "Names everything; the image's name in cloister.toml."
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{0,39}$", var.name))
    error_message = "Lower-case letters, digits and dashes, at most 40."
  }
}

variable "vpc_id" {
  description = "Where the security group is."
  type        = string
}

variable "subnet_id" {
  description = "Where instances start; not in a Local Zone, Wavelength Zone or Outpost. It needs a way to AWS and a package index on port 443."
  type        = string
}

variable "ingress_cidrs" {
  description = "IPv4 networks of relays and clients. They send sealed bytes only, but an open port is an open port."
  type        = list(string)
  validation {
    condition     = alltrue([for each in var.ingress_cidrs : can(cidrnetmask(each))])
    error_message = "Every entry is an IPv4 network such as 10.0.0.0/16."
  }
  validation {
    condition     = !contains(var.ingress_cidrs, "0.0.0.0/0")
    error_message = "Not the whole Internet: put a load balancer or a relay in front."
  }
}

variable "port" {
  description = "Where the parent agent listens."
  type        = number
  default     = 8080
  validation {
    condition     = var.port >= 1024 && var.port <= 65535 && floor(var.port) == var.port
    error_message = "From 1024 to 65535: the agent is not root."
  }
}

variable "instance_type" {
  description = "An x86_64 type that runs enclaves, with at least two vCPUs more than the enclave."
  type        = string
  default     = "m6i.xlarge"
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]*\\.[a-z0-9-]+$", var.instance_type))
    error_message = "FAMILY.SIZE, for example m6i.xlarge."
  }
  validation {
    condition = (
      !contains(local.types.x86_64.excluded_families, split(".", var.instance_type)[0]) &&
      !contains(local.types.x86_64.excluded_types, var.instance_type) &&
      !anytrue([for prefix in local.types.x86_64.excluded_prefixes : startswith(split(".", var.instance_type)[0], prefix)]) &&
      !startswith(try(split(".", var.instance_type)[1], ""), "metal")
    )
    error_message = "This type cannot run enclaves (instance_types.json)."
  }
  validation {
    # Graviton families end in g, or in g and letters for their disks and networks; p4d, g5 and the like are not among them.
    condition     = !can(regex("^([a-z]+[0-9]+g[a-z]*|a1)$", split(".", var.instance_type)[0]))
    error_message = "Images are for x86_64, this is a Graviton type."
  }
  validation {
    condition     = !contains(["nano", "micro", "small", "medium", "large"], try(split(".", var.instance_type)[1], ""))
    error_message = "A parent of enclaves needs at least four vCPUs: xlarge."
  }
}

variable "enclave_memory_mib" {
  description = "Set aside for the enclave: memory_mib of cloister.toml, at least four times the image, and the weights."
  type        = number
  default     = 2048
  validation {
    condition     = var.enclave_memory_mib >= 64 && var.enclave_memory_mib % 2 == 0
    error_message = "At least 64, in steps of 2 MiB."
  }
}

variable "enclave_cpus" {
  description = "Set aside for the enclave: cpus of cloister.toml, in whole cores of two threads."
  type        = number
  default     = 2
  validation {
    condition     = var.enclave_cpus >= 2 && var.enclave_cpus % 2 == 0
    error_message = "A multiple of two: enclaves get whole cores."
  }
}

variable "image" {
  description = "What `cloister build` wrote, in S3: NAME.eif and measurements.json under `prefix`, cloister.toml, and the owner's public key (file name as in cloister.toml) for a sealed model."
  type = object({
    bucket     = string
    prefix     = string
    public_key = optional(string)
  })
  validation {
    condition = alltrue([
      can(regex("^[a-z0-9.-]{3,63}$", var.image.bucket)),
      can(regex("^[A-Za-z0-9_./-]{0,200}[A-Za-z0-9_.-]$", var.image.prefix)),
      var.image.public_key == null || can(regex("^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$", coalesce(var.image.public_key, "x"))),
    ])
    error_message = "Bucket, prefix without a last slash, and a file name: letters, digits, dot, dash, underscore."
  }
}

variable "model" {
  description = "The sealed model in S3 (`cloister seal`), null for a model in the image."
  type = object({
    name    = string
    bucket  = string
    key     = string
    version = optional(string)
  })
  default = null
  validation {
    condition = var.model == null || alltrue([
      can(regex("^[a-z0-9][a-z0-9._-]{0,62}$", try(var.model.name, ""))),
      can(regex("^[a-z0-9.-]{3,63}$", try(var.model.bucket, ""))),
      can(regex("^[A-Za-z0-9_./-]{1,200}$", try(var.model.key, ""))),
    ])
    error_message = "Name as in cloister.toml, bucket, object key."
  }
}

variable "owner_arn" {
  description = "Who seals the weights: may make data keys, never decrypt one. Null: nobody."
  type        = string
  default     = null
  validation {
    condition     = var.owner_arn == null || can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:(role|user)/[A-Za-z0-9+=,.@_/-]{1,512}$", var.owner_arn))
    error_message = "The ARN of an IAM role or user."
  }
}

variable "pcr0" {
  description = "PCR0 of the image (measurements.json). Null until there is one: then no image at all gets the data key."
  type        = string
  default     = null
  validation {
    condition     = var.pcr0 == null || (can(regex("^[0-9a-fA-F]{96}$", var.pcr0)) && can(regex("[1-9a-fA-F]", var.pcr0)))
    error_message = "96 hex digits, not all zero: zeros are debug enclaves."
  }
}

variable "pcr8" {
  description = "PCR8, the image's signer, if it is signed."
  type        = string
  default     = null
  validation {
    condition     = var.pcr8 == null || (can(regex("^[0-9a-fA-F]{96}$", var.pcr8)) && can(regex("[1-9a-fA-F]", var.pcr8)))
    error_message = "96 hex digits, not all zero."
  }
}

variable "instances" {
  description = "How many to start from the launch template; 0 for an Auto Scaling group of your own, or until pcr0 is known."
  type        = number
  default     = 0
  validation {
    condition     = var.instances >= 0 && floor(var.instances) == var.instances
    error_message = "A whole number."
  }
  validation {
    condition     = var.instances == 0 || var.pcr0 != null
    error_message = "Without pcr0 no instance would get its key: set pcr0 first."
  }
}

variable "ami_id" {
  description = "An Amazon Linux 2023 image for x86_64; null takes AWS's newest."
  type        = string
  default     = null
}

variable "package" {
  description = "What pip installs on the parent: a requirement of this package, pinned."
  type        = string
  default     = "cloister==0.1.0"
  validation {
    condition     = can(regex("^[A-Za-z0-9@:/._=-]{1,300}$", var.package))
    error_message = "One requirement without spaces, for example cloister==0.1.0."
  }
}

variable "root_volume_gib" {
  description = "The parent's encrypted disk; it holds the image and the sealed model."
  type        = number
  default     = 16
}

variable "log_retention_days" {
  description = "Of the parent's log: byte counts by door, no content."
  type        = number
  default     = 30
}

variable "key_deletion_days" {
  description = "AWS KMS waits so long before a deleted key is gone, and every model sealed under it."
  type        = number
  default     = 30
}

variable "tags" {
  description = "On everything."
  type        = map(string)
  default     = {}
}
