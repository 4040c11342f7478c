"""What has to be so for a trace to work; `virtrace doctor` prints it.

An engine has its own checks: `Engine.checks`.
"""
