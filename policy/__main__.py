#!/usr/bin/env -S python -u
"""The policy pack: what every preview and every `up` is held to; the rules themselves: rules.py.

`pulumi preview --policy-pack policy/__main__.py`: a pack that is a program is started by the engine itself, whatever
Python host the CLI came with, and waits for the port that it prints (so -u). Released CLIs take the folder as well.
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
    """A resource without the proxies that raise an exception wherever a value is not known yet."""
    return rules.Resource(
        args.resource_type, args.name, serialize_properties(args.props), list(args.opts.additional_secret_outputs)
    )


class Rule(ResourceValidationPolicy):
    """A function of rules.py as a policy."""

    def __init__(self, name: str, description: str, find: Callable[[rules.Resource], Iterator[str]]) -> None:
        super().__init__(name, description)
        self.find = find

    def validate(self, args: ResourceValidationArgs, report_violation: ReportViolation) -> None:
        for problem in self.find(seen(args)):
            report_violation(problem, None)


class SecretInputs(Rule):
    """Only a remediation is shown which values are secret; it comes first, changes nothing, and notes what it saw."""

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
    for resource in args.resources:
        for problem in rules.printed_keys(seen(resource)):
            report_violation(problem, resource.urn)


PolicyPack(
    "spdk-k8s",
    enforcement_level=EnforcementLevel.MANDATORY,
    policies=[
        Rule("private-images", "Pods run images of the stack's own registry, by digest.", rules.Images()),
        Rule(
            "host-access", "Only what the design names takes a node's privileges, network or files.", rules.host_access
        ),
        Rule("remote-commands", "Every remote command names a host key and a time limit.", rules.remote_command),
        SecretInputs("secret-inputs", "Private keys, passwords and kubeconfigs are secrets."),
        Rule("secret-outputs", "What a command prints is a secret where it may hold one.", rules.secret_outputs),
        StackValidationPolicy("secret-keys", "No command's output holds a private key in plain text.", outputs),
    ],
)
