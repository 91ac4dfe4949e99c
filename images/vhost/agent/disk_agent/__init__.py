"""The disk agent: one process per storage host that owns the chain bdev -> vhost controller -> device in the VM."""
