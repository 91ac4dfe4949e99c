"""The config: its models, the rules that it must keep, and the budgets that follow from it. Imports no provider SDK."""
