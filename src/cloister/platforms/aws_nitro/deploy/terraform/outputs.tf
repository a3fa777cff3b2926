output "key_arn" {
  description = "For [release] key in cloister.toml, and for `cloister seal --kms-key`."
  value       = aws_kms_key.release.arn
}

output "key_policy" {
  description = "The key's policy, to be compared with what `cloister policy kms` prints."
  value       = local.key_policy
}

output "role_arn" {
  description = "The parent's role; `cloister policy kms --role`. PCR3 is its measurement."
  value       = local.role_arn
}

output "launch_template_id" {
  description = "For an Auto Scaling group of your own."
  value       = aws_launch_template.parent.id
}

output "security_group_id" {
  value = aws_security_group.parent.id
}

output "log_group_name" {
  value = aws_cloudwatch_log_group.parent.name
}

output "addresses" {
  description = "Where the agents of the started instances listen."
  value       = [for each in aws_instance.parent : "http://${each.private_ip}:${var.port}"]
}
