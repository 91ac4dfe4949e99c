#!/usr/bin/env -S python -u
"""The policy pack, which checks every preview and every `up`. The rules are in rules.py.

usage: pulumi preview --policy-pack policy/__main__.py
The engine starts a pack that is a program by itself, whatever Python language host the CLI has, and reads the port that
the program prints; hence -u, unbuffered output. Released CLIs also accept the folder (--policy-pack policy).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import rules
from pulumi_policy import (
    EnforcementLevel,
    PolicyPack,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    StackValidationArgs,
    StackValidationPolicy,
)
from pulumi_policy.deserialize import serialize_properties


def seen(args: ResourceValidationArgs) -> rules.Resource:
    """The resource with plain inputs. The SDK's own raise an exception on each access to an unknown value."""
    return rules.Resource(
        args.resource_type, args.name, serialize_properties(args.props), list(args.opts.additional_secret_outputs)
    )


class Rule(ResourceValidationPolicy):
    """A policy from a function of rules.py."""

    def __init__(self, name: str, description: str, find: Callable[[rules.Resource], Iterator[str]]) -> None:
        super().__init__(name, description)
        self.find = find

    def validate(self, args: ResourceValidationArgs, report_violation: ReportViolation) -> None:
        for problem in self.find(seen(args)):
            report_violation(problem, None)


class SecretInputs(Rule):
    """The policy secret-inputs. Only a remediation can see which inputs are secret, and it runs before the validation.

    So `remediate` changes nothing and notes what it finds, and `validate` reports it.
    """

    def __init__(self, name: str, description: str) -> None:
        super().__init__(name, description, rules.plain_secrets)
        self.enforcement_level = EnforcementLevel.REMEDIATE
        self.found: dict[str, list[str]] = {}

    def remediate(self, args: ResourceValidationArgs) -> None:
        self.found[args.urn] = list(self.find(seen(args)))

    def validate(self, args: ResourceValidationArgs, report_violation: ReportViolation) -> None:
        for problem in self.found.pop(args.urn, []):
            report_violation(problem, None)


def outputs(args: StackValidationArgs, report_violation: ReportViolation) -> None:
    """The policy secret-keys. Outputs are known only after the resources exist, when the stack is validated."""
    for resource in args.resources:
        for problem in rules.printed_keys(seen(resource)):
            report_violation(problem, resource.urn)


PolicyPack(
    "spdk-k8s",
    enforcement_level=EnforcementLevel.MANDATORY,
    policies=[
        Rule("private-images", "Pods use images by digest, from the stack's own registry.", rules.Images()),
        Rule(
            "host-access", "Only workloads with a grant use a node's privileges, network or files.", rules.host_access
        ),
        Rule("remote-commands", "Every remote command has a host key and a time limit.", rules.remote_command),
        SecretInputs("secret-inputs", "Private keys, passwords and kubeconfigs are secrets."),
        Rule("secret-outputs", "The output of a remote command is a secret.", rules.secret_outputs),
        StackValidationPolicy("secret-keys", "No command's output holds a private key in plain text.", outputs),
    ],
)
